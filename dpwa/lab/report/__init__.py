"""The report of a study: from the results of its trials to tables, charts and a web page."""
