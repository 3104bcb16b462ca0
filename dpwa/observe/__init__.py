"""What a run records and how people see it: the journal, the metrics, the live table and curves."""
