"""A pull: fetch the newest snapshot of one peer, and weigh it.

It does not choose the peer. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from dpwa.errors import RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.fetch import NOTHING_YET
from dpwa.interpolation.interpolator import Interpolator
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult, Outcome
from dpwa.snapshot.lineage import JOIN_LEAD, Relation, reason_apart
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import MergeStage, State

__all__ = ["Puller"]

_NO_ROOM = "no room for a model before those that peers have pushed are blended"


class Puller:
    """Pulls for one node.

    Args:
        context: of the node's exchanges.
        interpolator: computes the factor.
        blends_when_joining: whether a joining node's pull blends, if the peer is not far ahead.
    """

    def __init__(self, context: ExchangeContext, interpolator: Interpolator, *, blends_when_joining: bool) -> None:
        self._context = context
        self._interpolator = interpolator
        self._blends_when_joining = blends_when_joining

    def pull(self, peer: str, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """Pull from a peer: the whole model while this node joins, else the part whose turn it is.

        Raises:
            TransportError: it came to nothing.
        """
        fetcher, rotation = self._context.fetcher, self._context.rotation
        fraction = fetcher.fitting_fraction(peer, request.plan.fraction)
        part = rotation.whole() if request.joining else rotation.next(fraction)
        # Another part of a snapshot that was blended in part is worth having; the whole of it a second time is not.
        have = (fetcher.history.have(peer) if part.is_whole else None) or NOTHING_YET
        staging = self._free_staging()
        if staging is None:
            return request.ended(Outcome.NOT_READY, reason=_NO_ROOM)
        begun = ExchangeResult(Outcome.NOT_READY, request.plan.kind, request, peer)
        result = fetcher.fetch(peer, begun, client, staging, part, have=have, shrinks=not request.joining)
        if not result.outcome.has_snapshot:
            return result
        history, version = fetcher.history, result.version
        if history.is_older(peer, version) or (part.is_whole and history.has_all(peer, version)):
            raise RemoteProtocolError(peer, f"sent version {version} of its snapshots after that or a newer")
        if history.has_all(peer, version):
            return replace(result, outcome=Outcome.NOT_MODIFIED, staging=None, reason="")
        if result.outcome is Outcome.BLENDED:
            result = self._weighed(peer, request, result, staging, is_whole=part.is_whole)
        if result.outcome is not Outcome.NOT_READY:  # what waits for another's word is wanted again
            history.take(peer, version, part.share)
        return result

    def _free_staging(self) -> Staging | None:
        """None while the trainer still blends what peers have pushed."""
        return next((staging for staging in self._context.stagings if staging.is_free), None)

    def another(self, peer: str, request: ExchangeRequest, client: Client, staging: Staging) -> ExchangeResult:
        """Pull one more whole model, for the median of several.

        Raises:
            TransportError: it came to nothing.
        """
        begun = ExchangeResult(Outcome.NOT_READY, request.plan.kind, request, peer)
        result = self._context.fetcher.fetch(peer, begun, client, staging, self._context.rotation.whole())
        if result.outcome is not Outcome.BLENDED or not result.relation.mixes:
            return result
        return replace(result, factor=self._factor(request, result, staging.distance))

    def combined(self, first: ExchangeResult, second: ExchangeResult, third: ExchangeResult) -> ExchangeResult:
        """The first result, as that of the median of all three; their stagings hold whole models."""
        if first.staging is None or second.staging is None or third.staging is None or first.request is None:
            return first
        first.staging.take_median(second.staging, third.staging)
        results = (first, second, third)
        own_factor = self._factor(first.request, first, first.distance)
        losses = [result.peer_state.loss for result in results if result.peer_state.loss is not None]
        middle = replace(
            first.peer_state,
            clock=median(result.peer_state.clock for result in results),
            loss=median(losses) if len(losses) == len(results) else None,
        )
        return replace(
            first,
            factor=median((own_factor, second.factor, third.factor)),
            peer_state=middle,
            merged=len(results),
            believed_share=1.0,
            received_bytes=sum(result.received_bytes for result in results),
            is_shared=all(result.is_shared for result in results),
        )

    def last(self, peer: str, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """Pull a peer's final or merged model, as it is; `NOT_READY` if it has neither yet.

        Raises:
            TransportError: it came to nothing.
        """
        staging = self._free_staging()
        if staging is None:
            return request.ended(Outcome.NOT_READY, reason=_NO_ROOM)
        begun = ExchangeResult(Outcome.NOT_READY, request.plan.kind, request, peer)
        staging.is_plain, is_kept = True, False
        try:
            result = self._context.fetcher.fetch(
                peer, begun, client, staging, self._context.rotation.whole(), as_it_is=True
            )
            if result.outcome is not Outcome.BLENDED:
                return result
            if result.said.mass > self._context.most_mass:
                reason = f"peer {peer} claims a mass of {result.said.mass:g}; all is {self._context.most_mass:g}"
                return replace(result, outcome=Outcome.REJECTED, staging=None, reason=reason)
            if result.mark.stage < MergeStage.FINAL:
                return replace(begun, received_bytes=result.received_bytes, is_shared=result.is_shared)
            staging.is_free, is_kept = False, True
            return result
        finally:
            staging.is_plain = is_kept

    def _weighed(
        self, peer: str, request: ExchangeRequest, result: ExchangeResult, staging: Staging, *, is_whole: bool
    ) -> ExchangeResult:
        """The result with the factor, and whether the peer's model replaces this node's."""
        own, relation = request.reference.state, result.relation
        factor = self._factor(request, result, staging.distance)
        # A node that goes on from a checkpoint is of its peers' lineage and may be far behind all the same.
        is_far_ahead = relation is Relation.ELDER or (
            request.joining and result.peer_state.clock >= own.clock + JOIN_LEAD
        )
        is_far_ahead = is_far_ahead or (request.copying and result.peer_state.clock > 0.0)
        if is_far_ahead and factor > 0.0 and not self._is_confirmed(peer, result, own):
            lead = result.said.clock - own.clock
            text = f"peer {peer} says that its model is {lead:g} updates ahead; no other peer has said so yet"
            return replace(result, outcome=Outcome.NOT_READY, staging=None, reason=text)
        takes_over = is_far_ahead and factor > 0.0 and is_whole
        is_to_be_pulled = relation is Relation.ELDER and factor > 0.0 and not takes_over
        if takes_over:
            factor = 1.0
        elif relation is Relation.ELDER or (request.joining and not self._blends_when_joining):
            factor = 0.0
        else:
            factor *= result.believed_share
        is_apart = not relation.mixes and factor == 0.0
        staging.is_free = False
        self._context.standing.is_changing = takes_over
        if takes_over:
            self._context.guard.replaced()
        return replace(
            result,
            factor=factor,
            distance=staging.distance,
            takes_over=takes_over,
            elder=peer if is_to_be_pulled else None,
            reason=reason_apart(peer, relation, own, result.peer_state) if is_apart else "",
        )

    def _is_confirmed(self, peer: str, result: ExchangeResult, own: State) -> bool:
        """Whether a peer that says it is the elder is believed; where nothing is compared, at once."""
        guard, membership, flow_control = self._context.guard, self._context.membership, self._context.flow_control
        if not guard.compares or len(membership.peers) == 1:
            return True
        answering = [
            name
            for name in membership.peers
            if membership[name].incarnation is not None and not flow_control.is_failing(name)
        ]
        return guard.confirms(peer, result.said, answering, has_much_to_lose=own.clock >= JOIN_LEAD)

    def _factor(self, request: ExchangeRequest, result: ExchangeResult, distance: float | None) -> float:
        """The share of the peer that the rule gives."""
        own = request.reference.state
        # A model that has diverged is lost: whatever is finite is better, as young as it may be.
        if result.relation is Relation.YOUNGER and not own.has_diverged:
            return 0.0
        return self._interpolator.factor(own, result.peer_state, distance)
