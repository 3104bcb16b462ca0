"""What a node answers its peers: pulls of its parameters, proposals, and questions what became of them.

Both the Rx thread and the in-memory transport ask a `Service`, so that the rules stand once.

Must not know: sockets, threads, the clock (the time is passed in). Runs in: `answer` in the Rx thread; the attributes
are set by the trainer. Each is one reference that is swapped whole, so that no lock is needed: see the comments.
"""

from __future__ import annotations

import hmac
from typing import Final

from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import (
    MAX_CHUNK_BYTES,
    NEWEST_ROUND,
    TOKEN_BYTES,
    Accepted,
    Busy,
    Message,
    Mismatch,
    NotModified,
    NotReady,
    Offer,
    Past,
    Propose,
    PullRequest,
    Refused,
    Settle,
    Settled,
    Verdict,
)
from dpwa.exchange.proposals import Answer, Proposals
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.snapshot.layout import Layout, Snapshot
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.state import State

__all__ = ["Request", "Service"]

_NO_TOKEN: Final = bytes(TOKEN_BYTES)

_OTHER_RUN: Final = (
    "the request is of another run; all nodes need the same cluster file, and beside nodes that `dpwa launch` has "
    "started, DPWA_RUN_DIR must name their run folder"
)

Request = PullRequest | Propose | Settle

Answered = tuple[Message, Snapshot | None]


class Service:
    """The serving side of a node.

    Args:
        run: what requests must name as their run; others are refused.
        incarnation: random id of this life of the node.
        layout: of this node's model.
        membership: who is there; told in whose name requests come.
        proposals: those of this node and of its peers.
        kind: the kind of exchange of this node's method.
        standing: what the own model is.
    """

    def __init__(
        self,
        *,
        run: str,
        incarnation: bytes,
        layout: Layout,
        membership: Membership,
        proposals: Proposals,
        kind: ExchangeKind,
        standing: Standing,
    ) -> None:
        self.layout = layout
        self.proposals = proposals
        self._run = run.encode()
        self._incarnation = incarnation
        self._membership = membership
        self._kind = kind
        self._standing = standing
        self.keeps_rounds = kind is ExchangeKind.GATHER
        """Whether the snapshot of the last round is kept beside the newest."""
        # Each set by the trainer in one assignment and read once per answer.
        self.token: bytes | None = None
        """Of the segment that snapshots with a slot stand in."""
        self.snapshot: Snapshot | None = None
        self.last_round: Snapshot | None = None
        """The snapshot of the round before the newest one, for a peer that is a step behind."""
        self.joined = False
        """Until a node has joined it takes no proposals: its model is not one to be averaged with."""
        self.first_round: int | None = None
        """The first round that the node takes part in; None while it joins. Whoever took of an earlier one would move
        without the node's moving too."""
        self.pair_rounds: tuple[int, int] | None = None
        """The lowest and highest round of peers whose pairs the method has a use for now."""
        self.step = 0
        self.step_interval_s = 0.0
        self.finished = False
        # Set by `answer`, cleared by the trainer when it publishes. Losing a race here costs one step of age.
        self.wanted = False
        self.is_short = False
        """No buffer was free for the newest snapshot. Set by the trainer; cleared by it, or when one was freed."""
        self.told_finished: set[str] = set()
        """Peers that have answered a request which said that this node has finished. Adding to a set is atomic."""
        self.asked_at_the_end: set[str] = set()
        """Peers that have asked since this node has finished, or in whose names somebody has: a courtesy to them hangs
        on it and nothing else."""

    def answer(self, request: Request, *, now_s: float, may_wait: bool) -> Answered | None:
        """The answer to a request, and the snapshot to send after an `Offer`.

        Args:
            request: a pull, a proposal, or a question what became of one.
            now_s: monotonic time.
            may_wait: whether the caller can ask again after the next publish, or after an exchange has ended.

        Returns:
            None if `may_wait` and there is a better answer to come.
        """
        nonce = request.nonce
        # First, so that one who does not know the run learns nothing: neither its name, nor the nodes, nor the layout.
        if not hmac.compare_digest(request.run.encode(), self._run):
            return Refused(nonce, _OTHER_RUN), None
        finished = not isinstance(request, Propose) and request.finished
        if not self._membership.hint(request.node, finished=finished):
            return Refused(nonce, "the asking node is not in this node's cluster file"), None
        if self.finished:
            self.asked_at_the_end.add(request.node)
        if isinstance(request, Settle):
            return self._settle(request, may_wait=may_wait)
        if request.fingerprint != self.layout.fingerprint:
            return Mismatch(nonce), None
        if isinstance(request, Propose):
            return self._consider(request), None
        if request.exchange_id != NO_EXCHANGE:
            return self._answer_for_exchange(request)
        if request.round != NEWEST_ROUND:
            return self._answer_for_round(request, may_wait=may_wait)
        return self._answer_newest(request, now_s=now_s, may_wait=may_wait)

    @property
    def to_finish_with(self) -> tuple[str, ...]:
        """Peers that train, as far as this node knows, or have not heard from it that it has finished."""
        peers = self._membership.peers
        return tuple(p for p in peers if p not in self.told_finished or not self._membership[p].finished)

    # --- Pulls ----------------------------------------------------------------------------------------------------

    def _answer_newest(self, pull: PullRequest, *, now_s: float, may_wait: bool) -> Answered | None:
        self.wanted = True
        snapshot = self.snapshot
        if snapshot is None:
            # Waiting here could make two nodes that have just begun wait for each other.
            return NotReady(pull.nonce), None
        known = pull.have_incarnation == self._incarnation and pull.have_version == snapshot.version
        if may_wait and self._next_is_better(snapshot, known=known, now_s=now_s):
            return None
        if known:
            return NotModified(pull.nonce, self._incarnation, self.finished), None
        return self._offer(pull, snapshot)

    def _next_is_better(self, snapshot: Snapshot, *, known: bool, now_s: float) -> bool:
        """Whether the asker should wait for the next publish, which its asking brings about at the next step.

        The asker compares what it gets with its own snapshot of the moment it asked. A peer's snapshot from half a
        step before that moment would take half a step off the common progress (times the factor), one from half a
        step later would add it. Giving the snapshot that is nearest in time makes both cancel out; it also makes
        lazy publishing invisible to the peers.
        """
        if known:
            return self.step > snapshot.step
        return now_s - snapshot.taken_s > self.step_interval_s / 2

    def _answer_for_exchange(self, pull: PullRequest) -> Answered:
        snapshot = self.proposals.snapshot_for(pull.exchange_id, pull.node)
        if snapshot is None:
            return Past(pull.nonce, self._incarnation, self.finished), None
        return self._offer(pull, snapshot)

    def _answer_for_round(self, pull: PullRequest, *, may_wait: bool) -> Answered | None:
        newest, last, first_round = self.snapshot, self.last_round, self.first_round
        if newest is None or first_round is None:
            return NotReady(pull.nonce), None
        for snapshot in (newest, last):
            if snapshot is not None and snapshot.state.round == pull.round >= first_round:
                return self._offer(pull, snapshot)
        if self.finished or newest.state.round > pull.round:
            return Past(pull.nonce, self._incarnation, self.finished), None
        return None if may_wait else (NotReady(pull.nonce), None)

    def _offer(self, pull: PullRequest, snapshot: Snapshot) -> Answered:
        token, slot = self.token, snapshot.slot
        is_shared = pull.shared and token is not None and slot is not None
        offer = Offer(
            nonce=pull.nonce,
            incarnation=self._incarnation,
            version=snapshot.version,
            clock=snapshot.state.clock,
            loss=snapshot.state.loss,
            total_bytes=self.layout.total_bytes,
            slot=slot if is_shared and slot is not None else -1,
            token=token if is_shared and token is not None else _NO_TOKEN,
            finished=self.finished,
            mass=snapshot.state.mass,
            round=snapshot.state.round,
            lineage=snapshot.state.lineage,
        )
        return offer, snapshot

    # --- Proposals ------------------------------------------------------------------------------------------------

    def _consider(self, propose: Propose) -> Message:
        if self._kind is not (ExchangeKind.PAIR if propose.is_pair else ExchangeKind.PUSH):
            return Refused(propose.nonce, "this node averages by another method; all nodes need the same cluster file")
        if not self.joined:
            return NotReady(propose.nonce)
        rounds = self.pair_rounds
        # A round of another lineage says nothing; such a pair is accepted, so that both sides find out.
        own, theirs = self._standing.own, State(None, propose.clock, lineage=propose.lineage)
        is_comparable = self._standing.relation(theirs).mixes
        if propose.is_pair and is_comparable and (rounds is None or not rounds[0] <= propose.round <= rounds[1]):
            return Busy(propose.nonce)
        answer = self.proposals.consider(propose, self.snapshot)
        if answer is Answer.BUSY:
            return Busy(propose.nonce)
        if answer is Answer.STALE:
            return Past(propose.nonce, self._incarnation, self.finished)
        return Accepted(propose.nonce, self._incarnation, own.clock, own.lineage)

    def _settle(self, settle: Settle, *, may_wait: bool) -> Answered | None:
        verdict = Verdict.ABORTED
        if settle.exchange_id != NO_EXCHANGE:
            verdict = self.proposals.settle(settle.node, settle.exchange_id, gives_up=settle.gives_up)
            if verdict is Verdict.PENDING and may_wait:
                return None
        return Settled(settle.nonce, self._incarnation, int(verdict), self.finished), None

    def longest_wait_s(self, request: Request, idle_s: float) -> float:
        """How long a request may wait for a better answer.

        A pull of the newest snapshot: two steps, so that a trainer that pauses holds nobody up. What can only be
        answered later: as long as the asker waits at all, or nearly.

        Args:
            request: it.
            idle_s: how long the asker waits for an answer, or less.
        """
        if isinstance(request, PullRequest) and request.round == NEWEST_ROUND:
            return min(idle_s / 2, 2 * self.step_interval_s)
        return idle_s / 2

    def mismatch_body(self) -> bytes:
        """The layout as text, cut to one chunk, for the frame after a `Mismatch`."""
        return self.layout.text.encode()[:MAX_CHUNK_BYTES]
