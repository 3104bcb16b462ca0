"""What each peer has given before, so that nothing is taken twice and nothing old comes back.

Must not know: time, values. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["History"]

# Former lives of a peer that are remembered. A late answer from a life before these would pass for one from a new life;
# no answer is on its way for eight lives.
_MAX_FORMER_LIVES = 8

_ALL = 1.0 - 1e-9


@dataclass
class _Given:
    incarnation: bytes
    version: int = 0
    share: float = 0.0
    """How much of that version was taken."""
    former: deque[bytes] = field(default_factory=lambda: deque(maxlen=_MAX_FORMER_LIVES))


class History:
    """What was taken of each peer of one node."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}

    def forget(self, peer: str) -> None:
        """The peer is gone for good."""
        self._given.pop(peer, None)

    def have(self, peer: str) -> tuple[bytes, int] | None:
        """Incarnation and version of the newest snapshot of a peer that was taken whole; None if there is none."""
        given = self._given.get(peer)
        return (given.incarnation, given.version) if given is not None and given.share >= _ALL else None

    def knows(self, peer: str, incarnation: bytes) -> bool:
        """Whether the peer has shown a snapshot, or what it has, in this life."""
        given = self._given.get(peer)
        return given is not None and given.incarnation == incarnation

    def came(self, peer: str, incarnation: bytes) -> str | None:
        """Note in which life a peer has answered.

        Returns:
            What is wrong with that; None if nothing.
        """
        given = self._given.get(peer)
        if given is None:
            self._given[peer] = _Given(incarnation)
        elif incarnation in given.former:
            return "a snapshot of a former life, after one of a later life has come"
        elif incarnation != given.incarnation:
            given.former.append(given.incarnation)
            given.incarnation, given.version, given.share = incarnation, 0, 0.0
        return None

    def is_older(self, peer: str, version: int) -> bool:
        """Whether a newer snapshot of the peer's present life has come before. `came` was asked before."""
        return version < self._given[peer].version

    def has_all(self, peer: str, version: int) -> bool:
        """Whether all of this snapshot of the peer's present life has come before. `came` was asked before."""
        given = self._given[peer]
        return version == given.version and given.share >= _ALL

    def take(self, peer: str, version: int, share: float) -> None:
        """Note that this share of the parameters of a peer's snapshot has come; `came` was asked before."""
        given = self._given[peer]
        if version > given.version:
            given.version, given.share = version, 0.0
        given.share += share
