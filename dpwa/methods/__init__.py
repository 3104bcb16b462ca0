"""The averaging methods, one file each; `base` says what a method is. docs/methods.md compares them."""
