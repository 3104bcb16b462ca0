"""The version of dpwa, in one place that packaging can read without importing the package."""

__version__ = "0.1.0"
