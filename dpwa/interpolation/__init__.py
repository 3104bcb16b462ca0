"""The factor of a pull."""
