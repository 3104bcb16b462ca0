"""The cluster file: what may stand in it, what is wrong with one, and what it means."""
