"""What is exchanged: layout, snapshots, codecs, and the differences made of them."""
