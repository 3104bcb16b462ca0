"""Fetching the snapshots of one round from all in-neighbours, until a deadline.

Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError, TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.results import merged
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult, Outcome
from dpwa.snapshot.lineage import Relation
from dpwa.snapshot.rounding import SentAs, add_rest

__all__ = ["Gatherer"]

# Between two questions to a neighbour that is still on its way to the round. It answers late by itself, so this counts
# only where it does not.
_PAUSE_S = 0.005

# With a transport that answers at once, nothing changes while one waits; a message that was lost may come through.
_TRIES_AT_ONCE = 10

# A message that was lost must not cost the whole round, unless the link needs that time.
_TRIES_IN_TIME = 4
_TIMES_AS_LONG = 2.0

# Rounds one after the other in which a neighbour has trained past the one wanted, before this node takes itself for the
# one that is behind. Nodes that begin together are a round or two apart at first.
_ROUNDS_AHEAD = 3


@dataclass
class _Round:
    """A round under way: what was asked for, and what has come so far."""

    request: ExchangeRequest
    client: Client
    weights: Mapping[str, float]
    planned_s: float
    """Of the time that the round waits, the part of each neighbour."""
    total: ExchangeResult | None = None
    """All that came, merged into one."""
    elder: str | None = None
    """A neighbour whose model is to replace this node's."""
    ahead: str | None = None
    """A neighbour that has been rounds ahead for a while."""
    stranger_ahead: str | None = None
    """One of these whose snapshots this node has never seen: it may be of another lineage."""
    problem: ExchangeResult | None = None
    """Whose values were not finite."""

    def ended(self) -> ExchangeResult:
        """The result of the round."""
        total, problem = self.total, self.problem
        result = total if total is not None else self.request.ended(Outcome.NOT_READY)
        if problem is not None and problem.outcome is Outcome.OWN_NOT_FINITE:
            result = replace(result, outcome=problem.outcome)
        return replace(
            result,
            share=1.0,
            missed=len(self.weights) - result.merged,
            # Whoever gets nothing of a round that others have long left is out of step with all of them.
            elder=self.elder or self.stranger_ahead or (self.ahead if total is None else None),
            reason="" if problem is None else problem.reason,
        )


class Gatherer:
    """Gathers for one node.

    Args:
        context: of the node's exchanges; its two stagings hold the sum, and what is being fetched.
        rng: the order in which neighbours are asked, so that not all ask the same one first.
    """

    def __init__(self, context: ExchangeContext, rng: random.Random) -> None:
        self._context = context
        self._rng = rng
        self._rounds_ahead: Counter[str] = Counter()  # one after the other, of each neighbour
        self._spent: set[str] = set()  # have finished, and nothing newer than what they were asked for last

    def gather(self, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """Fetch and merge what comes in time.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        monotonic_s, flow_control = self._context.monotonic_s, self._context.flow_control
        start_s = monotonic_s()
        weights = request.plan.peers or {}
        round_ = _Round(request, client, weights, request.plan.wait_s / max(1, len(weights)))
        missing = [peer for peer in round_.weights if self._may_have_more(peer) and flow_control.may_ask(peer, start_s)]
        self._rng.shuffle(missing)
        tries = 0
        while missing:
            left_s = start_s + request.plan.wait_s - monotonic_s()
            missing = [peer for peer in missing if self._is_worth_asking_again(peer, round_, left_s)]
            tries += 1
            if missing and (left_s <= 0 or (client.patience_s == 0 and tries >= _TRIES_AT_ONCE)):
                break
            if missing:
                client.pause(_PAUSE_S)
        for peer in missing:
            flow_control.failed(peer, monotonic_s())
        self._keep_rest(round_)
        return replace(round_.ended(), duration_s=monotonic_s() - start_s)

    def _keep_rest(self, round_: _Round) -> None:
        """This node's own share in the round is what it gives the others: as rounded for them."""
        total, own, whole = round_.total, round_.request.reference, self._context.rotation.whole()
        if total is not None and total.staging is not None:
            sent_as = SentAs(own.codec, whole.chunk_bytes)
            add_rest(total.staging.layout, total.staging.values, own.memory, sent_as, whole.chunks())

    def _may_have_more(self, peer: str) -> bool:
        """Whether the neighbour trains, or has ended in a round that this node may still come to."""
        if not self._context.membership[peer].finished:
            self._spent.discard(peer)  # also one that has been started anew
        return peer not in self._spent

    def _is_worth_asking_again(self, peer: str, round_: _Round, left_s: float) -> bool:
        """Ask one neighbour; False once it has answered, or will not."""
        context, request = self._context, round_.request
        needed_s = _TIMES_AS_LONG * context.fetcher.expected_s(peer, round_.planned_s)
        try:
            result = context.fetcher.fetch(
                peer,
                request.ended(Outcome.NOT_READY, peer),
                round_.client,
                context.stagings[0 if round_.total is None else 1],
                context.rotation.whole(),
                round_=request.reference.state.round,
                within_s=max(0.001, min(left_s, max(needed_s, request.plan.wait_s / _TRIES_IN_TIME))),
                planned_s=round_.planned_s,
            )
        except PeerTimeout:
            return True
        except (PeerUnreachable, ModelMismatch, RemoteProtocolError) as error:
            self._failed(peer, error)
            self._ended_if_finished(peer)
            return False
        if result.outcome.has_snapshot:
            self._rounds_ahead[peer] = 0
            if result.outcome is Outcome.BLENDED:
                context.flow_control.succeeded(peer)
                self._take(peer, result, round_)
            else:
                round_.problem = result
                if context.guard.compares and result.outcome is Outcome.REJECTED:
                    self._reject(peer, result.reason)
                else:  # it is there, in time, and may have a model of the next round
                    context.flow_control.answered(peer)
            return False
        context.flow_control.answered(peer)
        if result.outcome in (Outcome.NOT_READY, Outcome.BUSY):
            return True
        said = context.membership[peer]
        if result.outcome is Outcome.ABORTED and not said.finished:
            self._rounds_ahead[peer] += 1
            if self._rounds_ahead[peer] >= _ROUNDS_AHEAD:
                round_.ahead = peer
                if said.incarnation is None or not context.fetcher.history.knows(peer, said.incarnation):
                    round_.stranger_ahead = peer
        self._ended_if_finished(peer)
        return False

    def _failed(self, peer: str, error: TransportError) -> None:
        if isinstance(error, ModelMismatch):
            self._reject(peer, str(error))
        else:
            self._context.flow_control.failed(peer, self._context.monotonic_s())

    def _reject(self, peer: str, reason: str) -> None:
        rejections = self._context.flow_control.rejected(peer, self._context.monotonic_s())
        if rejections is not None:
            self._context.guard.quarantined(peer, rejections, reason)

    def _ended_if_finished(self, peer: str) -> None:
        if self._context.membership[peer].finished:
            self._spent.add(peer)

    def _take(self, peer: str, result: ExchangeResult, round_: _Round) -> None:
        """Add what came, unless its age forbids that."""
        if result.relation is Relation.ELDER:
            round_.elder = peer
        if result.relation.mixes:
            result = replace(result, weight=round_.weights[peer])
            round_.total = result if round_.total is None else merged(round_.total, result)
