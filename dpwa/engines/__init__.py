"""Nodes that something else has started: torchrun, srun or mpiexec; they find each other without a list of nodes."""
