"""A study: its file, its rows, its trials."""
