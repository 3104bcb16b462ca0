"""How two nodes exchange: no sockets, no threads."""
