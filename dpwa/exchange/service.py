"""What a node answers its peers: pulls of its parameters, proposals, and questions what became of them.

Both the Rx thread and the in-memory transport ask a `Service`, so that the rules stand once.

Must not know: the clock (the time is passed in). Runs in: `answer` in the Rx thread, which takes no lock: it reads one
frozen `Serving` per answer. `tell` swaps that whole, in the trainer's thread or the copy waiter.
"""

from __future__ import annotations

import hmac
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

from dpwa.exchange.leasing import Leasing
from dpwa.exchange.members import Members
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import (
    MAX_CHUNK_BYTES,
    NEWEST_ROUND,
    TOKEN_BYTES,
    UNKNOWN_ORIGIN,
    Accepted,
    Busy,
    Lease,
    Meet,
    Message,
    Met,
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
from dpwa.exchange.round_codec import RoundCodec
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.snapshot.layout import Layout, Snapshot
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.rounding import SentAs
from dpwa.snapshot.state import UNMARKED, Codec, Mark, MergeStage, State

__all__ = ["Request", "Service", "Serving"]

_NO_TOKEN: Final = bytes(TOKEN_BYTES)

# An asker that usually gets its answer at once gives up after 0.4 of its timeout: see `Patience`.
_SHARE_OF_WAIT: Final = 0.3

_OTHER_RUN: Final = "the request is of another run; all nodes need the same cluster file"

Request = PullRequest | Propose | Settle | Meet | Lease

Answered = tuple[Message, Snapshot | None]


class Serving(NamedTuple):
    """What the trainer has to say to the peers at this moment. A tuple, because `replace` takes three times as long.

    Attributes:
        snapshot: the newest; None before the first.
        last_round: the snapshot of the round before the newest one, for a peer that is a step behind; None without
            rounds.
        token: of the segment that snapshots with a slot stand in; None without one.
        first_round: the first round that the node takes part in, as whoever took of an earlier one would move without
            the node's moving too. None while it joins: it takes no proposals then, because its model is not one to be
            averaged with.
        pair_rounds: the lowest and highest round of peers whose pairs the method has a use for now; None: no pairs.
        step: training steps made.
        step_interval_s: mean time of a training step.
        finished: the training has ended.
        is_short: no buffer was free for the newest snapshot.
        merges: the node takes part in the merge at the end.
        fetched: final models of peers that it has fetched to merge them.
    """

    snapshot: Snapshot | None = None
    last_round: Snapshot | None = None
    token: bytes | None = None
    first_round: int | None = None
    pair_rounds: tuple[int, int] | None = None
    step: int = 0
    step_interval_s: float = 0.0
    finished: bool = False
    is_short: bool = False
    merges: bool = False
    fetched: int = 0

    def mark_of(self, snapshot: Snapshot | None) -> Mark:
        """What a snapshot is to the merge; of the newest: how far the node is on the way to it."""
        mark = UNMARKED if snapshot is None else snapshot.mark
        if mark.stage is MergeStage.FINAL:
            return mark._replace(models=self.fetched)
        return Mark(MergeStage.COMING) if self.merges and mark.stage is MergeStage.APART else mark


class Service:
    """The serving side of a node.

    Args:
        run: what requests must name as their run; others are refused.
        incarnation: random id of this life of the node.
        layout: of this node's model.
        membership: who is there; notes in whose name requests come.
        proposals: those of this node and of its peers.
        kind: the kind of exchange of this node's method.
        standing: what this node's model is.
        leasing: shares out the blocks of data.
        round_codec: chooses how snapshots of rounds travel.
        members: of a cluster that nodes may join; None: of no other than the file's.
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
        leasing: Leasing,
        round_codec: RoundCodec,
        members: Members | None = None,
    ) -> None:
        self._leasing = leasing
        self.round_codec = round_codec
        self.members = members
        self.layout = layout
        self.proposals = proposals
        self._run = run.encode()
        self._incarnation = incarnation
        self._membership = membership
        self._kind = kind
        self._standing = standing
        self.keeps_rounds = kind is ExchangeKind.GATHER
        """Whether the snapshot of the last round is kept beside the newest."""
        self._rng = random.Random(incarnation)  # noqa: S311  (no secret)
        self.serving = Serving()
        self._telling = threading.RLock()  # reentrant: a signal's handler may close the node in the middle of `tell`
        self._is_closed = False
        self.takes: Callable[[str], float | None] = _takes_all
        """See `Intake.takes`."""
        self.fitting: Callable[[int, float], int] = _all_pieces
        """See `Rotation.fitting`."""
        self.origin = UNKNOWN_ORIGIN
        """Of this node's model, as snapshots say it; set by the trainer in one assignment."""
        self.gives_from_version = 0
        """Snapshots before this one are worth nothing to others: the node had not begun to train, and waited for a
        trained model. Set by the trainer in one assignment."""
        self.wanted = False
        """Somebody has asked for the newest snapshot. Set by `answer`, cleared by the trainer when it publishes: losing
        a race here costs one step of age."""
        self.asked_at_the_end: dict[str, float] = {}
        """Peers that have asked since this node has finished, or in whose names somebody has, each with the monotonic
        time of the latest: a courtesy to them hangs on it and nothing else. Setting an item is atomic."""
        self.told_at_the_end: set[str] = set()
        """Those whose answer said that this node has finished. Adding is atomic."""

    def tell(self, **changes: Any) -> None:
        """Change what is said from now on. Trainer, and copy waiter for snapshots.

        Args:
            changes: attributes of `Serving`.
        """
        with self._telling:
            self.serving = self.serving._replace(**changes)
            if self._is_closed:  # perhaps within the line before
                self.serving = self.serving._replace(snapshot=None, last_round=None)

    def close(self) -> None:
        """Let go of the snapshots, for good."""
        self._is_closed = True
        self.tell()

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
        if isinstance(request, Meet | Lease):
            return self._answer_beside(request), None
        is_peer = self._note_asker(request, now_s)
        if not is_peer and (not self._membership.is_open or isinstance(request, Propose)):
            return self._refused_stranger(nonce), None
        if isinstance(request, Settle):
            return self._settle(request, may_wait=may_wait)
        if request.fingerprint != self.layout.fingerprint:
            return Mismatch(nonce), None
        if isinstance(request, Propose):
            return self._consider(request), None
        if request.exchange_id != NO_EXCHANGE:
            return self._answer_for_exchange(request)
        if request.round != NEWEST_ROUND:
            return self._answer_for_round(request, is_peer=is_peer, may_wait=may_wait)
        return self._answer_newest(request, now_s=now_s, may_wait=may_wait)

    def _note_asker(self, request: PullRequest | Propose | Settle, now_s: float) -> bool:
        """Note what a request says of its sender; whether that is a peer."""
        # What belongs to an exchange was said when that began, and perhaps before its sender had finished.
        finished: bool | None = None
        if not isinstance(request, Propose) and request.exchange_id == NO_EXCHANGE:
            finished = request.finished
        is_peer = self._membership.hint(request.node, finished=finished)
        if self.serving.finished and is_peer:
            self.asked_at_the_end[request.node] = now_s
            if not isinstance(request, Propose):  # whose answer does not say so
                self.told_at_the_end.add(request.node)
        return is_peer

    def _refused_stranger(self, nonce: int) -> Message:
        """The answer to somebody who is no peer; one who has just introduced itself may be one in a moment."""
        if self._membership.is_open:
            return Busy(nonce)
        return Refused(nonce, "the asking node is not in this node's cluster file")

    def _answer_beside(self, request: Meet | Lease) -> Message:
        """The answer to what is no part of an exchange."""
        if isinstance(request, Lease):
            return self._leasing.answer(request, is_peer=request.node in self._membership.peers)
        return self._meet(request)

    def _meet(self, meet: Meet) -> Message:
        """What is told to a member, or to somebody who would be one."""
        if self.members is None:
            return Refused(meet.nonce, "this cluster has no other nodes than those of its file, which has no `join`")
        if meet.fingerprint != self.layout.fingerprint:
            return Mismatch(meet.nonce)
        answer = Met(meet.nonce, self._incarnation, self.members.answer(meet.node, meet.claims, self._rng))
        if self.members.has_knocks:
            self.proposals.wake()
        return answer

    # --- Pulls ----------------------------------------------------------------------------------------------------

    def _answer_newest(self, pull: PullRequest, *, now_s: float, may_wait: bool) -> Answered | None:
        self.wanted = True
        serving = self.serving
        snapshot = serving.snapshot
        if snapshot is None or snapshot.version < self.gives_from_version:
            # Waiting here could make two nodes that have just begun wait for each other.
            return NotReady(pull.nonce), None
        known = pull.have_incarnation == self._incarnation and pull.have_version == snapshot.version
        is_last = snapshot.mark.stage is not MergeStage.APART
        if may_wait and not is_last and _next_is_better(serving, snapshot, known=known, now_s=now_s):
            return None
        if known:
            return NotModified(pull.nonce, self._incarnation, serving.finished, serving.step), None
        return self._offer(pull, snapshot, serving)

    def _answer_for_exchange(self, pull: PullRequest) -> Answered:
        serving = self.serving
        sent_as = SentAs(Codec.known(pull.codec), pull.chunk_bytes)
        snapshot = self.proposals.snapshot_for(pull.exchange_id, pull.node, sent_as)
        if snapshot is None:
            return Past(pull.nonce, self._incarnation, serving.finished), None
        return self._offer(pull, snapshot, serving)

    def _answer_for_round(self, pull: PullRequest, *, is_peer: bool, may_wait: bool) -> Answered | None:
        serving = self.serving
        newest, first_round = serving.snapshot, serving.first_round
        if is_peer:  # others, of whom an open cluster may hear any number, have no say
            self.round_codec.wish(pull.node, pull.round, pull.codec)
        if newest is None or first_round is None or newest.version < self.gives_from_version:
            return NotReady(pull.nonce), None
        for snapshot in (newest, serving.last_round):
            if snapshot is None or snapshot.version < self.gives_from_version:
                continue
            if snapshot.state.round == pull.round >= first_round:
                return self._offer(pull, snapshot, serving)
        if serving.finished or newest.state.round > pull.round:
            return Past(pull.nonce, self._incarnation, serving.finished), None
        return None if may_wait else (NotReady(pull.nonce), None)

    def _offer(self, pull: PullRequest, snapshot: Snapshot, serving: Serving) -> Answered:
        token, slot = serving.token, snapshot.slot
        is_shared = pull.shared and token is not None and slot is not None and self._may_share(pull, snapshot)
        stage, models, merge_id = serving.mark_of(snapshot)
        offer = Offer(
            nonce=pull.nonce,
            incarnation=self._incarnation,
            version=snapshot.version,
            clock=snapshot.state.clock,
            loss=snapshot.state.loss,
            step=snapshot.step,
            origin=self.origin,
            total_bytes=self.layout.total_bytes,
            slot=slot if is_shared and slot is not None else -1,
            token=token if is_shared and token is not None else _NO_TOKEN,
            finished=serving.finished,
            mass=snapshot.state.mass,
            round=snapshot.state.round,
            lineage=snapshot.state.lineage,
            stage=int(stage),
            models=models,
            merge_id=merge_id,
        )
        return offer, snapshot

    def codec_for(self, pull: PullRequest, snapshot: Snapshot) -> Codec:
        """How the chunks of a snapshot travel to whoever has asked so: as wished, but to all alike if it is of a round.

        Where the codec cannot hold a value of a chunk, that chunk travels as it is.
        """
        is_of_round = pull.round != NEWEST_ROUND and pull.exchange_id == NO_EXCHANGE
        return snapshot.codec if is_of_round else Codec.known(pull.codec)

    def _may_share(self, pull: PullRequest, snapshot: Snapshot) -> bool:
        """Whether it may be read from memory, which does not round: not where this node counts on what it has given."""
        is_counted_on = pull.exchange_id != NO_EXCHANGE or pull.round != NEWEST_ROUND
        return not is_counted_on or self.codec_for(pull, snapshot) is Codec.RAW

    # --- Proposals ------------------------------------------------------------------------------------------------

    def _consider(self, propose: Propose) -> Message:
        if self._kind is not (ExchangeKind.PAIR if propose.is_pair else ExchangeKind.PUSH):
            return Refused(propose.nonce, "this node averages by another method; all nodes need the same cluster file")
        serving = self.serving
        snapshot = serving.snapshot
        if serving.first_round is None:
            return NotReady(propose.nonce)
        if propose.is_pair and snapshot is not None and snapshot.version < self.gives_from_version:
            self.wanted = True
            return NotReady(propose.nonce)
        rounds = serving.pair_rounds
        # A round of another lineage says nothing; such a pair is accepted, so that both sides find out.
        own, theirs = self._standing.own, State(None, propose.clock, lineage=propose.lineage)
        is_comparable = self._standing.relation(theirs).mixes
        if propose.is_pair and is_comparable and (rounds is None or not rounds[0] <= propose.round <= rounds[1]):
            return Busy(propose.nonce)
        share = self.takes(propose.node)
        if share is None:
            return Busy(propose.nonce)
        pieces = self.fitting(propose.pieces, share) if propose.is_pair else 0
        terms = replace(propose, pieces=pieces or propose.pieces)
        answer = self.proposals.consider(terms, snapshot)
        if answer is Answer.BUSY:
            return Busy(propose.nonce)
        if answer is Answer.STALE:
            return Past(propose.nonce, self._incarnation, serving.finished)
        pieces = self.proposals.terms(terms).pieces  # as they were said the first time
        agreed = pieces if pieces != propose.pieces else 0
        return Accepted(propose.nonce, self._incarnation, own.clock, own.lineage, agreed)

    def _settle(self, settle: Settle, *, may_wait: bool) -> Answered | None:
        verdict = Verdict.ABORTED
        if settle.exchange_id != NO_EXCHANGE:
            verdict = self.proposals.settle(settle.node, settle.exchange_id, gives_up=settle.gives_up)
            if verdict is Verdict.PENDING and may_wait:
                return None
        serving = self.serving
        stage, models, merge_id = serving.mark_of(serving.snapshot)
        settled = Settled(
            settle.nonce,
            self._incarnation,
            int(verdict),
            serving.finished,
            serving.step,
            int(stage),
            models,
            merge_id,
        )
        return settled, None

    def longest_wait_s(self, request: Request, idle_s: float) -> float:
        """How long a request may wait for a better answer, of an asker that itself waits `idle_s` or more.

        A pull of the newest snapshot: two steps, so that a trainer that pauses holds nobody up. What can only be
        answered later: as long as the asker waits at all, or nearly.
        """
        if isinstance(request, PullRequest) and request.round == NEWEST_ROUND:
            return min(_SHARE_OF_WAIT * idle_s, 2 * self.serving.step_interval_s)
        return idle_s / 2

    def mismatch_body(self) -> bytes:
        """The layout as text, cut to one chunk, for the frame after a `Mismatch`."""
        return self.layout.text.encode()[:MAX_CHUNK_BYTES]


def _takes_all(peer: str) -> float:  # noqa: ARG001
    return 1.0


def _all_pieces(pieces: int, share: float) -> int:  # noqa: ARG001
    return 0


def _next_is_better(serving: Serving, snapshot: Snapshot, *, known: bool, now_s: float) -> bool:
    """Whether the asker should wait for the next publish, which its asking brings about at the next step.

    The asker compares what it gets with its own snapshot of the moment it asked. A peer's snapshot from half a step
    before that moment would take half a step off the common progress (times the factor), one from half a step later
    would add it. Giving the snapshot that is nearest in time makes both cancel out; it also makes lazy publishing
    invisible to the peers.
    """
    if known:
        return serving.step > snapshot.step
    return now_s - snapshot.taken_s > serving.step_interval_s / 2
