"""Making exchanges: who is asked, by which kind of exchange, and what the answers mean for the peers' scores.

Runs in: the Tx thread, or the trainer's own under the in-memory transport; the same code in both, so that what a test
shows of one holds for the other.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError, TransportError
from dpwa.exchange.accept import Accepter
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.gather import Gatherer
from dpwa.exchange.meetings import Meetings
from dpwa.exchange.pair import Pairer
from dpwa.exchange.pull import Puller
from dpwa.exchange.push import Pusher
from dpwa.exchange.step_questions import StepQuestions
from dpwa.interpolation.interpolator import Interpolator
from dpwa.methods.base import Method
from dpwa.methods.exchange import ExchangeKind, ExchangeRequest, ExchangeResult, Outcome
from dpwa.snapshot.staging import Staging

__all__ = ["Exchanger"]

_logger = logging.getLogger("dpwa")

# Peers that are asked for an exchange, one after the other, while those asked before are taken or have nothing new.
_MOST_ASKED = 3

_OUTCOME_OF_ERROR: dict[type[TransportError], Outcome] = {
    PeerTimeout: Outcome.TIMED_OUT,
    PeerUnreachable: Outcome.UNREACHABLE,
    ModelMismatch: Outcome.MISMATCH,
    RemoteProtocolError: Outcome.PROTOCOL_ERROR,
}

# Models that a median is taken of.
_OF_MEDIAN = 3

# Every wait ends in time by itself. What ends so much later than its deadline was held up by this node, which did not
# run, and the peer may well have answered.
_STALLED_S = 0.5

_ONE_WAY = (
    "but it asks this node, so it lives. Its host and port in the cluster file must lead to it from here (`bind` says "
    "where it listens itself); where nothing leads to it, write serve: false for it (told once; docs/launching.md)"
)

# What a peer that is there does not bring about.
_ABSENCES = (Outcome.TIMED_OUT, Outcome.UNREACHABLE, Outcome.GONE, Outcome.LOST)


class Exchanger:
    """Makes exchanges for one node, one at a time, and takes part in those that peers begin.

    Args:
        context: of the node's exchanges.
        method: the averaging method, for what it says of its class.
        interpolator: computes the factor of a pull.
        rng: in which order a gathering asks.
        through: puts faults between this node and its transport, for experiments.
        meetings: with members, in a cluster that nodes may join; None: it has none.
    """

    def __init__(
        self,
        context: ExchangeContext,
        method: Method,
        interpolator: Interpolator,
        rng: random.Random,
        through: Callable[[Client], Client] | None = None,
        meetings: Meetings | None = None,
    ) -> None:
        self.context = context
        self.meetings = meetings
        if meetings is not None:
            meetings.forget = self._forget
        self._through = through
        self._puller = Puller(context, interpolator, blends_when_joining=method.kind is ExchangeKind.PULL)
        self._pusher = Pusher(context)
        self._pairer = Pairer(context, repays=method.repays)
        self._accepter = Accepter(context)
        self._gatherer = Gatherer(context, rng)
        self.questions = StepQuestions(context)
        self._warned: set[tuple[str, Outcome]] = set()
        self._one_way: set[str] = set()
        self._has_finished = False

    def perform(self, request: ExchangeRequest, client: Client) -> None:
        """Make an exchange, or begin a push; its end goes to the results.

        Peer trouble is an outcome, never an exception.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._through is not None:
            client = self._through(client)
        context, plan = self.context, request.plan
        if request.finished and not self._has_finished:
            self._has_finished = True
            context.flow_control.retry(context.monotonic_s())  # before this node leaves them behind
        for peer in context.membership.take_hints():
            context.flow_control.hinted(peer)
        if plan.kind is ExchangeKind.GATHER and not request.joining:
            context.results.put(self._gatherer.gather(request, client))
            return
        result: ExchangeResult | None = None
        asked: list[str] = []
        without = [self._pairer.creditor] if plan.kind is ExchangeKind.PAIR and self._pairer.creditor else []
        while result is None or (result.is_refusal and result.peer and len(asked) < _MOST_ASKED):
            start_s = context.monotonic_s()
            chosen = context.flow_control.choose(start_s, plan.peers, without=[*asked, *without])
            if chosen is None:
                result = result or request.ended(Outcome.NO_PEER, reason="every peer failed lately")
                break
            result = self._with(chosen, request, client)
            if result is None:
                return  # a push that was accepted ends when it has been taken
            if context.guard.combines and len(context.membership.peers) >= _OF_MEDIAN and not request.merging:
                result = self._combined(result, request, client)
            result = replace(result, duration_s=context.monotonic_s() - start_s)
            asked.append(chosen)
        context.proposer.end(request, result.outcome)
        context.results.put(result)

    def work(self, client: Client) -> None:
        """Go on with what others have begun, and end what has become due.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._through is not None:
            client = self._through(client)
        self._end_own(self._pusher.conclude(client), self._pairer.repay(client))
        self._accepter.end_pair()
        while self._accepter.take_one(client):
            if self._pusher.is_fetched:  # its peer may wait for the question
                self._end_own(self._pusher.conclude(client))
        if not self._has_finished:
            self.questions.work(client)
        if self.meetings is not None:
            self.meetings.work(client)

    def _end_own(self, *results: ExchangeResult | None) -> None:
        for result in results:
            if result is not None and result.peer is not None:
                self._score(result.peer, result)
                self.context.results.put(result)

    def close(self) -> None:
        """Let go of everything that holds a snapshot. The thread has ended."""
        self.context.results.close()
        self._pusher.close()
        self._pairer.close()
        self._accepter.close()

    def next_deadline_s(self) -> float | None:
        """When `work` has something to do at the latest."""
        deadlines = [self._pusher.deadline_s, self._pairer.deadline_s, self._accepter.deadline_s]
        if self.meetings is not None:
            deadlines.append(self.meetings.deadline_s)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _combined(self, first: ExchangeResult, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """The result with the median of this pull and of two more; as it is where no three peers give a model."""
        context, found = self.context, [first]
        while first.outcome is Outcome.BLENDED and first.relation.mixes and not first.takes_over:
            asked = [result.peer for result in found if result.peer is not None]
            peer = context.flow_control.choose(context.monotonic_s(), request.plan.peers, without=asked)
            free = [staging for staging in context.stagings if all(result.staging is not staging for result in found)]
            if peer is None:
                return first
            result = self._with(peer, request, client, another=free[0])
            if result is None or result.outcome is not Outcome.BLENDED or not result.relation.mixes:
                return first
            found.append(result)
            if len(found) == _OF_MEDIAN:
                return self._puller.combined(*found)
        return first

    def _with(
        self, peer: str, request: ExchangeRequest, client: Client, another: Staging | None = None
    ) -> ExchangeResult | None:
        """An exchange with one peer; None for a push that was accepted.

        Args:
            peer: who.
            request: what the trainer asks for.
            client: the way there.
            another: one more model is to be pulled into this, for a median.
        """
        kind = request.plan.kind
        try:
            if another is not None:
                result: ExchangeResult | None = self._puller.another(peer, request, client, another)
            elif kind is None:
                result = self.context.proposer.tell(peer, request, client)
            elif request.merging:
                result = self._puller.last(peer, request, client)
            elif request.joining or kind is ExchangeKind.PULL:
                result = self._puller.pull(peer, request, client)
            elif kind is ExchangeKind.PUSH:
                result = self._pusher.push(peer, request, client)
            else:
                result = self._pairer.pair(peer, request, client)
        except (PeerTimeout, PeerUnreachable, ModelMismatch, RemoteProtocolError) as error:
            outcome = _OUTCOME_OF_ERROR[type(error)]
            if outcome is Outcome.UNREACHABLE and self._may_have_left(peer):
                outcome = Outcome.GONE
            received_bytes = error.received_bytes if isinstance(error, PeerTimeout) else 0
            result = replace(request.ended(outcome, peer, str(error)), received_bytes=received_bytes)
            if error.late_s > _STALLED_S:
                return replace(result, reason=f"{result.reason}; this node stood still for {error.late_s:.1f} s itself")
        if result is not None and result.peer is not None:
            self._score(peer, result)
        return result

    def _may_have_left(self, peer: str) -> bool:
        """Whether a peer that cannot be reached may have ended as it should."""
        if self.meetings is not None:
            self.meetings.members.knock(self.context.monotonic_s())  # it may have said so a moment ago
            if self.meetings.members.is_said_to_have_left(peer):
                return True
        return self.context.membership.may_have_left(peer)

    def _forget(self, peer: str) -> None:
        self._warned = {told for told in self._warned if told[0] != peer}
        self._one_way.discard(peer)

    def _score(self, peer: str, result: ExchangeResult) -> None:
        flow_control, now_s = self.context.flow_control, self.context.monotonic_s()
        if self.meetings is not None:
            self.meetings.note(peer, is_there=result.outcome not in _ABSENCES)
        if result.outcome in (Outcome.REJECTED, Outcome.MISMATCH):
            rejections = flow_control.rejected(peer, now_s)
            if rejections is not None:
                self.context.guard.quarantined(peer, rejections, result.reason)
            self._warn_once(peer, result)
        elif result.outcome.is_failure:
            flow_control.failed(peer, now_s)
            self._warn_once(peer, result)
        elif result.outcome is Outcome.GONE:
            flow_control.failed(peer, now_s)  # it may come back, but is not worth asking often
        elif result.outcome in (Outcome.BLENDED, Outcome.PUSHED):
            flow_control.succeeded(peer, gave=result.outcome is Outcome.BLENDED)
        else:
            flow_control.answered(peer)

    def _warn_once(self, peer: str, result: ExchangeResult) -> None:
        """Warn once per peer and outcome: a cluster with a dead node must not fill its logs."""
        key = (peer, result.outcome)
        node = self.context.fetcher.identity.node
        if key not in self._warned:
            self._warned.add(key)
            _logger.warning("node %s: %s (further ones only in the journal)", node, result.reason)
        is_unreachable = result.outcome is Outcome.UNREACHABLE and peer not in self._one_way
        has_moved = self.meetings is not None and self.meetings.members.has_moved(peer)
        if is_unreachable and not has_moved and self.context.membership.asks_and_never_answers(peer):
            self._one_way.add(peer)
            _logger.warning("node %s: %s; %s", node, result.reason, _ONE_WAY)
