"""Trials in one process and in virtual time: dpwa's own nodes, with nothing left to chance."""
