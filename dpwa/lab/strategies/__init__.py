"""The strategies: what the processes of a trial do, one module per family."""
