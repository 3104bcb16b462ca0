"""What the processes of a trial do, one file per family of strategies."""
