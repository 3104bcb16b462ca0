"""The report of a study: from the results of its trials to a table, pictures and one page. Knows no torch."""
