"""Fetching a peer's snapshot: the newest one, that of a round, or the one that was set aside for an exchange.

It does not choose the peer, nor what becomes of the values. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpwa.errors import ModelMismatch, PeerTimeout, RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.guard import Guard, Verdict
from dpwa.exchange.history import History
from dpwa.exchange.link_codecs import LinkCodecs, in_words
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import (
    INCARNATION_BYTES,
    NEWEST_ROUND,
    Accepted,
    Busy,
    Message,
    Mismatch,
    NotModified,
    NotReady,
    Offer,
    Past,
    PullRequest,
    Refused,
    Settled,
)
from dpwa.exchange.slices import Slice
from dpwa.methods.exchange import NO_EXCHANGE, ExchangeKind, ExchangeResult, Outcome
from dpwa.snapshot.layout import Layout, Snapshot
from dpwa.snapshot.lineage import Relation, Standing, reason_apart
from dpwa.snapshot.staging import Staging, first_not_finite
from dpwa.snapshot.state import Codec, Mark, MergeStage, State

__all__ = ["NOTHING_YET", "Fetcher", "Identity", "kept_apart", "nothing_came"]

_logger = logging.getLogger("dpwa")

NOTHING_YET = (bytes(INCARNATION_BYTES), 0)

# A peer's clock or round is believed up to this many times this node's, and up to this much in any case: a thousand
# updates a second for eleven days. Averaging with more would ruin this node's clock for good.
_MOST_TIMES = 1000.0
_MOST_AT_ONCE = 1e9

_OUTCOME_OF_ANSWER: dict[type[Message], Outcome] = {
    Busy: Outcome.BUSY,
    NotReady: Outcome.NOT_READY,
    NotModified: Outcome.NOT_MODIFIED,
    Refused: Outcome.REFUSED,
}


@dataclass(frozen=True)
class Identity:
    """What a node says of itself in every request.

    Attributes:
        run: what requests name as their run.
        node: its name.
        incarnation: random id of this life of the node.
    """

    run: str
    node: str
    incarnation: bytes


class Fetcher:
    """Fetches for one node, one snapshot at a time.

    Args:
        identity: of the node.
        layout: of what is exchanged.
        membership: notes what peers say of themselves.
        link_codecs: chooses the codec, and how much a slow link bears.
        bears_parts: whether a part of a model can be blended.
        flow_control: notes in which life a peer has answered.
        standing: what this node's model is.
        guard: what of a peer's model and words is believed.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        layout: Layout,
        membership: Membership,
        link_codecs: LinkCodecs,
        bears_parts: bool,
        flow_control: FlowControl,
        standing: Standing,
        guard: Guard,
        monotonic_s: Callable[[], float],
    ) -> None:
        self.identity = identity
        self.layout = layout
        self._membership = membership
        self._link_codecs = link_codecs
        self._bears_parts = bears_parts
        self._warned: set[tuple[str, bool]] = set()
        self._flow_control = flow_control
        self._standing = standing
        self.guard = guard
        self._monotonic_s = monotonic_s
        self._ended_s: float | None = None
        self.spent: Callable[[int, float], None] = _spend_nothing
        """Told of each transfer over the network: bytes, and the share of the parameters that it brought; 0: no whole
        one."""
        self.newest: Callable[[], Snapshot | None] = _none
        """This node's newest snapshot, which values without a reference are compared with."""
        self.history = History()
        # A random start, so that a restarted node cannot take an answer to its former life for one to its own.
        self._nonce = secrets.randbits(32)

    def forget(self, peer: str) -> None:
        """A peer is gone for good."""
        self.history.forget(peer)
        self._link_codecs.forget(peer)
        self.guard.forget(peer)
        self._warned = {told for told in self._warned if told[0] != peer}

    def next_nonce(self) -> int:
        """A number that no answer under way has."""
        self._nonce += 1
        return self._nonce

    def fitting_fraction(self, peer: str, fraction: float) -> float:
        """How much to pull where so much is wanted: less if the link to the peer is too slow for it."""
        return min(fraction, self._link_codecs.fitting_share(peer)) if self._bears_parts else fraction

    def expected_s(self, peer: str, planned_s: float) -> float:
        """How long a whole model from a peer will take in the codec that suits the link; 0 while nothing is known."""
        return self._link_codecs.expected_s(peer, planned_s)

    def fetch(
        self,
        peer: str,
        begun: ExchangeResult,
        client: Client,
        staging: Staging,
        part: Slice,
        *,
        have: tuple[bytes, int] = NOTHING_YET,
        round_: int = NEWEST_ROUND,
        within_s: float | None = None,
        planned_s: float = math.inf,
        shrinks: bool = False,
        as_it_is: bool = False,
    ) -> ExchangeResult:
        """Fetch a snapshot, or part of it, into a staging.

        Args:
            peer: whose.
            begun: the exchange that it is for, and this node's snapshot to compare with: that of the request, or the
                reference of what a peer has begun. An `exchange_id` means the snapshot set aside for it.
            client: the way there.
            staging: where to.
            part: which chunks.
            have: incarnation and version that need not be sent again.
            round_: of which the snapshot is wanted; default: the newest.
            within_s: deadline, if shorter than the config's.
            planned_s: how long it should take at most, if that is less than the config says.
            shrinks: the part is no larger than `fitting_fraction` says, now and the next time.
            as_it_is: the values themselves are wanted, to the last bit, whatever codec and blend are usual.

        Returns:
            `BLENDED`, if values have come and are finite: then they are in the staging, and may be blended as far as
            `relation` says. `REJECTED` or `OWN_NOT_FINITE`, if they are not finite. Else how an answer without a
            snapshot ends the exchange; `ABORTED` if the peer no longer has what was asked for.

        Raises:
            PeerTimeout, PeerUnreachable, NodeClosed: from the client.
            RemoteProtocolError: from the client, or the offer is of a life that is over or of an age that cannot be.
            ModelMismatch: the peer trains another model.
        """
        reference = begun.reference if begun.request is None else begun.request.reference
        if as_it_is:
            reference = None
        # The peer counts on what it gives in a proposal or a round: it must know how it travels, so not by two ways.
        is_counted_on = begun.exchange_id != NO_EXCHANGE or round_ != NEWEST_ROUND
        is_raw = as_it_is or (is_counted_on and client.can_share(peer))
        if self._ended_s is not None and not client.can_share(peer):
            self._link_codecs.paused(self._monotonic_s() - self._ended_s)
        codec = Codec.RAW if is_raw else self._link_codecs.choose(peer, part.share, planned_s)
        first, count = next(iter(part.requests()))
        request = PullRequest(
            nonce=self.next_nonce(),
            run=self.identity.run,
            node=self.identity.node,
            incarnation=self.identity.incarnation,
            fingerprint=self.layout.fingerprint,
            have_incarnation=have[0],
            have_version=have[1],
            codec=codec,
            chunk_bytes=part.chunk_bytes,
            first=first,
            count=count,
            shared=client.can_share(peer),
            finished=begun.request is not None and begun.request.finished,
            exchange_id=begun.exchange_id,
            round=round_,
        )
        compared = reference if reference is not None else self.newest()
        staging.reference = compared.memory if compared is not None else None
        try:
            pulled = client.pull(peer, request, staging, part, within_s)
        except PeerTimeout as error:
            self.spent(error.received_bytes, 0.0)
            if error.received_bytes > 0 and error.transfer_s > 0:
                shrinks = shrinks and self._bears_parts
                raise self._broken_off(
                    error, codec, part, exact=is_raw, shrinks=shrinks, planned_s=planned_s
                ) from error
            raise
        finally:
            is_finite = staging.finish() or self.guard.is_off
            self._ended_s = self._monotonic_s()
        if not pulled.is_shared:
            travelled_as = pulled.codec or Codec.RAW
            self._link_codecs.measured(peer, pulled.received_bytes, pulled.transfer_s, travelled_as)
            self.spent(pulled.received_bytes, part.share if isinstance(pulled.answer, Offer) else 0.0)
        offer = pulled.answer
        self.note(peer, offer)
        if isinstance(offer, Mismatch):
            difference = self.layout.first_difference(pulled.peer_layout)
            raise ModelMismatch(peer, f"trains another model; {difference}. All nodes must build the same model")
        if not isinstance(offer, Offer):
            return nothing_came(begun, offer)
        self.refuse_impossible(peer, offer)
        outcome, reason = (Outcome.BLENDED, "") if is_finite else self._not_finite(peer, staging, reference)
        said = State(offer.loss, offer.clock, offer.mass, offer.round, offer.lineage)
        result = replace(
            begun,
            outcome=outcome,
            version=offer.version,
            incarnation=offer.incarnation,
            checksum=staging.checksum,
            peer_state=said,
            said=said,
            reference=reference,
            staging=staging if is_finite else None,
            share=part.share,
            merged=1,
            relation=self._standing.relation(said, None if reference is None else reference.state),
            mark=_mark_of(offer),
            received_bytes=pulled.received_bytes,
            is_shared=pulled.is_shared,
            codec=pulled.codec or Codec.RAW,
            reason=reason,
            note=pulled.note,
        )
        return self._guarded(peer, result, staging, is_whole=as_it_is or begun.kind is not ExchangeKind.PULL)

    def _guarded(self, peer: str, result: ExchangeResult, staging: Staging, *, is_whole: bool) -> ExchangeResult:
        """The result with what is believed of it; `REJECTED` if that is nothing."""
        said, own = result.said, self._standing.own if result.reference is None else result.reference.state
        if not self.guard.compares or result.outcome is not Outcome.BLENDED or said.has_diverged or own.has_diverged:
            return result
        verdict, believed = Verdict(), said
        if not result.relation.mixes or len(self._membership.peers) == 1:  # between two nobody can say who is right
            if result.relation is not Relation.YOUNGER:
                verdict = Verdict(reason=self.guard.impossible(peer, staging.apart))
        else:
            # A part of what others count on would break what the method conserves.
            verdict = self.guard.judge(peer, staging.apart, is_whole=is_whole)
            if result.request is None or not result.request.joining:
                believed = self.guard.believed(peer, said, own)
        if verdict.reason:
            return replace(result, outcome=Outcome.REJECTED, staging=None, reason=verdict.reason)
        return replace(result, peer_state=believed, believed_share=verdict.share)

    def _broken_off(
        self, error: PeerTimeout, codec: Codec, part: Slice, *, exact: bool, shrinks: bool, planned_s: float
    ) -> PeerTimeout:
        """Learn from a transfer that the timeout has ended; the same error with numbers in it.

        The warning is given here and not with the exchange's end: the ends of pushes and rounds are no failures.
        """
        peer, came_bytes, transfer_s = error.peer, error.received_bytes, error.transfer_s
        self._link_codecs.broke_off(peer, came_bytes, transfer_s)
        wanted_bytes = max(self._link_codecs.wanted_bytes(codec, part.share), came_bytes)
        speed = came_bytes / transfer_s
        text = f"{in_words(came_bytes)} of {in_words(wanted_bytes)} came in {transfer_s:.1f} s ({in_words(speed)}/s)"
        advice, is_final = self._link_codecs.advice(peer, part.share, exact=exact, shrinks=shrinks, planned_s=planned_s)
        if (peer, is_final) not in self._warned:
            self._warned.add((peer, is_final))
            _logger.warning("node %s: the link to peer %s is slow: %s; %s", self.identity.node, peer, text, advice)
        told = PeerTimeout(peer, text, received_bytes=came_bytes, transfer_s=transfer_s)
        told.late_s = error.late_s
        return told

    def _not_finite(self, peer: str, staging: Staging, reference: Snapshot | None) -> tuple[Outcome, str]:
        """Whose values are not finite, this node's or those that came from a peer; outcome and reason."""
        own = first_not_finite(self.layout, reference.memory) if reference is not None else None
        if own is not None:
            reason = (
                f"its own model holds NaN or infinite values, first in {own}; it can blend nothing until that is fixed"
            )
            return Outcome.OWN_NOT_FINITE, reason
        tensor = staging.first_not_finite()
        where = f", first in {tensor}" if tensor is not None else ""
        return Outcome.REJECTED, f"the snapshot of peer {peer} holds NaN or infinite values{where}"

    def refuse_impossible(self, peer: str, answer: Message) -> None:
        """Check a legal answer for what no honest peer says.

        Raises:
            RemoteProtocolError: its clock or round is beyond reason, or its sender's life is over.
        """
        if not isinstance(answer, Offer | Accepted):
            return
        own = self._standing.own
        claims = [("clock", answer.clock, own.clock)]
        if isinstance(answer, Offer):
            claims.append(("round", answer.round, own.round))
        for word, theirs, mine in claims:
            most = _MOST_TIMES * mine + _MOST_AT_ONCE
            if theirs > most:
                raise RemoteProtocolError(
                    peer, f"claims a {word} of {theirs:g}; with {mine:g} here, at most {most:g} is believed"
                )
        problem = self.history.came(peer, answer.incarnation)
        if problem is not None:
            raise RemoteProtocolError(peer, f"sent {problem}")

    def note(self, peer: str, answer: Message) -> None:
        """Remember what an answer says of its sender."""
        if isinstance(answer, Offer | NotModified | Past | Settled):
            offer = answer if isinstance(answer, Offer) else None
            self._membership.heard(
                peer,
                answer.incarnation,
                finished=answer.finished,
                step=answer.step if isinstance(answer, Offer | NotModified | Settled) else 0,
                loss=None if offer is None else offer.loss,
                origin=None if offer is None else offer.origin,
                mark=_mark_of(answer) if isinstance(answer, Offer | Settled) else None,
            )
            self._flow_control.answered_as(peer, answer.incarnation)


def _none() -> None:
    """Nothing to compare with."""


def _spend_nothing(received_bytes: int, share: float) -> None:
    """Nobody counts."""


def _mark_of(answer: Offer | Settled) -> Mark:
    return Mark(MergeStage(answer.stage), answer.models, answer.merge_id)


def nothing_came(begun: ExchangeResult, answer: Message) -> ExchangeResult:
    """The end of an exchange whose peer answers that it gives nothing, or takes nothing."""
    outcome = _OUTCOME_OF_ANSWER.get(type(answer), Outcome.ABORTED)
    reason = f"peer {begun.peer} refused: {answer.reason}" if isinstance(answer, Refused) else begun.reason
    return replace(begun, outcome=outcome, reason=reason)


def kept_apart(peer: str, result: ExchangeResult, own_state: State) -> ExchangeResult:
    """The end of a push or pair whose two models are not averaged, whatever came."""
    reason = reason_apart(peer, result.relation, own_state, result.peer_state)
    elder = peer if result.relation is Relation.ELDER else None
    return replace(result, outcome=Outcome.ABORTED, reason=reason, elder=elder, staging=None)
