"""Proposals of peers that wait to be fetched: whose turn it is, and how much of this node strangers can take up.

Anybody who can connect can send a proposal in the name of a peer. Only fetching it from the peer itself shows whether
it is real. A peer that names its last proposal that was taken here is known at once, because only the two nodes have
seen that id: such a proposal is *proven*. The others get few places and a bounded share of the fetching thread's time.

Must not know: the model, what is decided. Runs in: Rx and Tx thread, under the lock of `Proposals`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dpwa.exchange.messages import Propose, Verdict
from dpwa.snapshot.layout import Snapshot

__all__ = ["Inbox", "Notice", "Seen"]

# Proposals that may wait. What does not fit stays with its proposer: back-pressure.
_MAX_WAITING = 32

# Of those, unproven ones in the name of one peer: the present one, and one that its proposer has taken back meanwhile.
_MAX_UNPROVEN_OF_A_PEER = 2

# After an unproven proposal that turned out to be none, others wait for this many times as long as the fetch took: so
# strangers get at most a quarter of the fetching thread's time, whether the peer that they name is dead, slow or well.
_PAUSE_PER_COST = 3.0
_LEAST_PAUSE_S = 0.02


@dataclass
class Seen:
    """What became of a proposal so far."""

    verdict: Verdict = Verdict.PENDING
    is_prepared: bool = False


@dataclass(frozen=True)
class Notice:
    """A peer's proposal that was accepted.

    Attributes:
        propose: the proposal.
        reference: this node's snapshot that was set aside for a pair; None for a push.
    """

    propose: Propose
    reference: Snapshot | None


@dataclass
class _Waiting:
    notice: Notice
    is_proven: bool
    seen: Seen = field(default_factory=Seen)

    def is_of(self, peer: str, exchange_id: bytes) -> bool:
        return self.notice.propose.exchange_id == exchange_id and self.notice.propose.node == peer


class Inbox:
    """What waits, and the one that is being fetched."""

    def __init__(self) -> None:
        self.monotonic_s: Callable[[], float] = _no_time
        """The clock that the time of strangers is measured by. Without one it costs nothing and is not limited."""
        self._waiting: list[_Waiting] = []
        self._fetching: _Waiting | None = None
        self._began_s = 0.0
        self._unproven_from_s = 0.0

    def put(self, notice: Notice, *, is_proven: bool) -> bool:
        """Have a proposal wait; False if there is no room for it."""
        new, peer = _Waiting(notice, is_proven), notice.propose.node
        same = [index for index, one in enumerate(self._waiting) if one.notice.propose.node == peer]
        same = [index for index in same if self._waiting[index].is_proven == is_proven]
        if is_proven and same:
            self._waiting[same[0]] = new  # a peer has one proposal at a time: it has taken the former one back
            return True
        if not is_proven and len(same) >= _MAX_UNPROVEN_OF_A_PEER:
            return False
        if len(self._waiting) >= _MAX_WAITING:
            unproven = [index for index, one in enumerate(self._waiting) if not one.is_proven]
            if not (is_proven and unproven):
                return False
            del self._waiting[unproven[-1]]  # its proposer takes it back when nobody has fetched it in time
        self._waiting.append(new)
        return True

    def clear(self) -> None:
        """Forget all of them, with the snapshots that they hold."""
        self._waiting, self._fetching = [], None

    def find(self, peer: str, exchange_id: bytes) -> Seen | None:
        """What became of a proposal that waits or is being fetched; None for any other."""
        if self._fetching is not None and self._fetching.is_of(peer, exchange_id):
            return self._fetching.seen
        return next((waiting.seen for waiting in self._waiting if waiting.is_of(peer, exchange_id)), None)

    @property
    def takes_unproven(self) -> bool:
        """Whether an unproven proposal may be fetched now."""
        return self.monotonic_s() >= self._unproven_from_s

    @property
    def has_next(self) -> bool:
        """Whether one may be fetched now."""
        return any(waiting.is_proven for waiting in self._waiting) or (bool(self._waiting) and self.takes_unproven)

    @property
    def deadline_s(self) -> float | None:
        """When one may be fetched for which it is too early now."""
        return self._unproven_from_s if self._waiting and not self.has_next else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, and nothing is being fetched."""
        return not self._waiting and self._fetching is None

    def next(self) -> Notice | None:
        """The one to fetch now, until `end`; None if there is none."""
        if not self.has_next:
            return None
        chosen = next((waiting for waiting in self._waiting if waiting.is_proven), self._waiting[0])
        self._waiting.remove(chosen)
        self._fetching, self._began_s = chosen, self.monotonic_s()
        return chosen.notice

    def end(self, peer: str, exchange_id: bytes, *, is_real: bool) -> None:
        """A proposal has been fetched, or could not be.

        Args:
            peer: the proposer.
            exchange_id: id of the proposal.
            is_real: the peer itself has given what was proposed.
        """
        self._waiting = [waiting for waiting in self._waiting if not waiting.is_of(peer, exchange_id)]
        ended = self._fetching
        if ended is None or not ended.is_of(peer, exchange_id):
            return
        self._fetching = None
        now_s = self.monotonic_s()
        if not ended.is_proven and not is_real and now_s > self._began_s:
            self._unproven_from_s = now_s + max(_LEAST_PAUSE_S, _PAUSE_PER_COST * (now_s - self._began_s))


def _no_time() -> float:
    return 0.0
