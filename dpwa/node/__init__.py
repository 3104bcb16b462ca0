"""One node: the object that an adapter needs, and its parts."""
