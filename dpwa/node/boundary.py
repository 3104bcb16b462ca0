"""What happens at a step boundary: count a training step, apply finished exchanges, begin the next one.

Must not know: files, the life of a node. Runs in: the trainer's thread; `_hand_out` in the copy waiter for copies that
a GPU makes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.service import Service
from dpwa.interpolation.interpolator import LossSmoother
from dpwa.methods.base import Method
from dpwa.methods.checked import factor_of, mass_and_round
from dpwa.methods.diloco import OuterMomentum
from dpwa.methods.exchange import NO_EXCHANGE, ExchangeKind, ExchangeRequest, ExchangeResult, Outcome, Plan
from dpwa.node.doubts import Doubts
from dpwa.node.extended_model import ExtendedModel
from dpwa.node.farewell import Farewell
from dpwa.node.joining import Joining
from dpwa.node.merging import Merging
from dpwa.node.pacing import Pacing
from dpwa.node.planning import Planner
from dpwa.node.pressure import Pressure
from dpwa.node.publishing import SnapshotPublisher, Taken
from dpwa.node.reach import Reach
from dpwa.node.record import Record, exchange_fields
from dpwa.node.settling import Settling
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.state import MAX_COUNTER, State
from dpwa.transport.faults import NodeFaults
from dpwa.transport.interface import Transport

__all__ = ["Boundary"]

_logger = logging.getLogger("dpwa")

# The mean time that a step trains (without its time in dpwa: a wait that counted would lengthen the waits of others)
# follows the last ten steps or so, and is not thrown off by a pause for an evaluation.
_INTERVAL_WEIGHT = 0.1
_LONGEST_STEP_S = 10.0

# What a gathering that ends at its deadline takes to reach the trainer.
_HAND_OVER_S = 0.05


class Boundary:
    """The step boundaries of one node.

    Args:
        config: the cluster.
        name: the node.
        model: the model, with what the method sends beside it.
        method: the averaging method.
        outer: outer momentum on top of it; None: disabled.
        pacing: tells both how fast the node is; None: neither goes by that.
        faults: what is injected into the training; None: nothing.
        service: answers the peers.
        context: of the node's exchanges.
        publisher: takes the snapshots.
        transport: makes the exchanges.
        record: counts them.
        event: writes a line of the journal.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        *,
        model: ExtendedModel,
        method: Method,
        outer: OuterMomentum | None,
        pacing: Pacing | None,
        faults: NodeFaults | None,
        service: Service,
        context: ExchangeContext,
        publisher: SnapshotPublisher,
        transport: Transport,
        record: Record,
        event: Callable[..., None],
    ) -> None:
        self._config = config
        self._name = name
        self._model = model
        self._method = method
        self.outer = outer
        self._pacing = pacing
        self._faults = faults
        self._service = service
        self._proposals = context.proposals
        self._guard = context.guard
        self._publisher = publisher
        self._transport = transport
        self._record = record
        self._event = event
        self._pressure = Pressure(name, transport.counters.guarded, event)
        self._monotonic_s = context.monotonic_s
        self._membership = context.membership
        self._peers = context.membership.peers  # as it was at the last look
        self._smoother = LossSmoother(config.loss_smoothing)
        self._standing = context.standing
        self.farewell = Farewell(name, context, service, event)
        reach = Reach(config, name, context.membership, lambda: method.exchanges_per_step, context.monotonic_s)
        self.doubts = Doubts(name, model.own_sections, context.membership, service, event, reach)
        self.merging = Merging(
            name,
            () if config.is_open else [node.name for node in config.nodes if node.serve],
            serves=config.node(name).serve,
            model=model,
            method=method,
            context=context,
            service=service,
            publisher=publisher,
            transport=transport,
            farewell=self.farewell,
            replaced=self._restart_outer,
            event=event,
        )
        self.step = 0
        self.in_flight = False
        """Whether an exchange that this node has begun is under way."""
        self.wait_s = config.wait_s
        """How long the next step may wait for it."""
        self._joining = Joining(
            context.standing, service, method, has_peers=config.is_open or bool(config.asked_by(name))
        )
        self._settling = Settling(method, service, context.proposals, self._joining, longest_s=config.longest_s)
        self._planner = Planner(
            config,
            name,
            intake=context.intake,
            method=method,
            service=service,
            membership=context.membership,
            joining=self._joining,
            farewell=self.farewell,
            monotonic_s=context.monotonic_s,
            engage=self._engage,
        )
        # Pairs that have been applied: the node is free for another when a snapshot that holds them is served.
        self._applied_pairs: list[bytes] = []
        self._last: Taken | None = None  # what the next training step is measured from
        self._given: Taken | None = None  # what a push under way carries
        self._resumed_s = context.monotonic_s()
        self._has_warned = False
        self._has_trained_on = False

    def may_leave(self, now_s: float) -> bool:
        """Whether nobody is waited for, and neither this node nor a peer would miss anything that is under way."""
        if self.farewell.has_run_out(now_s):
            return True
        if not (self.farewell.is_over(now_s) and self.merging.is_over()):
            if not self.merging.is_on:
                self._settling.go_on()
            return False
        is_pushing = self.in_flight and self._given is not None  # what was given away may still come back
        is_gone = partial(self.farewell.is_gone, now_s=now_s)
        return self._settling.may_leave(now_s, is_pushing=is_pushing, is_gone=is_gone)

    def leave(self) -> None:
        """Take what is here, and nothing more: what peers have begun stays with them."""
        self._settling.end()
        self.collect(0.0)

    @property
    def peers(self) -> tuple[str, ...]:
        """Names of all other nodes."""
        return self._peers

    @property
    def state(self) -> State:
        """Of this node's model; what a snapshot says of it when it is taken."""
        return self._standing.own

    @state.setter
    def state(self, state: State) -> None:
        self._standing.own = state

    def resume_together(self) -> None:
        """All nodes go on from checkpoints: this one is a member already, and joins nobody."""
        self._joining.resume_together()

    @property
    def joining(self) -> Joining:
        """How far this node is on the way to a model of its peers."""
        return self._joining

    def resume(self) -> float:
        """The trainer goes on training; the monotonic time."""
        self._resumed_s = self._monotonic_s()
        return self._resumed_s

    def close(self) -> None:
        """Let go of snapshots, and of the node: its memory must not wait for the garbage collector."""
        self._last = self._given = None
        self._model.close()
        self._method.close()
        self.outer = None
        if self._pacing is not None:
            self._pacing.close()
        self._pressure.close()
        self.farewell.close()
        self.merging.close()
        self.doubts.close()
        self._planner.close()
        self._event = _ignore

    def advance(self, loss: float | None) -> None:
        """Count a training step, and apply finished exchanges.

        Args:
            loss: of the step; None if unknown.
        """
        self.step += 1
        if self._peers is not self._membership.peers:
            self._follow_members()
        if self._service.serving.finished:
            self._train_on()
        if self._faults is not None:
            self._faults.begin_step(self.step)
        if self._pacing is not None:
            self._pacing.advance(self.step)
        self._method.advance()
        if self._peers:
            self._record.asked += self._method.exchanges_per_step
        self._correct()
        self.state = _aged(self.state, self.state.clock + 1.0)
        self.note_loss(loss)
        if loss is not None and self.state.loss is not None and self._peers:
            self.doubts.trained(self.step, self.state.loss)
        mean_s, interval_s = self._service.serving.step_interval_s, self._monotonic_s() - self._resumed_s
        mean_s += _INTERVAL_WEIGHT * (min(interval_s, _LONGEST_STEP_S) - mean_s)
        self._service.tell(step=self.step, step_interval_s=mean_s)
        self.collect(self.wait_s)
        outer = self.outer  # `close` may come in between, from a signal handler
        if outer is not None:
            outer.advance()

    def _follow_members(self) -> None:
        """Members have come, or are forgotten: keep nothing of the latter."""
        peers = self._membership.peers
        for gone in set(self._peers).difference(peers):
            self.doubts.forget(gone)
            self.farewell.forget(gone)
        self._peers = peers

    def _correct(self) -> None:
        """Scale the training step that was just made, for methods that want that."""
        share = self._method.correction()
        if share is not None and self._last is not None:
            self._last.wait()
            self._model.go_towards(self._last.buffer, share)

    def note_loss(self, loss: float | None) -> None:
        """Take a loss; None changes nothing."""
        if loss is not None:
            self.state = replace(self.state, loss=self._smoother.update(float(loss)))

    # --- Exchanges ------------------------------------------------------------------------------------------------

    def collect(self, wait_s: float) -> None:
        """Take the exchanges that have ended, this node's and those of peers, and apply them.

        Args:
            wait_s: how long to wait for this node's in all, however many of peers come meanwhile.
        """
        deadline_s = self._monotonic_s() + wait_s
        while True:
            result = self._transport.take(max(0.0, deadline_s - self._monotonic_s()) if self.in_flight else 0.0)
            if result is None:
                return
            self._end(result)

    def pause(self, pause_s: float) -> None:
        """The pause between two turns of `finish`: apply what comes, until there is a push to pass on.

        Args:
            pause_s: how long at most.
        """
        deadline_s = self._monotonic_s() + pause_s
        while not self._planner.has_to_pass_on and (left_s := deadline_s - self._monotonic_s()) > 0:
            result = self._transport.take(left_s)
            if result is not None:
                self._end(result)
            elif (left_s := deadline_s - self._monotonic_s()) > 0:
                time.sleep(left_s)  # a transport without threads of its own does not wait

    def _end(self, result: ExchangeResult) -> None:
        request = result.request
        if request is not None:
            self.in_flight = False
            self.wait_s = self._config.wait_s
        self.merging.note(result)
        if request is not None and request.merging:
            self._end_merging(result)
            return
        self.doubts.met(result)
        factor = self._apply(result) if result.outcome is Outcome.BLENDED else 0.0
        if result.kind is ExchangeKind.PUSH:
            self._end_push(result, factor)
        if result.is_refusal:
            self._method.refused(by_peers=True)
        self._end_engagement(result, factor)
        if result.staging is not None:
            result.staging.is_free = True
        self.farewell.note(result, self._monotonic_s())
        for notice in self._guard.take_notices():
            self._event("quarantine", **notice)
        if result.outcome is Outcome.OWN_NOT_FINITE:
            self._warn_of_own_model(result.reason)
        self._record.note(result, factor, is_training=not self._service.serving.finished)
        # A method's numbers may have any names; what the exchange itself says comes first.
        self._event("exchange", **{**self._method.statistics(), **exchange_fields(result, self.step, factor)})
        if self._joining.ended(result, factor, self._publisher.version):
            self.doubts.forget_origin()
            self._restart_outer()
        if result.staging is not None and (self._proposals.has_notice or self.in_flight):
            self._proposals.wake()  # there is room for it now, or for what rounding has left of a push

    def _end_merging(self, result: ExchangeResult) -> None:
        """The end of a pull for the merge, which is no blend and no exchange of the method."""
        self.merging.take(result)
        if result.staging is not None:
            result.staging.is_plain, result.staging.is_free = False, True
        self.farewell.note(result, self._monotonic_s())
        self._record.fetched(result)
        if result.outcome is not Outcome.BLENDED:
            self._event("exchange", **exchange_fields(result, self.step, 0.0))

    def _warn_of_own_model(self, reason: str) -> None:
        """Warn once; peers are not warned, because they can do nothing about it."""
        if not self._has_warned:
            self._has_warned = True
            _logger.warning("node %s: %s (further ones only in the journal)", self._name, reason)

    def _end_engagement(self, result: ExchangeResult, factor: float) -> None:
        """Let peers' pairs in again; after a change of the model as soon as a snapshot with it is served."""
        is_joining = result.request is not None and result.request.joining and self._method.kind is ExchangeKind.PAIR
        if not is_joining and (result.kind is not ExchangeKind.PAIR or result.exchange_id == NO_EXCHANGE):
            return
        if factor > 0.0:
            self._applied_pairs.append(result.exchange_id)
        else:
            self._proposals.disengage(result.exchange_id)

    def _end_push(self, result: ExchangeResult, factor: float) -> None:
        request, outcome = result.request, result.outcome
        if request is None:
            self._planner.took_pushes(result.merged if factor > 0.0 else 0)
            return
        mass = request.plan.mass
        if outcome is Outcome.LOST:
            self._method.lost(mass)
        elif outcome is Outcome.PUSHED:
            self._method.delivered(mass)
            # What rounding has taken from what was given counts by its mass, and is this node's.
            if result.staging is not None and self._method.mass > 0.0:
                self._model.blend(result.values, mass / self._method.mass)
        else:
            if request.finished:
                self._planner.came_back()
            share = self._method.took_back(mass)
            # In half precision the model is left as it is: a snapshot of it is no more exact than what that costs.
            if share > 0.0 and self._given is not None and self._model.can_go_towards:
                self._given.wait()
                self._model.go_towards(self._given.buffer, share, with_momentum=True)
        self._given = None

    def _apply(self, result: ExchangeResult) -> float:
        """Blend the values, if there are any; the factor by which, 0 if not at all."""
        peer, reference = result.peer_state, result.reference
        if result.staging is None or self._joining.is_outdated(result) or self.merging.is_frozen:
            return 0.0
        factor = result.factor
        if result.relation.mixes and not result.takes_over and (result.request is None or not result.request.joining):
            factor = factor_of(self._method, result, self.state)
        if factor == 0.0:
            return 0.0
        self._model.blend(result.values, factor)
        own = self.state
        is_delta = self._config.blend == "delta" and reference is not None
        base = reference.state.clock if is_delta and reference is not None else own.clock
        clock = own.clock + min(factor, 1.0) * result.share * (peer.clock - base)
        self.state = _aged(own, clock)
        return factor

    def publish_and_ask(self) -> None:
        """Begin the next exchange, if the method wants one, with a snapshot of this moment."""
        merging, now_s = self.merging, self._monotonic_s()
        if merging.is_frozen or (merging.is_on and not self.farewell.waited_for(now_s)):
            if merging.is_frozen or self._let_be():
                self._merge()
            return  # nothing else is begun any more
        plan = self._planner.next_plan(self.state.clock, in_flight=self.in_flight)
        if plan is None and not (self._service.wanted or self._applied_pairs or self._wants_snapshot):
            return  # nobody would look at it
        mass, round_ = mass_and_round(self._method)
        self.state = State(self.state.loss, self.state.clock, mass, round_, self.state.lineage)
        taken, is_aside = self._take(for_exchange=plan is not None)
        if taken is None:
            self._last = None  # an older one is no measure of the next step
            if plan is not None and plan.kind is ExchangeKind.PUSH:
                self._planner.came_back()
            if plan is not None and plan.kind is ExchangeKind.PAIR:
                self._applied_pairs.append(NO_EXCHANGE)  # what the last pair brought is in no snapshot yet
            return
        self._last = taken if self._method.corrects_steps else None
        if plan is not None and plan.kind is ExchangeKind.PUSH:
            self._given = taken
        request = self._request(plan, taken.snapshot) if plan is not None else None
        serving = not is_aside
        hand_out = partial(
            self._hand_out, taken.snapshot, request, self._applied_pairs if serving else [], serving=serving
        )
        if serving:
            self._applied_pairs = []
            self._service.wanted = False  # before the swap: a pull that comes between asks for one publish too many
        if taken.ready is None:
            hand_out()
        else:
            self._transport.defer(taken.complete, hand_out)

    def _let_be(self) -> bool:
        """Let the model be, for the merge, once nothing that has been begun can change it."""
        has_settled = self._settling.has_settled(is_busy=self.in_flight)
        if not has_settled or (self._method.kind is ExchangeKind.PAIR and not self._engage()):
            return False
        self.merging.freeze(self.step)
        self._planner.keep_all()
        return self.merging.is_frozen

    def _merge(self) -> None:
        """Begin what the merge, or the farewell after it, has to do next."""
        if self.in_flight:
            return
        request = self.merging.turn(self.step)
        if request is None and self.merging.is_over() and self.farewell.may_ask(self._monotonic_s()):
            request = self.merging.word_to(self.farewell.to_tell)
        if request is not None:
            self.in_flight = True
            self._transport.ask(request)

    def _train_on(self) -> None:
        """A step after `finish`. Peers' proposals are welcome again; this node only passes on what it takes.

        For all others it has finished, and some have perhaps left it. To say that it trains again could keep those
        that still wait in `finish` there, or bring the mean of one merge into the next.
        """
        if not self._has_trained_on:
            self._has_trained_on = True
            _logger.warning(
                "node %s: makes steps after finish(): its peers take it for finished, and hardly anything is exchanged "
                "any more; to train on together, start all nodes anew from their models (told once)",
                self._name,
            )
        if self.merging.is_on:
            self.merging.stop()
            self._proposals.disengage(NO_EXCHANGE)
        self._settling.go_on()
        self._planner.keep_all()

    def _restart_outer(self) -> None:
        if self.outer is not None:
            self.outer.restart()

    def _take(self, *, for_exchange: bool) -> tuple[Taken | None, bool]:
        """A snapshot of this moment, and whether it is one aside that is not served as the newest.

        Peers can hold all buffers, but never stop this node's own exchanges: those are then made with a copy of their
        own, which only the peer of a push or a pair can fetch, by its id.
        """
        now_s = self._monotonic_s()
        self._pressure.note(now_s)
        taken = self._publisher.take(step=self.step, taken_s=now_s, state=self.state)
        if taken is not None:
            self._pressure.published()
            return taken, False
        self._record.publish_skipped += 1
        self._pressure.skipped(now_s)
        if not for_exchange:
            return None, False
        return self._publisher.take_aside(step=self.step, taken_s=now_s, state=self.state), True

    @property
    def _wants_snapshot(self) -> bool:
        return self._method.wants_snapshot and bool(self._peers)

    def _engage(self) -> bool:
        """Keep peers' pairs out until this node's exchange has ended; False while it takes part in one."""
        is_engaged = self._proposals.engage(self._applied_pairs)
        if is_engaged:
            self._applied_pairs = []
        return is_engaged

    def _request(self, plan: Plan, snapshot: Snapshot) -> ExchangeRequest:
        self.in_flight = True
        exchange_id = NO_EXCHANGE
        if plan.kind in (ExchangeKind.PUSH, ExchangeKind.PAIR):
            exchange_id = self._proposals.open(snapshot)
        if plan.kind is ExchangeKind.PUSH:
            self._method.gave(plan.mass)
        self.wait_s = max(self._config.wait_s, plan.wait_s + _HAND_OVER_S if plan.wait_s > 0 else 0.0)
        return ExchangeRequest(
            plan,
            snapshot,
            exchange_id,
            joining=self._joining.is_on,
            finished=self._service.serving.finished,
            copying=self._joining.is_copying,
        )

    def _hand_out(
        self, snapshot: Snapshot, request: ExchangeRequest | None, pairs: Sequence[bytes], *, serving: bool
    ) -> None:
        """Serve a snapshot that is complete, and have an exchange made with it; in any thread, one at a time."""
        if serving:
            self._publisher.hand_out(snapshot)
            for exchange_id in pairs:
                self._proposals.disengage(exchange_id)
            self._transport.published()
        else:
            self._publisher.completed(snapshot)
        if request is not None:
            self._transport.ask(request)


def _aged(state: State, clock: float) -> State:
    """The state with another clock, one that peers will take whatever was blended. Four times as fast as `replace`."""
    legal = min(max(clock, 0.0), float(MAX_COUNTER))
    return State(state.loss, legal, state.mass, state.round, state.lineage)


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
