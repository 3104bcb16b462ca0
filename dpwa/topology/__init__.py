"""Who hears whom in a cluster, and with which weight: graphs, mixing matrices, and what follows from them."""
