"""The peers' shared segments that a node has mapped, and those that it found unusable.

Must not know: ZeroMQ, the wire. Runs in: the Tx thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from dpwa.transport.shared_memory import SegmentReader, SegmentUnusable

__all__ = ["Segments"]


class Segments:
    """Maps each peer's segment once per life of the peer.

    Args:
        run_id: of the run.
        neighbours: peers on this host, whose shared memory may be asked for.
        size_bytes: bytes of a snapshot.
    """

    def __init__(self, *, run_id: str, neighbours: Iterable[str], size_bytes: int) -> None:
        self._run_id = run_id
        self._neighbours = set(neighbours)
        self._size_bytes = size_bytes
        self._readers: dict[str, tuple[bytes, SegmentReader]] = {}
        self._unusable: dict[str, bytes] = {}
        """Peer to the incarnation whose segment cannot be used: the next life may do better."""

    def know(self, peer: str) -> None:
        """One more peer is on this host."""
        self._neighbours.add(peer)

    def part(self, peer: str) -> None:
        """A peer is gone for good."""
        self.forget(peer)
        self._neighbours.discard(peer)

    def can_share(self, peer: str) -> bool:
        """Whether it is worth asking for a peer's shared memory."""
        return peer in self._neighbours and peer not in self._unusable

    def reader(self, peer: str, incarnation: bytes, token: bytes) -> SegmentReader:
        """The peer's segment.

        Raises:
            SegmentUnusable: it cannot be used; `can_share` is False from here on, until `forget`.
        """
        known = self._readers.get(peer)
        if known is not None and known[0] == incarnation:
            return known[1]
        try:
            reader = SegmentReader(
                run_id=self._run_id, node=peer, incarnation=incarnation, token=token, size_bytes=self._size_bytes
            )
        except SegmentUnusable:
            self._unusable[peer] = incarnation
            raise
        self._readers[peer] = (incarnation, reader)
        return reader

    def forget(self, peer: str) -> None:
        """Unmap a peer's segment: its connection was closed, and its next life will have another."""
        self._readers.pop(peer, None)
        self._unusable.pop(peer, None)
