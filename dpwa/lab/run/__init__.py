"""Runs the trials of a study, one after the other."""
