"""Who the peers are and which of them to ask: pure policy, no sockets."""
