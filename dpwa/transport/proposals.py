"""Proposals under way: those of this node to its peers, and those of its peers to this node.

A push is one message too much to lose and one too much to get twice: it carries mass. So the values of a proposal never
travel unasked. The proposer sets its snapshot aside and tells the peer its id; the peer fetches the snapshot by that id
when it has room. What was never fetched can be withdrawn by the proposer alone; what was fetched was taken or not by
word of the peer, who decides once and remembers. A pair goes one step further: the peer's own snapshot is set aside
under the same id, and the peer takes its half only together with the word to the proposer that it may take the other.

Must not know: sockets, the model, methods. Runs in: trainer, Rx and Tx thread; one lock guards everything, and is held
for a few assignments and never while data moves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from dpwa.snapshot import Snapshot
from dpwa.transport.messages import EXCHANGE_BYTES, INCARNATION_BYTES, NO_EXCHANGE, Propose, Verdict

__all__ = ["Answer", "Notice", "Proposals"]

# Proposals of peers that may wait to be fetched. What does not fit stays with its proposer: back-pressure.
_MAX_INBOX = 32

# Lives of one peer whose newest proposals are remembered: of more, no message can be on its way.
_MAX_LIVES = 4


class Answer(Enum):
    """How a peer's proposal is received."""

    ACCEPTED = "accepted"
    BUSY = "busy"
    STALE = "stale"


@dataclass(frozen=True)
class Notice:
    """A peer's proposal that was accepted.

    Attributes:
        propose: the proposal.
        reference: the own snapshot that was set aside for a pair; None for a push.
    """

    propose: Propose
    reference: Snapshot | None


@dataclass
class _Own:
    exchange: bytes
    peer: str
    snapshot: Snapshot
    is_fetching: bool = False
    is_fetched: bool = False


@dataclass
class _Seen:
    """The newest proposal of one life of a peer. It has one at a time, so older ones are settled for it."""

    exchange: bytes
    verdict: Verdict = Verdict.PENDING
    is_prepared: bool = False


class Proposals:
    """The proposals of one node.

    Args:
        node: own name, which breaks the tie of two nodes that propose a pair to each other.
        incarnation: own id, the first half of the ids given out.
    """

    def __init__(self, node: str, incarnation: bytes) -> None:
        self._node = node
        self._incarnation = incarnation
        self._lock = threading.Lock()
        self._count = 0
        self._own: _Own | None = None
        # By node and life, so that a late message of a former life does no harm to the present one.
        self._seen: dict[str, dict[bytes, _Seen]] = {}
        self._inbox: deque[Notice] = deque()
        # A node takes part in one pair at a time: as the one who proposed it, or as the other.
        self._proposing: bytes | None = None  # id of the own one; empty until it has one
        self._pairing_with: str | None = None
        self._pair: Notice | None = None
        self.wake: Callable[[], None] = lambda: None
        """Called after something that the thread that makes the exchanges should look at; set by the transport."""
        self.decided: Callable[[], None] = lambda: None
        """Called when a proposer that waits for an answer can have one; set by the transport."""

    def unplug(self) -> None:
        """The transport has ended: there is nobody to call, and nothing of it must be kept alive from here."""
        self.wake = self.decided = lambda: None

    def close_all(self) -> None:
        """Let go of the snapshots that were set aside: the node has been closed."""
        with self._lock:
            self._own = self._pair = None
            self._inbox.clear()

    # --- Pairs exclude each other -------------------------------------------------------------------------------------

    def engage(self, applied: Collection[bytes]) -> bool:
        """Reserve this node for a pair that it will propose; False while it takes part in one. Trainer.

        Two pairs at a time would both move the same snapshot, and could make two nodes change places for ever.

        Args:
            applied: pairs that are part of the model by now, and of the snapshot that the new one is made with.
        """
        with self._lock:
            if self._pair is not None and self._pair.propose.exchange not in applied:
                return False
            if self._proposing is not None and self._proposing not in applied:
                return False
            self._pair, self._proposing, self._pairing_with = None, NO_EXCHANGE, None
            return True

    def disengage(self, exchange: bytes) -> None:
        """A pair has ended, and what it brought, if anything, is part of the newest snapshot: the node is free again.

        Args:
            exchange: its id; `NO_EXCHANGE` for an own one that was never opened.
        """
        with self._lock:
            if self._pair is not None and self._pair.propose.exchange == exchange:
                self._pair = None
            elif self._proposing == exchange:
                self._proposing = self._pairing_with = None

    # --- Own proposals ------------------------------------------------------------------------------------------------

    def open(self, snapshot: Snapshot) -> bytes:
        """Set a snapshot aside under a new id. Called before a peer is chosen; see `address`."""
        with self._lock:
            self._count += 1
            exchange = self._incarnation + self._count.to_bytes(EXCHANGE_BYTES - INCARNATION_BYTES, "big")
            self._own = _Own(exchange, "", snapshot)
            if self._proposing == NO_EXCHANGE:
                self._proposing = exchange
            return exchange

    def address(self, exchange: bytes, peer: str, *, is_pair: bool) -> bool:
        """Let this peer fetch it, and no other; False if this node has given way to a peer's pair meanwhile."""
        with self._lock:
            if is_pair and self._pair is not None:
                return False
            if self._own is not None and self._own.exchange == exchange:
                self._own.peer = peer
            self._pairing_with = peer if is_pair else None
            return True

    def bind(self) -> bool:
        """The peer has accepted the own pair, so that this node gives way no more; False if it has meanwhile."""
        with self._lock:
            self._pairing_with = None
            return self._pair is None

    def fetched(self, exchange: bytes) -> None:
        """The peer says that it has all of it. Rx thread."""
        with self._lock:
            if self._own is None or self._own.exchange != exchange:
                return
            self._own.is_fetched = True
        self.wake()

    def is_fetched(self, exchange: bytes) -> bool:
        """Whether the peer said that it has all of it."""
        with self._lock:
            return self._own is not None and self._own.exchange == exchange and self._own.is_fetched

    def withdraw(self, exchange: bytes) -> bool:
        """Take the proposal back; False if a peer has begun to fetch it, and may have taken it."""
        with self._lock:
            if self._own is not None and self._own.exchange == exchange and self._own.is_fetching:
                return False
            self._own = None
            return True

    def close(self, exchange: bytes) -> None:
        """What became of the proposal is known."""
        with self._lock:
            if self._own is not None and self._own.exchange == exchange:
                self._own = None

    # --- Snapshots set aside ------------------------------------------------------------------------------------------

    def snapshot_for(self, exchange: bytes, peer: str) -> Snapshot | None:
        """The snapshot that a peer may fetch under an id; None if it may not, or no more. Rx thread."""
        with self._lock:
            own, pair = self._own, self._pair
            if own is not None and own.exchange == exchange and own.peer == peer:
                own.is_fetching = True
                return own.snapshot
            if pair is not None and pair.propose.exchange == exchange and pair.propose.node == peer:
                return pair.reference
            return None

    # --- Proposals of peers -------------------------------------------------------------------------------------------

    def consider(self, propose: Propose, reference: Snapshot | None) -> Answer:
        """Receive a peer's proposal. Rx thread.

        Args:
            propose: it.
            reference: the own newest snapshot, for a pair.
        """
        with self._lock:
            seen = self._newest(propose.node, propose.exchange)
            if seen is not None:
                if seen.exchange == propose.exchange:
                    return Answer.ACCEPTED if seen.verdict is not Verdict.ABORTED else Answer.STALE
                if propose.exchange < seen.exchange:
                    return Answer.STALE
            answer = self._accept(propose, reference)
            if answer is Answer.ACCEPTED:
                lives = self._seen.setdefault(propose.node, {})
                lives[_life(propose.exchange)] = _Seen(propose.exchange)
                if len(lives) > _MAX_LIVES:
                    del lives[next(iter(lives))]
        if answer is Answer.ACCEPTED:
            self.wake()
        return answer

    def _accept(self, propose: Propose, reference: Snapshot | None) -> Answer:
        notice = Notice(propose, reference if propose.is_pair else None)
        if propose.is_pair:
            # Of two nodes that propose to each other, the one whose name comes first has its way.
            gives_way = self._pairing_with == propose.node and propose.node < self._node
            is_free = self._pair is None and (self._proposing is None or gives_way)
            if reference is None or not is_free:
                return Answer.BUSY
            self._pair = notice
        elif len(self._inbox) >= _MAX_INBOX:
            return Answer.BUSY
        self._inbox.append(notice)
        return Answer.ACCEPTED

    def _newest(self, peer: str, exchange: bytes) -> _Seen | None:
        """The newest proposal of the life of a peer that an id belongs to. Under the lock."""
        return self._seen.get(peer, {}).get(_life(exchange))

    def next_notice(self) -> Notice | None:
        """The next accepted proposal to fetch. Tx thread."""
        with self._lock:
            return self._inbox.popleft() if self._inbox else None

    @property
    def has_notice(self) -> bool:
        """Whether a proposal waits to be fetched."""
        return bool(self._inbox)

    def decide(self, propose: Propose, *, has_all: bool) -> Verdict:
        """Note how the fetch ended. A push is decided by that; a pair is only prepared. Tx thread."""
        with self._lock:
            seen = self._newest(propose.node, propose.exchange)
            if seen is None or seen.exchange != propose.exchange:
                return Verdict.ABORTED  # the peer has given it up meanwhile, and begun another
            if seen.verdict is Verdict.PENDING:
                if not has_all:
                    seen.verdict = Verdict.ABORTED
                elif propose.is_pair:
                    seen.is_prepared = True
                else:
                    seen.verdict = Verdict.TAKEN
            verdict = seen.verdict
        self.decided()
        return verdict

    def settle(self, peer: str, exchange: bytes, *, gives_up: bool) -> Verdict:
        """Tell a proposer what became of its proposal; this is the moment in which a prepared pair is taken. Rx thread.

        Args:
            peer: the proposer.
            exchange: id of the proposal.
            gives_up: the proposer has failed: what is not taken yet is aborted.
        """
        with self._lock:
            seen = self._newest(peer, exchange)
            if seen is None or seen.exchange != exchange:
                return Verdict.ABORTED
            if seen.verdict is Verdict.PENDING:
                if gives_up:
                    seen.verdict = Verdict.ABORTED
                elif seen.is_prepared:
                    seen.verdict = Verdict.TAKEN
            verdict = seen.verdict
        if verdict is not Verdict.PENDING:
            self.wake()
        return verdict

    def abort(self, propose: Propose) -> Verdict:
        """Give a prepared pair up whose proposer is silent, unless it has been settled by now. Tx thread."""
        return self.settle(propose.node, propose.exchange, gives_up=True)

    def verdict(self, propose: Propose) -> Verdict:
        """What was decided of a peer's proposal."""
        with self._lock:
            seen = self._newest(propose.node, propose.exchange)
            return seen.verdict if seen is not None and seen.exchange == propose.exchange else Verdict.ABORTED


def _life(exchange: bytes) -> bytes:
    """The incarnation that an id begins with."""
    return exchange[:INCARNATION_BYTES]
