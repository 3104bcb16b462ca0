"""What each peer said of itself, and what is merely claimed in its name.

Anybody who can connect can send a request in the name of a peer. What counts is what a peer answers at its own address,
to a request that this node made; a request that comes in is a hint that it may be worth asking.

Must not know: scores, time. Runs in: written by the Tx thread, hints by the Rx thread, read by all; news are taken by
the trainer's. Each peer's record is frozen and swapped whole, and sets change by one element, so that a reader needs no
lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from dpwa.exchange.messages import UNKNOWN_ORIGIN
from dpwa.snapshot.state import UNMARKED, Mark

__all__ = ["Membership", "PeerRecord"]


@dataclass(frozen=True)
class PeerRecord:
    """What is known of one peer.

    Attributes:
        incarnation: random id of its present life; None until it first answered.
        finished: it has ended its training and only waits for the others.
        step: training steps that it has made in this life, as far as it has said.
        loss: its latest training loss, and the step that it is of; None if it has said none.
        origin: a checksum of the weights that its training has begun with; all zero: unknown.
        mark: how far it is on the way to the merged model, as far as it has said.
    """

    incarnation: bytes | None = None
    finished: bool = False
    step: int = 0
    loss: tuple[int, float] | None = None
    origin: bytes = UNKNOWN_ORIGIN
    mark: Mark = UNMARKED


_NOTHING = PeerRecord()


class Membership:
    """The peers, and what they said last.

    Args:
        peers: names of all other nodes of the cluster file.
        is_open: nodes that are not in the file may join.
        unasked: those of them that cannot be asked. They may ask.
    """

    def __init__(self, peers: Iterable[str], *, is_open: bool = False, unasked: Collection[str] = ()) -> None:
        self._records: dict[str, PeerRecord] = {peer: PeerRecord() for peer in peers}
        self._unasked = frozenset(unasked)
        self.is_open = is_open
        """Whether requests of nodes are answered that are no peers yet."""
        self.peers = self._asked()
        """All peers that can be asked: those of the cluster file in its order, then those that have joined. Swapped
        whole."""
        self._hints: set[str] = set()
        self._asked_by: set[str] = set()
        self._finished_by_hint: set[str] = set()
        self._news: set[str] = set()

    def __getitem__(self, peer: str) -> PeerRecord:
        # One that had joined may be forgotten by now.
        return self._records.get(peer, _NOTHING) if self.is_open else self._records[peer]

    def add(self, peer: str) -> None:
        """A node has joined. Tx thread."""
        self._records[peer] = PeerRecord()
        self.peers = self._asked()

    def remove(self, peer: str) -> None:
        """A node that had joined is forgotten. Tx thread."""
        self._records.pop(peer, None)
        self.peers = self._asked()
        self._hints.discard(peer)
        self._asked_by.discard(peer)
        self._finished_by_hint.discard(peer)
        self._news.discard(peer)

    def _asked(self) -> tuple[str, ...]:
        return tuple(peer for peer in self._records if peer not in self._unasked)

    def heard(
        self,
        peer: str,
        incarnation: bytes,
        *,
        finished: bool,
        step: int = 0,
        loss: float | None = None,
        origin: bytes | None = None,
        mark: Mark | None = None,
    ) -> bool:
        """Note what a peer said of itself in an answer to this node.

        Args:
            peer: who.
            incarnation: in which life.
            finished: see `PeerRecord`, also for the others.
            step: 0 if it did not say.
            loss: at that step; None if it did not say.
            origin: None if it did not say.
            mark: None if it did not say.

        Returns:
            False if there is no such peer; nothing is noted then.
        """
        if peer not in self._records:
            return False
        known = self._records[peer]
        if known.incarnation != incarnation:
            known = PeerRecord(incarnation)
        self._records[peer] = PeerRecord(
            incarnation,
            finished,
            max(step, known.step),  # a snapshot that was set aside is older than what was said since
            known.loss if loss is None else (step, loss),
            known.origin if origin is None else origin,
            known.mark if mark is None else mark,
        )
        self._news.add(peer)
        return True

    def take_news(self) -> Iterator[str]:
        """The peers that have said something of themselves since the last time. Trainer."""
        while self._news:
            yield self._news.pop()

    # --- Hints ----------------------------------------------------------------------------------------------------

    def hint(self, peer: str, *, finished: bool | None) -> bool:
        """A request came in the name of a peer.

        Args:
            peer: who.
            finished: whether it says that it has ended its training; None: it does not say.

        Returns:
            False if there is no such peer; nothing is noted then.
        """
        if peer not in self._records:
            return False
        self._hints.add(peer)
        self._asked_by.add(peer)
        if finished is not None:
            (self._finished_by_hint.add if finished else self._finished_by_hint.discard)(peer)
        return True

    def take_hints(self) -> Iterator[str]:
        """The peers in whose names requests came since the last time."""
        while self._hints:
            yield self._hints.pop()

    @property
    def is_asked(self) -> bool:
        """Whether a request has ever come in the name of a peer."""
        return bool(self._asked_by)

    def asks_and_never_answers(self, peer: str) -> bool:
        """Whether requests came in the name of a peer that has never answered this node."""
        return peer in self._asked_by and self[peer].incarnation is None

    def is_said_to_have_finished(self, peer: str) -> bool:
        """Whether the latest request in the name of a peer said so."""
        return peer in self._finished_by_hint

    def may_have_left(self, peer: str) -> bool:
        """Whether a peer that cannot be reached may have ended as it should, by what it, or somebody for it, said."""
        return self[peer].finished or self.is_said_to_have_finished(peer)
