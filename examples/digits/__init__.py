"""Handwritten digits of 8x8 pixels, bundled with scikit-learn: the example that `dpwa demo` runs."""
