"""Starting the nodes of a cluster as processes of this host. `local` is the door; it names the rest."""
