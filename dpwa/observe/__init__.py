"""What a run leaves behind and how a person sees it: the journal, the metrics, live tables and charts."""
