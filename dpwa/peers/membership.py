"""Who is there: what each peer was last heard to say of itself.

Must not know: sockets, scores, time. Runs in: written by the Rx and the Tx thread, read by all. Each peer's record is
frozen and swapped whole, so that a reader needs no lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Membership", "PeerRecord"]


@dataclass(frozen=True)
class PeerRecord:
    """What is known of one peer.

    Attributes:
        incarnation: random id of its present life; None until it was first heard.
        finished: it has ended its training and only waits for the others.
    """

    incarnation: bytes | None = None
    finished: bool = False


class Membership:
    """The peers of the cluster file and what they said last.

    Args:
        peers: names of all other nodes.
    """

    def __init__(self, peers: Iterable[str]) -> None:
        self._records: dict[str, PeerRecord] = {peer: PeerRecord() for peer in peers}

    def __getitem__(self, peer: str) -> PeerRecord:
        return self._records[peer]

    @property
    def peers(self) -> tuple[str, ...]:
        """All peers of the cluster file, in its order."""
        return tuple(self._records)

    def heard(self, peer: str, incarnation: bytes, *, finished: bool) -> bool:
        """Note what a peer said of itself.

        Returns:
            False if there is no such peer in the cluster file; nothing is noted then.
        """
        if peer not in self._records:
            return False
        self._records[peer] = PeerRecord(incarnation, finished)
        return True
