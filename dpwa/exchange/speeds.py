"""How fast this node trains beside its peers, from counts of steps alone, and whom to ask for such a count.

What a peer answers says how many steps it has made. Over a span in which this node makes so many steps and the peer so
many others, the ratio of the two is the ratio of the speeds: with all pauses in it, and with no clock that is read or
sent. A speed that is used changes only when it is clearly another one, so that equal nodes stay equal.

Local steps in proportion to the speed are the "dynamic local updates" of Liu et al. 2024, "Asynchronous local-SGD
training for language modeling", arXiv 2401.09135.

Must not know: sockets, threads, time, what a speed is used for. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["LEAST_SPEED", "Speeds", "settled"]

LEAST_SPEED: Final = 1 / 16
"""No node counts as slower than that beside the fastest, whatever a peer says of itself."""

# Below the one, a node is slower than the fastest; above the other, as fast again; and between two speeds below 1 lies
# at least this factor.
_SLOWER = 1 / 1.2
_EQUAL = 0.9
_FACTOR = 1.1

# What a ratio is made of: both counts are off by a step at each end.
_LEAST_OWN_STEPS = 4
_LEAST_STEPS = 24

# Questions in as many steps of this node as `every`, if no other answers come.
_QUESTIONS = 16


class _Counts(NamedTuple):
    """Steps that this node and a peer had made at one moment."""

    own: int
    theirs: int


@dataclass
class _Peer:
    """What a peer has said in its present life: where the span begins, where the next one will, and the latest."""

    incarnation: bytes
    first: _Counts
    next: _Counts
    latest: _Counts


def settled(before: float, seen: float) -> float:
    """The speed to use: the one before, unless what is seen now is clearly another.

    Args:
        before: that was used so far, above 0 to 1.
        seen: this node's speed over that of the fastest peer, above 0.
    """
    seen = max(seen, LEAST_SPEED)
    if seen >= _EQUAL or (before == 1.0 and seen > _SLOWER):
        return 1.0
    return seen if not before / _FACTOR < seen < before * _FACTOR else before


class Speeds:
    """Compares one node with its peers.

    Args:
        every: steps of the fastest node from one use of the speed to the next.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._turn = max(1, every // _QUESTIONS)
        self._span = max(2 * every, _LEAST_STEPS)
        self._peers: dict[str, _Peer] = {}
        self._asked: dict[str, int] = {}
        self.next_question = 0
        """Step at which there may be somebody to ask; not before."""
        self.speed = 1.0
        """Of this node, as a share of the fastest one's."""
        self.fastest: str | None = None
        """The peer that is faster; None: there is none."""

    def heard(self, peer: str, incarnation: bytes, own: int, theirs: int) -> None:
        """A peer has said how many steps it has made.

        Args:
            peer: who.
            incarnation: in which life.
            own: steps that this node has made by now.
            theirs: steps that the peer has made.
        """
        counts, known = _Counts(own, theirs), self._peers.get(peer)
        if known is None or known.incarnation != incarnation:
            self._peers[peer] = _Peer(incarnation, counts, counts, counts)
        elif theirs > known.latest.theirs:
            known.latest = counts
            if max(own - known.next.own, theirs - known.next.theirs) >= self._span:
                known.first, known.next = known.next, counts

    def forget(self, peer: str) -> None:
        """A peer has finished, or is gone."""
        self._peers.pop(peer, None)
        self._asked.pop(peer, None)

    def look(self, own: int, peers: Iterable[str]) -> bool:
        """Compare anew.

        Args:
            own: steps that this node has made.
            peers: who there is.

        Returns:
            Whether the speed has changed.
        """
        there = set(peers)
        patience = self._every + 2 * self._turn * len(there)
        for peer, known in list(self._peers.items()):
            if peer not in there or own - known.latest.own > patience:
                self.forget(peer)
        before, ratios = self.speed, {peer: _ratio(known) for peer, known in self._peers.items()}
        fastest = max(ratios, key=lambda peer: ratios[peer], default=None)
        self.speed = settled(before, 1.0 / max(ratios[fastest], 1.0) if fastest is not None else 1.0)
        self.fastest = fastest if self.speed < 1.0 else None
        return self.speed != before

    def question(self, own: int, peers: Iterable[str]) -> str | None:
        """The peer to ask now for its count: the one that was not heard or asked for longest; None: nobody.

        Args:
            own: steps that this node has made.
            peers: who may be asked.
        """
        last = {peer: self._last(peer) for peer in peers}
        peer = min(last, key=lambda peer: last[peer], default=None)
        is_due = peer is not None and own - last[peer] >= self._turn
        self.next_question = (own if is_due or peer is None else last[peer]) + self._turn
        if peer is None or not is_due:
            return None
        self._asked[peer] = own
        return peer

    def _last(self, peer: str) -> int:
        known = self._peers.get(peer)
        return max(self._asked.get(peer, -self._turn), -self._turn if known is None else known.latest.own)


def _ratio(known: _Peer) -> float:
    """Steps of a peer for one of this node; 0 while too little is known."""
    own, theirs = known.latest.own - known.first.own, known.latest.theirs - known.first.theirs
    return theirs / own if own >= _LEAST_OWN_STEPS and own + theirs >= _LEAST_STEPS else 0.0
