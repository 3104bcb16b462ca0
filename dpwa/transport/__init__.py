"""How snapshots get from node to node: the wire format, the Rx and Tx threads over ZeroMQ, and an in-memory twin."""
