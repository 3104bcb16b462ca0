"""What the processes of a cell do, one file per family of strategies."""
