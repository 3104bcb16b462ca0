"""Proposals under way: those of this node to its peers, and those of its peers to this node.

A push is one message too much to lose and one too much to get twice: it carries mass. So the values of a proposal never
travel unasked. The proposer sets its snapshot aside and tells the peer its id; the peer fetches the snapshot by that id
when it has room. What was never fetched can be withdrawn by the proposer alone; what was fetched was taken or not by
word of the peer, who decides once and remembers. A pair goes one step further: the peer's own snapshot is set aside
under the same id, and the peer takes its half only together with the word to the proposer that it may take the other.

Anybody can claim to be a peer, so nothing is remembered of a life of a peer before that peer itself has given what was
proposed. And an id has bits that cannot be guessed, so that only the two nodes that it concerns can speak of it.

Must not know: the model, methods. Runs in: trainer, Rx and Tx thread; one lock guards everything, and is held
for a few assignments and never while data moves.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from dpwa.exchange.inbox import Inbox, Notice, Seen
from dpwa.exchange.messages import EXCHANGE_ID_BYTES, INCARNATION_BYTES, Propose, Verdict
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.rounding import SentAs

__all__ = ["Answer", "Notice", "Proposals"]

# Lives of one peer whose newest proposals are remembered: of more, no message can be on its way.
_MAX_LIVES = 4

# Proposals in the name of one peer that are remembered because they could not be fetched completely: a copy of such a
# message must not be taken up once its proposer has heard that it is over. A real proposer asks for less than a minute,
# and each one in between costs a fetch that failed.
_MAX_FAILED = 16

# An id is an incarnation, a number within it, and random bits. The number lasts for 136 years of one proposal a second.
_COUNT_BYTES = 4
_RANDOM_BYTES = EXCHANGE_ID_BYTES - INCARNATION_BYTES - _COUNT_BYTES


class Answer(Enum):
    """How a peer's proposal is received."""

    ACCEPTED = "accepted"
    BUSY = "busy"
    STALE = "stale"


@dataclass
class _Own:
    exchange_id: bytes
    peer: str
    snapshot: Snapshot
    sent_as: SentAs | None = None
    is_fetching: bool = False
    is_fetched: bool = False


class _Memory:
    """What one peer's proposals have come to."""

    def __init__(self) -> None:
        # The newest proposal of each life: a peer has one at a time, so older ones are settled for it. By life, so that
        # a late message of a former one does no harm to the present one.
        self.lives: dict[bytes, tuple[bytes, Seen]] = {}
        self.failed: dict[bytes, Seen] = {}
        # Whoever names one of these is that peer. Two, because it may not have heard that the last one was taken.
        self.taken: deque[bytes] = deque(maxlen=2)

    def find(self, exchange_id: bytes) -> Seen | None:
        newest = self.lives.get(_life(exchange_id))
        return newest[1] if newest is not None and newest[0] == exchange_id else self.failed.get(exchange_id)

    def is_late(self, exchange_id: bytes) -> bool:
        newest = self.lives.get(_life(exchange_id))
        return newest is not None and exchange_id < newest[0]

    def keep(self, exchange_id: bytes, seen: Seen) -> None:
        """The peer itself has given this proposal."""
        self.lives[_life(exchange_id)] = (exchange_id, seen)
        if len(self.lives) > _MAX_LIVES:
            del self.lives[next(iter(self.lives))]

    def keep_failed(self, exchange_id: bytes, seen: Seen) -> None:
        """It could not be fetched: perhaps it is real."""
        self.failed[exchange_id] = seen
        if len(self.failed) > _MAX_FAILED:
            del self.failed[next(iter(self.failed))]


class Proposals:
    """The proposals of one node.

    Args:
        node: its name, which breaks the tie of two nodes that propose a pair to each other.
        incarnation: random id of this life of it, which its ids begin with.
    """

    def __init__(self, node: str, incarnation: bytes) -> None:
        self._node = node
        self._incarnation = incarnation
        # Reentrant: a signal's handler may close the node while the trainer is in here.
        self._lock = threading.RLock()
        self._count = 0
        self._own: _Own | None = None
        self._memories: dict[str, _Memory] = {}  # of peers: the service lets no other propose
        self._inbox = Inbox()
        self._proofs: dict[str, bytes] = {}  # the last proposal of this node that each peer has taken
        self._untold: dict[str, bytes] = {}  # pushes that were taken, whose proposers have not heard so
        self._is_taking = False
        # A node takes part in one pair at a time: as the one who proposed it, or as the other.
        self._proposing: bytes | None = None  # the id of that; empty until it has one
        self._pairing_with: str | None = None
        self._pair: Notice | None = None
        self._pair_sent_as: SentAs | None = None
        self.wake: Callable[[], None] = lambda: None
        """Called after something that the thread that makes the exchanges should look at; set by the transport."""
        self.decided: Callable[[], None] = lambda: None
        """Called when a proposer that waits for an answer can have one; set by the transport."""

    def guard(self, monotonic_s: Callable[[], float]) -> None:
        """Strangers can reach this node: from now on, what they take up of it is measured and limited."""
        self._inbox.monotonic_s = monotonic_s

    def unplug(self) -> None:
        """The transport has ended: there is nobody to call, and nothing of it must be kept alive from here."""
        self.wake = self.decided = lambda: None

    def forget(self, peer: str) -> None:
        """A peer is gone for good, with all that it has proposed and taken. Tx thread."""
        with self._lock:
            self._memories.pop(peer, None)
            self._proofs.pop(peer, None)
            self._untold.pop(peer, None)

    def close_all(self) -> None:
        """Let go of the snapshots that were set aside: the node has been closed."""
        with self._lock:
            self._own = self._pair = None
            self._inbox.clear()

    def abandon(self) -> None:
        """Take nothing more of what peers have proposed: to them, it has come to nothing. Trainer."""
        with self._lock:
            self._inbox.clear()

    # --- Pairs exclude each other -------------------------------------------------------------------------------------

    def engage(self, applied: Collection[bytes]) -> bool:
        """Reserve this node for a pair that it will propose; False while it takes part in one. Trainer.

        Two pairs at a time would both move the same snapshot, and could make two nodes change places forever. Who has
        reserved it and opened nothing may do so again.

        Args:
            applied: pairs that are part of the model by now, and of the snapshot that the new one is made with.
        """
        with self._lock:
            if self._pair is not None and self._pair.propose.exchange_id not in applied:
                return False
            if self._proposing not in (None, NO_EXCHANGE) and self._proposing not in applied:
                return False
            self._pair, self._proposing, self._pairing_with = None, NO_EXCHANGE, None
            return True

    def disengage(self, exchange_id: bytes) -> None:
        """A pair has ended, and what it brought, if anything, is part of the newest snapshot: the node is free again.

        Args:
            exchange_id: its id; `NO_EXCHANGE` for one of this node that was never opened.
        """
        with self._lock:
            if self._pair is not None and self._pair.propose.exchange_id == exchange_id:
                self._pair = None
            elif self._proposing == exchange_id:
                self._proposing = self._pairing_with = None

    # --- Proposals of this node ---------------------------------------------------------------------------------------

    def open(self, snapshot: Snapshot) -> bytes:
        """Set a snapshot aside under a new id. Called before a peer is chosen; see `address`."""
        unguessable = secrets.token_bytes(_RANDOM_BYTES)
        with self._lock:
            self._count += 1
            exchange_id = self._incarnation + self._count.to_bytes(_COUNT_BYTES, "big") + unguessable
            self._own = _Own(exchange_id, "", snapshot)
            if self._proposing == NO_EXCHANGE:
                self._proposing = exchange_id
            return exchange_id

    def address(self, exchange_id: bytes, peer: str, *, is_pair: bool) -> bool:
        """Let this peer fetch it, and no other; False if this node has given way to a peer's pair meanwhile."""
        with self._lock:
            if is_pair and self._pair is not None:
                return False
            if self._own is not None and self._own.exchange_id == exchange_id:
                self._own.peer = peer
            self._pairing_with = peer if is_pair else None
            return True

    def bind(self) -> bool:
        """The peer has accepted this node's pair, so that it gives way no more; False if it has meanwhile."""
        with self._lock:
            self._pairing_with = None
            return self._pair is None

    def fetched(self, exchange_id: bytes) -> None:
        """The peer says that it has all of it. Rx thread."""
        with self._lock:
            if self._own is None or self._own.exchange_id != exchange_id:
                return
            self._own.is_fetched = True
        self.wake()

    def is_fetched(self, exchange_id: bytes) -> bool:
        """Whether the peer said that it has all of it."""
        with self._lock:
            return self._own is not None and self._own.exchange_id == exchange_id and self._own.is_fetched

    def withdraw(self, exchange_id: bytes) -> bool:
        """Take the proposal back; False if a peer has begun to fetch it, and may have taken it."""
        with self._lock:
            if self._own is not None and self._own.exchange_id == exchange_id and self._own.is_fetching:
                return False
            self._own = None
            return True

    def close(self, exchange_id: bytes, *, is_taken: bool = False) -> None:
        """What became of the proposal is known.

        Args:
            exchange_id: its id.
            is_taken: the peer has taken it.
        """
        with self._lock:
            if self._own is not None and self._own.exchange_id == exchange_id:
                if is_taken:
                    self._proofs[self._own.peer] = exchange_id
                self._own = None

    def proof_for(self, peer: str) -> bytes:
        """What shows a peer that a proposal is this node's: the last one that it took; `NO_EXCHANGE` for none."""
        with self._lock:
            return self._proofs.get(peer, NO_EXCHANGE)

    # --- Snapshots set aside ------------------------------------------------------------------------------------------

    def snapshot_for(self, exchange_id: bytes, peer: str, sent_as: SentAs) -> Snapshot | None:
        """The snapshot that a peer may fetch under an id; None if it may not, or no more. Rx thread.

        Args:
            exchange_id: the id.
            peer: who asks.
            sent_as: how it will travel.
        """
        with self._lock:
            own, pair = self._own, self._pair
            if own is not None and own.exchange_id == exchange_id and own.peer == peer:
                own.is_fetching, own.sent_as = True, sent_as
                return own.snapshot
            if pair is not None and pair.propose.exchange_id == exchange_id and pair.propose.node == peer:
                self._pair_sent_as = sent_as
                return pair.reference
            return None

    def sent_as(self, exchange_id: bytes) -> SentAs | None:
        """How the peer has fetched this node's snapshot that was set aside under an id; None: it has not. Tx thread."""
        with self._lock:
            if self._own is not None and self._own.exchange_id == exchange_id:
                return self._own.sent_as
            if self._pair is not None and self._pair.propose.exchange_id == exchange_id:
                return self._pair_sent_as
            return None

    # --- Proposals of peers -------------------------------------------------------------------------------------------

    def consider(self, propose: Propose, reference: Snapshot | None) -> Answer:
        """Receive a peer's proposal. Rx thread.

        Args:
            propose: the proposal.
            reference: this node's newest snapshot, for a pair.
        """
        exchange_id = propose.exchange_id
        if _life(exchange_id) != propose.incarnation or exchange_id == NO_EXCHANGE:
            return Answer.STALE
        with self._lock:
            seen = self._find(propose.node, exchange_id)
            if seen is not None:
                return Answer.ACCEPTED if seen.verdict is not Verdict.ABORTED else Answer.STALE
            memory = self._memories.get(propose.node)
            if memory is not None and memory.is_late(exchange_id):
                return Answer.STALE
            is_proven = memory is not None and propose.previous in memory.taken
            answer = self._accept(propose, reference, is_proven=is_proven)
        if answer is Answer.ACCEPTED:
            self.wake()
        return answer

    def _accept(self, propose: Propose, reference: Snapshot | None, *, is_proven: bool) -> Answer:
        notice = Notice(propose, reference if propose.is_pair else None)
        if propose.is_pair:
            # Of two nodes that propose to each other, the one whose name comes first wins the tie.
            gives_way = self._pairing_with == propose.node and propose.node < self._node
            is_free = self._pair is None and (self._proposing is None or gives_way)
            # A pair that waits keeps this node from all others, so that a stranger's must not wait.
            if reference is None or not is_free or not (is_proven or self._inbox.takes_unproven):
                return Answer.BUSY
        if not self._inbox.put(notice, is_proven=is_proven):
            return Answer.BUSY
        if propose.is_pair:
            self._pair, self._pair_sent_as = notice, None
        return Answer.ACCEPTED

    def terms(self, propose: Propose) -> Propose:
        """A proposal as it was accepted, which may be less than what a copy of it says. Rx thread."""
        with self._lock:
            pair = self._pair
            return pair.propose if pair is not None and pair.propose.exchange_id == propose.exchange_id else propose

    def _find(self, peer: str, exchange_id: bytes) -> Seen | None:
        """What became of a peer's proposal so far. Under the lock."""
        seen = self._inbox.find(peer, exchange_id)
        if seen is None and peer in self._memories:
            seen = self._memories[peer].find(exchange_id)
        return seen

    def next_notice(self) -> Notice | None:
        """The next accepted proposal to fetch; `decide` or `deny` must follow, and `handed_over`. Tx thread."""
        with self._lock:
            notice = self._inbox.next()
            self._is_taking = notice is not None
            return notice

    def handed_over(self) -> None:
        """What was fetched, if it was taken, is where the trainer will find it. Tx thread."""
        with self._lock:
            self._is_taking = False

    @property
    def has_notice(self) -> bool:
        """Whether a proposal may be fetched now."""
        with self._lock:
            return self._inbox.has_next

    @property
    def is_waiting(self) -> bool:
        """Whether an accepted proposal is still to be fetched, is being fetched, or handed over to the trainer."""
        with self._lock:
            return self._is_taking or not self._inbox.is_empty

    @property
    def is_paired(self) -> bool:
        """Whether this node takes part in a pair that a peer has begun, or a snapshot lacks what it brought."""
        with self._lock:
            return self._pair is not None

    @property
    def untold(self) -> list[str]:
        """The peers whose push was taken, and that have not asked yet what became of it."""
        with self._lock:
            return list(self._untold)

    @property
    def deadline_s(self) -> float | None:
        """When a proposal may be fetched that must wait because strangers have cost too much; None if there is none."""
        with self._lock:
            return self._inbox.deadline_s

    def decide(self, propose: Propose, *, has_all: bool) -> Verdict:
        """Note how the fetch ended. A push is decided by that; a pair is only prepared. Tx thread."""
        peer, exchange_id = propose.node, propose.exchange_id
        with self._lock:
            seen = self._find(peer, exchange_id)
            if seen is None:
                return Verdict.ABORTED  # the peer has given it up meanwhile, and begun another
            if seen.verdict is Verdict.PENDING:
                if not has_all:
                    seen.verdict = Verdict.ABORTED
                elif propose.is_pair:
                    seen.is_prepared = True
                else:
                    seen.verdict = Verdict.TAKEN
                    self._untold[peer] = exchange_id
            memory = self._memories.setdefault(peer, _Memory())
            if memory.find(exchange_id) is None:
                (memory.keep if has_all else memory.keep_failed)(exchange_id, seen)
            self._inbox.end(peer, exchange_id, is_real=has_all)
            verdict = self._note_taken(memory, exchange_id, seen)
        self.decided()
        return verdict

    def deny(self, propose: Propose) -> None:
        """The peer itself knows of no such proposal: it has taken it back, or a stranger has made it up. Tx thread.

        Nothing need be remembered: an id that its proposer does not serve is never served again.
        """
        with self._lock:
            seen = self._find(propose.node, propose.exchange_id)
            if seen is not None and seen.verdict is Verdict.PENDING:
                seen.verdict = Verdict.ABORTED
            self._inbox.end(propose.node, propose.exchange_id, is_real=False)
        self.decided()

    def settle(self, peer: str, exchange_id: bytes, *, gives_up: bool) -> Verdict:
        """Tell a proposer what became of its proposal; this is the moment in which a prepared pair is taken. Rx thread.

        Args:
            peer: the proposer.
            exchange_id: id of the proposal.
            gives_up: the proposer has failed: what is not taken yet is aborted.
        """
        with self._lock:
            if self._untold.get(peer) == exchange_id:
                del self._untold[peer]
            seen = self._find(peer, exchange_id)
            if seen is None:
                return Verdict.ABORTED
            if seen.verdict is Verdict.PENDING:
                if gives_up:
                    seen.verdict = Verdict.ABORTED
                elif seen.is_prepared:
                    seen.verdict = Verdict.TAKEN
            verdict = self._note_taken(self._memories.get(peer), exchange_id, seen)
        if verdict is not Verdict.PENDING:
            self.wake()
        return verdict

    def _note_taken(self, memory: _Memory | None, exchange_id: bytes, seen: Seen) -> Verdict:
        """Its proposer will name a proposal that was taken to show who it is. Under the lock."""
        newest = memory.lives.get(_life(exchange_id)) if memory is not None else None
        is_newest = newest is not None and newest[0] == exchange_id
        if memory is not None and is_newest and seen.verdict is Verdict.TAKEN and exchange_id not in memory.taken:
            memory.taken.append(exchange_id)
        return seen.verdict

    def abort(self, propose: Propose) -> Verdict:
        """Give a prepared pair up whose proposer is silent, unless it has been settled by now. Tx thread."""
        return self.settle(propose.node, propose.exchange_id, gives_up=True)

    def verdict(self, propose: Propose) -> Verdict:
        """What was decided of a peer's proposal."""
        with self._lock:
            seen = self._find(propose.node, propose.exchange_id)
            return seen.verdict if seen is not None else Verdict.ABORTED


def _life(exchange_id: bytes) -> bytes:
    """The incarnation that an id begins with."""
    return exchange_id[:INCARNATION_BYTES]
