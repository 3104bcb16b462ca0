"""The node: the one object that an adapter needs. It publishes, has exchanges made and applies them.

Must not know: torch or any other framework (a `Model` gives it what it needs), sockets. Runs in: every method in the
trainer's thread; `statistics` in any, `_hand_out` in the publish thread for copies that a GPU makes.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from dpwa.config import ClusterConfig
from dpwa.errors import ConfigError, DpwaError, InternalError, NodeClosed
from dpwa.exchange import Ask, Exchange, Outcome
from dpwa.extended_model import ExtendedModel, Model
from dpwa.faults import Faults, NodeFaults
from dpwa.interpolation import LossSmoother, State
from dpwa.methods.base import Arrival, Kind, Plan
from dpwa.methods.diloco import OuterMomentum
from dpwa.observe.journal import Journal, node_folder
from dpwa.peers.budget import Budget
from dpwa.publishing import Publisher, Taken
from dpwa.record import NodeStatistics, Record, exchange_fields
from dpwa.snapshot import Snapshot
from dpwa.transport.interface import MakeTransport, Transport
from dpwa.transport.messages import INCARNATION_BYTES, NO_EXCHANGE
from dpwa.transport.zeromq import ZmqTransport
from dpwa.wiring import wire

__all__ = ["Model", "Node"]

# The mean time that a step trains (without its time in dpwa: a wait that counted would lengthen the waits of others)
# follows the last ten steps or so, and is not thrown off by a pause for an evaluation.
_INTERVAL_WEIGHT = 0.1
_LONGEST_STEP_S = 10.0

# All of `close` together stays below this.
_CLOSE_TIMEOUT_S = 1.5

# Peers that a joining node asks before it concludes that there is nobody to join.
_JOIN_TRIES = 3

# While a finished node waits for the others it exchanges at most this often: they need the processor more.
_FINISH_PAUSE_S = 0.02


# What a gathering that ends at its deadline takes to reach the trainer.
_HAND_OVER_S = 0.05


# A push is taken or comes back within the config's timeout and a little more.
_SETTLE_TIMEOUT_S = 10.0
_SETTLE_PAUSE_S = 0.05


class _Life(Enum):
    NEW = "new"
    RUNNING = "running"
    CLOSED = "closed"


class Node:
    """One node of a cluster.

    Args:
        config: the cluster.
        name: which of its nodes this is.
        model: the model to train together.
        run_dir: folder of the run; None writes nothing.
        make_transport: a transport other than ZeroMQ, for tests and simulations.
        monotonic_s: the clock that scores and durations go by.

    Raises:
        ConfigError: the name is not in the config, or the method or interpolation cannot be made.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        model: Model,
        *,
        run_dir: Path | None = None,
        make_transport: MakeTransport | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.name = config.node(name).name
        self.run_dir = run_dir
        self._life = _Life.NEW
        self._monotonic_s = monotonic_s
        self._peers = tuple(peer.name for peer in config.peers_of(name))
        self._rng = random.Random(f"{config.seed}/{name}/pull")  # noqa: S311  (no secret)
        self.method = config.method_for(name)
        self._model = ExtendedModel(model, self.method)
        outer = config.outer
        self._outer = None if outer.every is None else OuterMomentum(model, **outer.model_dump())
        if self._outer is not None:
            self._outer.restart()
        self._smoother = LossSmoother(config.loss_smoothing)
        layout = self._model.layout
        self._budget = Budget(
            config.bandwidth_limit_bytes_per_s, model_bytes=layout.total_bytes, most_fraction=config.pull_fraction
        )
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._faults = self._make_faults()
        self._parts = wire(
            config,
            name,
            incarnation=self._incarnation,
            layout=layout,
            method=self.method,
            monotonic_s=monotonic_s,
            faults=None if self._faults is None else self._faults.faults,
        )
        self._service = self._parts.wiring.service
        self._publisher = Publisher(self._model, self._service, self._snapshot_slots())
        self._transport: Transport = (
            make_transport(self._parts.wiring) if make_transport else ZmqTransport(config, name, self._parts.wiring)
        )
        self._record = Record(monotonic_s())
        self._journal = self._make_journal()
        self._in_flight = False
        self._wait_s = config.wait_s
        # A node joins with its first exchange; until then it serves nothing, so that a restarted node does not
        # spread its untrained model among peers that have trained for hours.
        self._joining = bool(self._peers)
        self._join_tries = min(len(self._peers), _JOIN_TRIES)
        # Pairs that have been applied: the node is free for another when a snapshot that holds them is served.
        self._applied_pairs: list[bytes] = []
        self._state = State(loss=None, clock=0.0)
        self._step = 0
        self._last: Taken | None = None
        self._given: Taken | None = None  # what a push under way carries
        self._resumed_s = monotonic_s()

    def _snapshot_slots(self) -> int:
        # A round more is kept for neighbours that are a step behind.
        return self.config.snapshot_slots + (self.method.kind is Kind.GATHER)

    def _make_journal(self) -> Journal | None:
        if self.run_dir is None:
            return None
        return Journal(
            node_folder(self.run_dir, self.name),
            sample=lambda: self._record.metrics(self.statistics(), self._monotonic_s()),
            metrics_interval_s=self.config.metrics_interval_s,
        )

    def _make_faults(self) -> NodeFaults | None:
        if not self.config.faults.kinds:
            return None
        return NodeFaults(
            Faults(self.config.faults, self.name, partial(self._event, "fault")),
            folder=None if self.run_dir is None else node_folder(self.run_dir, self.name),
            pause=time.sleep,
            before_death=self._write_journal,
        )

    # --- Life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve the model and be ready for exchanges.

        Raises:
            ConfigError: the node's address cannot be listened on, or the run folder cannot be written.
            NodeClosed: the node was closed already.
        """
        if self._life is not _Life.NEW:
            raise NodeClosed(f"node {self.name} cannot be started: it is {self._life.value}")
        try:
            self._start_journal()
            if self._peers:
                self._transport.start()
                if self._transport.shares_memory:
                    self._publisher.share(run_id=self.config.run_id, node=self.name, incarnation=self._incarnation)
            self._life = _Life.RUNNING
        finally:
            if self._life is not _Life.RUNNING:
                self.close()
        self._event("start", run=self.config.run_id, incarnation=self._incarnation.hex(), peers=list(self._peers))

    def _start_journal(self) -> None:
        if self._journal is None or self.run_dir is None:
            return
        try:
            self._journal.start()
            resolved = self.run_dir / "config.yaml"
            if not resolved.exists():
                resolved.write_text(self.config.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"run folder {self.run_dir}: cannot be written ({error}); choose another with DPWA_RUN_DIR or --run-dir"
            ) from error

    def close(self) -> None:
        """End threads and connections within 2 s. May be called in any state, any number of times.

        Raises:
            InternalError: a background thread did not end in time, or had failed before.
        """
        if self._life is _Life.CLOSED:
            return
        was_running = self._life is _Life.RUNNING
        self._life = _Life.CLOSED
        deadline_s = time.monotonic() + _CLOSE_TIMEOUT_S
        try:
            self._transport.close(_CLOSE_TIMEOUT_S)
        finally:
            # Let go of all buffers at once: the node itself may be kept, for its statistics.
            self._last = self._given = None
            self._publisher.close()
            for staging in self._parts.stagings:
                staging.close()
            if self._journal is not None:
                self._event("close", **self.method.statistics())
                self._journal.close(max(0.1, deadline_s - time.monotonic()))
        if was_running:
            self._raise_background_error()

    def _check_running(self) -> None:
        if self._life is not _Life.RUNNING:
            raise NodeClosed(f"node {self.name} is {self._life.value}, expected running")
        self._raise_background_error()

    def _raise_background_error(self) -> None:
        error = self._transport.error()
        if isinstance(error, DpwaError):
            raise error
        if error is not None:
            raise InternalError(f"a background thread of node {self.name} ended by itself: {error!r}") from error

    # --- Training -------------------------------------------------------------------------------------------------

    def step(self, loss: float | None = None) -> None:
        """Tell that a training step was made: apply what has come, publish, begin the next exchange.

        The order matters: the snapshot that the next exchange refers to must hold the blend before it, or that blend
        would count twice.

        Args:
            loss: of the step; None if unknown.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._advance(loss)
        self._publish_and_ask()
        self._resumed_s = self._monotonic_s()

    def update_send(self, loss: float | None = None) -> None:
        """First half of the 2017 dpwa's pair, called before a batch: publish and ask for an exchange.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._note_loss(loss)
        self._publish_and_ask()

    def update_wait(self, loss: float | None = None) -> None:
        """Second half of the pair, called after the batch: apply the exchange, waiting up to `wait_ms` for it.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._advance(loss)
        self._resumed_s = self._monotonic_s()

    def finish(self, timeout_s: float) -> bool:
        """After the last step: go on serving and blending until every peer has finished too, or is gone.

        Args:
            timeout_s: wait at most so long.

        Returns:
            False if the time ran out with peers still training.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._service.finished = True
        deadline_s = time.monotonic() + timeout_s
        flow_control = self._parts.wiring.exchanger.flow_control
        while True:
            self._collect(min(_FINISH_PAUSE_S, max(0.0, deadline_s - time.monotonic())))
            present = [peer for peer in self._peers if not flow_control.is_failing(peer)]
            training = [peer for peer in present if not self._parts.membership[peer].finished]
            # Whoever leaves unannounced is taken for a failure by those that still ask it.
            if (not training and self._service.told_finished.issuperset(present)) or time.monotonic() >= deadline_s:
                self._event("finish", still_training=training)
                return not training
            self._publish_and_ask()
            self._check_running()
            time.sleep(_FINISH_PAUSE_S)

    def log(self, **values: object) -> None:
        """Add values of the training script (epoch, test accuracy …) to every further line of metrics."""
        self._record.log(values)

    def state_dict(self, timeout_s: float = _SETTLE_TIMEOUT_S) -> dict[str, Any]:
        """What a checkpoint must keep beside the model: the clock, and the method's numbers and arrays.

        A push under way is waited for, because its mass must not be kept here and there.

        Args:
            timeout_s: for that wait. What is not settled by then counts as this node's.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        deadline_s = time.monotonic() + timeout_s
        while self.method.kind is Kind.PUSH and self._in_flight and time.monotonic() < deadline_s:
            self._check_running()
            self._collect(_SETTLE_PAUSE_S)
        return {
            "clock": self._state.clock,
            "loss": self._state.loss,
            "method": self.config.method,
            "of_method": self.method.state_dict(),
            "of_outer": None if self._outer is None else self._outer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, before the first step; the model has been loaded.

        Raises:
            ConfigError: it is of another method or model, or damaged.
        """
        if self._step:
            raise ConfigError(f"node {self.name}: a checkpoint is loaded before the first step, not after {self._step}")
        if state.get("method") != self.config.method:
            raise ConfigError(
                f"node {self.name}: the checkpoint was made with method {state.get('method')}, the cluster file says "
                f"{self.config.method}"
            )
        clock = float(state["clock"])
        if not (math.isfinite(clock) and clock >= 0):
            raise ConfigError(f"node {self.name}: the checkpoint has a clock of {clock}, expected a number from 0")
        self._state = State(state["loss"], clock)
        self.method.load_state_dict(state["of_method"])
        if self._outer is not None and state["of_outer"] is not None:
            self._outer.load_state_dict(state["of_outer"])

    def _advance(self, loss: float | None) -> None:
        self._step += 1
        if self._faults is not None:
            self._faults.begin_step(self._step)
        self.method.advance()
        self._correct()
        self._state = State(self._state.loss, self._state.clock + 1.0)
        self._note_loss(loss)
        self._service.step = self._step
        interval_s = min(self._monotonic_s() - self._resumed_s, _LONGEST_STEP_S)
        self._service.step_interval_s += _INTERVAL_WEIGHT * (interval_s - self._service.step_interval_s)
        self._collect(self._wait_s)
        if self._outer is not None and not self._joining:
            self._outer.advance()

    def _correct(self) -> None:
        """Scale the training step that was just made, for methods that want that."""
        share = self.method.correction()
        if share is not None and self._last is not None:
            self._last.is_complete.wait()
            self._model.go_towards(self._last.buffer, share)

    def _note_loss(self, loss: float | None) -> None:
        if loss is not None:
            self._state = State(self._smoother.update(loss), self._state.clock)

    # --- Exchanges ------------------------------------------------------------------------------------------------

    def _collect(self, wait_s: float) -> None:
        """Take the exchanges that have ended, own ones and peers', and apply them."""
        wait_s = wait_s if self._in_flight else 0.0
        while True:
            exchange = self._transport.take(wait_s if self._in_flight else 0.0)
            if exchange is None:
                return
            if exchange.ask is not None:
                self._in_flight = False
                self._wait_s = self.config.wait_s
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        factor = self._apply(exchange) if exchange.outcome is Outcome.BLENDED else 0.0
        if exchange.kind is Kind.PUSH and exchange.ask is not None:
            self._end_push(exchange.outcome, exchange.ask.mass)
        if exchange.kind is Kind.PAIR and exchange.exchange != NO_EXCHANGE:
            if factor > 0.0:
                self._applied_pairs.append(exchange.exchange)
            else:
                self._parts.proposals.disengage(exchange.exchange)
        if exchange.staging is not None:
            exchange.staging.is_free = True
            if self._parts.proposals.has_notice:
                self._parts.proposals.wake()
        if exchange.received_bytes and not exchange.is_shared:
            # A joining node takes the whole model, whatever part the budget had planned.
            is_planned = exchange.ask is not None and not exchange.ask.joining
            self._budget.spent(exchange.received_bytes, self._monotonic_s(), complete=is_planned)
        ask = exchange.ask
        if ask is not None and ask.finished and exchange.peer is not None and not exchange.outcome.is_failure:
            self._service.told_finished.add(exchange.peer)
        self._record.note(exchange, factor)
        self._event("exchange", **exchange_fields(exchange, self._step, factor), **self.method.statistics())
        if ask is not None and self._joining:
            self._try_to_join(exchange)

    def _end_push(self, outcome: Outcome, mass: float) -> None:
        if outcome is Outcome.LOST:
            self.method.lost(mass)
        elif outcome is Outcome.PUSHED:
            self.method.delivered(mass)
        else:
            share = self.method.took_back(mass)
            # In half precision the model is left as it is: a snapshot of it is no more exact than what that costs.
            if share > 0.0 and self._given is not None and self._model.can_go_towards:
                self._given.is_complete.wait()
                self._model.go_towards(self._given.buffer, share)
        self._given = None

    def _try_to_join(self, exchange: Exchange) -> None:
        self._join_tries -= 1
        has_joined = exchange.outcome in (Outcome.BLENDED, Outcome.NO_PEER)
        self._joining = not has_joined and self._join_tries > 0
        if not self._joining:
            self.method.joined(exchange.peer_state, takes_over=exchange.takes_over)
            if self._outer is not None and exchange.takes_over:
                self._outer.restart()
            self._service.joined = True

    def _apply(self, exchange: Exchange) -> float:
        """Blend what has come; the factor by which, 0 for nothing."""
        peer, staging, reference = exchange.peer_state, exchange.staging, exchange.reference
        if peer is None or staging is None:
            return 0.0
        factor, values = exchange.factor, staging.values
        if exchange.ask is None or not exchange.ask.joining:
            arrival = Arrival(
                kind=exchange.kind or Kind.PULL,
                peer_state=peer,
                reference=reference,
                values=values,
                factor=exchange.factor,
                share=exchange.share,
                weight=exchange.weight,
                missed=exchange.missed,
            )
            blend = self.method.blend(arrival, self._state)
            factor = blend.factor
        if factor == 0.0:
            return 0.0
        self._model.blend(values, factor)
        own = self._state
        is_delta = self.config.blend == "delta" and reference is not None
        base = reference.state.clock if is_delta and reference is not None else own.clock
        clock = own.clock + min(factor, 1.0) * exchange.share * (peer.clock - base)
        self._state = State(own.loss, max(0.0, clock))
        return factor

    def _publish_and_ask(self) -> None:
        plan = self._plan()
        if plan is None and not (self._service.wanted or self._applied_pairs or self._wants_snapshot):
            return  # nobody would look at it
        self._state = State(self._state.loss, self._state.clock, self.method.mass, self.method.round)
        taken = self._publisher.take(step=self._step, taken_s=self._monotonic_s(), state=self._state)
        if taken is None:
            self._record.publish_skipped += 1
            self._last = None  # an older one is no measure of the next step
            if plan is not None and plan.kind is Kind.PAIR:
                self._applied_pairs.append(NO_EXCHANGE)  # what the last pair brought is in no snapshot yet
            return
        self._last = taken
        if plan is not None and plan.kind is Kind.PUSH:
            self._given = taken
        ask = self._ask(plan, taken.snapshot) if plan is not None else None
        serving = not self._joining
        hand_out = partial(self._hand_out, taken.snapshot, ask, self._applied_pairs if serving else [], serving=serving)
        if serving:
            self._applied_pairs = []
            self._service.wanted = False  # before the swap: a pull that comes between asks for one publish too many
        if taken.ready is None:
            hand_out()
        else:
            self._transport.defer(taken.complete, hand_out)

    @property
    def _wants_snapshot(self) -> bool:
        return self.method.wants_snapshot and not self._joining and bool(self._peers)

    def _plan(self) -> Plan | None:
        """The exchange to begin at this step boundary."""
        self._service.pair_rounds = self.method.pair_rounds
        if self._in_flight or not self._peers:
            return None
        if self._joining:
            return Plan(Kind.PULL)
        if self._service.finished:
            if self.method.kind is Kind.PULL:
                return self._within_budget(Plan(Kind.PULL))
            untold = {peer: 1.0 for peer in self._peers if peer not in self._service.told_finished}
            return Plan(None, peers=untold or None)
        plan = self.method.plan(self._rng)
        if plan is None:
            return None
        if plan.kind is Kind.PAIR:
            if not self._parts.proposals.engage(self._applied_pairs):
                return None  # it takes part in a peer's
            self._applied_pairs = []
        return self._within_budget(plan) if plan.kind is Kind.PULL else plan

    def _within_budget(self, plan: Plan) -> Plan | None:
        fraction = self._budget.next_fraction(self._monotonic_s(), self._service.step_interval_s)
        return None if fraction is None else replace(plan, fraction=min(fraction, plan.fraction))

    def _ask(self, plan: Plan, snapshot: Snapshot) -> Ask:
        self._in_flight = True
        exchange = NO_EXCHANGE
        if plan.kind in (Kind.PUSH, Kind.PAIR):
            exchange = self._parts.proposals.open(snapshot)
        if plan.kind is Kind.PUSH:
            self.method.gave(plan.mass)
        self._wait_s = max(self.config.wait_s, plan.wait_s + _HAND_OVER_S if plan.wait_s > 0 else 0.0)
        return Ask(
            snapshot,
            plan.kind,
            peers=plan.peers,
            fraction=plan.fraction,
            mass=plan.mass,
            wait_s=plan.wait_s,
            exchange=exchange,
            joining=self._joining,
            finished=self._service.finished,
        )

    def _hand_out(self, snapshot: Snapshot, ask: Ask | None, pairs: Sequence[bytes], *, serving: bool) -> None:
        """Serve a snapshot that is complete, and have an exchange made with it; in any thread, one at a time."""
        self._publisher.hand_out(snapshot, serving=serving)
        for exchange in pairs:
            self._parts.proposals.disengage(exchange)
        if serving:
            self._transport.published()
        if ask is not None:
            self._transport.ask(ask)

    # --- What it did ----------------------------------------------------------------------------------------------

    def statistics(self) -> NodeStatistics:
        """What the node did so far. Any thread, any state."""
        counters = self._transport.counters
        return self._record.statistics(
            step=self._step,
            state=self._state,
            published=self._publisher.version,
            served=counters.served,
            bytes_out=counters.bytes_out + counters.shared_out * self._model.layout.total_bytes,
            protocol_errors=counters.protocol_errors,
            scores=self._parts.wiring.exchanger.flow_control.scores(),
            method=self.method.statistics(),
            faults={} if self._faults is None else self._faults.faults.counts(),
        )

    def _write_journal(self) -> None:
        if self._journal is not None:
            self._journal.close(_CLOSE_TIMEOUT_S)

    def _event(self, event: str, **fields: object) -> None:
        if self._journal is not None:
            self._journal.record(event, step=self._step, **fields)
