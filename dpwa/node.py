"""The node: the one object that an adapter needs. It publishes, has exchanges made and applies them.

Must not know: torch or any other framework (a `Model` gives it what it needs), sockets. Runs in: every method in the
trainer's thread; `statistics` in any, `_hand_out` in the publish thread for copies that a GPU makes.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from dpwa.blending import Staging, Values
from dpwa.config import ClusterConfig
from dpwa.errors import ConfigError, DpwaError, InternalError, NodeClosed
from dpwa.exchange import Ask, Exchange, Exchanger, Outcome
from dpwa.interpolation import LossSmoother, State
from dpwa.observe.journal import Journal, node_folder
from dpwa.parts import Rotation
from dpwa.peers.budget import Budget
from dpwa.peers.flow_control import FlowControl
from dpwa.peers.link_codecs import LinkCodecs
from dpwa.peers.membership import Membership
from dpwa.record import NodeStatistics, Record, exchange_fields
from dpwa.snapshot import Buffer, BufferPool, Layout, Snapshot
from dpwa.transport.interface import MakeTransport, Transport, Wiring
from dpwa.transport.service import Service
from dpwa.transport.shared_memory import Segment, SegmentUnusable, remove_stale_segments
from dpwa.transport.wire import INCARNATION_BYTES
from dpwa.transport.zeromq import ZmqTransport

__all__ = ["Model", "Node"]

_logger = logging.getLogger("dpwa")

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


class Model(Protocol):
    """What a node needs of a model; the adapters implement it."""

    @property
    def layout(self) -> Layout:
        """The exchanged tensors."""

    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
        """Copy the exchanged tensors into a buffer in the order of the layout. The same few buffers come again.

        Returns:
            None if the bytes are there. Else a function that blocks until they are, of the values of this moment, and
            until the values of the last `blend` are no longer read. It is called once, from any thread.
        """

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """Apply an exchange in place: add `factor` times a difference, or go the share `factor` towards a value.

        The values may be read after the return, until the function that the next `copy_into` returns has ended.
        """


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
        ConfigError: the name is not in the config, or the interpolation cannot be made.
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
        self._model = model
        self._life = _Life.NEW
        self._monotonic_s = monotonic_s
        self._peers = tuple(peer.name for peer in config.peers_of(name))
        # Own streams of random numbers per node: with one seed for all, every node would make the same choices.
        self._rng = random.Random(f"{config.seed}/{name}/pull")  # noqa: S311  (no secret)
        self._smoother = LossSmoother(config.loss_smoothing)
        self._segment: Segment | None = None
        self._pool = BufferPool(self._make_buffer, config.snapshot_slots)
        self._budget = Budget(
            config.bandwidth_limit_bytes_per_s,
            model_bytes=model.layout.total_bytes,
            most_fraction=config.pull_fraction,
        )
        self._staging = Staging(model.layout, absolute=config.blend == "absolute")
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._membership = Membership(self._peers)
        self._shared_slots: set[int] = set()
        self._wiring = self._wire()
        self._service = self._wiring.service
        self._transport: Transport = (
            make_transport(self._wiring) if make_transport else ZmqTransport(config, name, self._wiring)
        )
        self._record = Record(monotonic_s())
        self._journal = self._make_journal()
        self._in_flight = False
        # A node joins with its first exchange; until then it serves nothing, so that a restarted node does not
        # spread its untrained model among peers that have trained for hours.
        self._joining = bool(self._peers)
        self._join_tries = min(len(self._peers), _JOIN_TRIES)
        self._state = State(loss=None, clock=0.0)
        self._step = 0
        self._version = 0
        self._resumed_s = monotonic_s()

    def _wire(self) -> Wiring:
        config, layout = self.config, self._model.layout
        service = Service(
            run_id=config.run_id, incarnation=self._incarnation, layout=layout, membership=self._membership
        )
        rng = random.Random(f"{config.seed}/{self.name}/peer")  # noqa: S311  (no secret)
        exchanger = Exchanger(
            run_id=config.run_id,
            node=self.name,
            incarnation=self._incarnation,
            layout=layout,
            staging=self._staging,
            interpolator=config.interpolator(),
            flow_control=FlowControl(self._peers, config.flow_control, rng),
            membership=self._membership,
            rotation=Rotation(layout, random.Random(f"{config.seed}/{self.name}/part")),  # noqa: S311
            link_codecs=LinkCodecs(config.codec),
            monotonic_s=self._monotonic_s,
        )
        return Wiring(service, exchanger)

    def _make_journal(self) -> Journal | None:
        if self.run_dir is None:
            return None
        return Journal(
            node_folder(self.run_dir, self.name),
            sample=lambda: self._record.metrics(self.statistics(), self._monotonic_s()),
            metrics_interval_s=self.config.metrics_interval_s,
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
                self._share_memory()
            self._life = _Life.RUNNING
        finally:
            if self._life is not _Life.RUNNING:
                self.close()
        self._event("start", run=self.config.run_id, incarnation=self._incarnation.hex(), peers=list(self._peers))

    def _share_memory(self) -> None:
        """Let peers of this host read the snapshots from shared memory, where there is any."""
        if not self._transport.shares_memory:
            return
        # The port is bound: no other life of this node is running, and what one left behind is nobody's.
        remove_stale_segments(self.config.run_id, [self.name])
        try:
            self._segment = Segment(
                run_id=self.config.run_id,
                node=self.name,
                incarnation=self._incarnation,
                size_bytes=self._model.layout.total_bytes,
                slots=self.config.snapshot_slots,
            )
        except SegmentUnusable as error:
            _logger.warning("node %s: %s; its snapshots are streamed", self.name, error)
            return
        self._service.token = self._segment.token

    def _make_buffer(self, index: int) -> Buffer:
        buffer = self._segment.slot(index) if self._segment is not None else None
        if buffer is None:
            return np.empty(self._model.layout.total_bytes, np.uint8)
        self._shared_slots.add(index)
        return buffer

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
            self._release_memory()
            if self._journal is not None:
                self._event("close")
                self._journal.close(max(0.1, deadline_s - time.monotonic()))
        if was_running:
            self._raise_background_error()

    def _release_memory(self) -> None:
        """Let go of all buffers at once: the node itself may be kept, for its statistics."""
        self._service.snapshot = None
        self._pool.close()
        self._staging.close()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

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
        """Tell that a training step was made: apply a finished exchange, publish, ask for the next.

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
        self._collect(self.config.wait_s)
        self._publish_and_ask(self._rng.random() < self.config.pull_probability)
        self._resumed_s = self._monotonic_s()

    def update_send(self, loss: float | None = None) -> None:
        """First half of the 2017 dpwa's pair, called before a batch: publish and ask for an exchange.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._note_loss(loss)
        self._publish_and_ask(self._rng.random() < self.config.pull_probability)

    def update_wait(self, loss: float | None = None) -> None:
        """Second half of the pair, called after the batch: apply the exchange, waiting up to `wait_ms` for it.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        self._check_running()
        self._advance(loss)
        self._collect(self.config.wait_s)
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
        flow_control = self._wiring.exchanger.flow_control
        while True:
            self._collect(min(_FINISH_PAUSE_S, max(0.0, deadline_s - time.monotonic())))
            present = [peer for peer in self._peers if not flow_control.is_failing(peer)]
            training = [peer for peer in present if not self._membership[peer].finished]
            # Whoever leaves unannounced is taken for a failure by those that still ask it.
            if (not training and self._service.told_finished.issuperset(present)) or time.monotonic() >= deadline_s:
                self._event("finish", still_training=training)
                return not training
            self._publish_and_ask(asking=True)
            self._check_running()
            time.sleep(_FINISH_PAUSE_S)

    def log(self, **values: object) -> None:
        """Add values of the training script (epoch, test accuracy …) to every further line of metrics."""
        self._record.log(values)

    def _advance(self, loss: float | None) -> None:
        self._step += 1
        self._state = State(self._state.loss, self._state.clock + 1.0)
        self._note_loss(loss)
        self._service.step = self._step
        interval_s = min(self._monotonic_s() - self._resumed_s, _LONGEST_STEP_S)
        self._service.step_interval_s += _INTERVAL_WEIGHT * (interval_s - self._service.step_interval_s)

    def _note_loss(self, loss: float | None) -> None:
        if loss is not None:
            self._state = State(self._smoother.update(loss), self._state.clock)

    def _collect(self, wait_s: float) -> None:
        """Take the finished exchange, if there is one, and apply it."""
        if not self._in_flight:
            return
        exchange = self._transport.take(wait_s)
        if exchange is None:
            return
        self._in_flight = False
        if exchange.outcome is Outcome.BLENDED and exchange.peer_state is not None:
            self._apply(exchange, exchange.peer_state)
        if exchange.received_bytes and not exchange.is_shared:
            # A joining node takes the whole model, whatever part the budget had planned.
            self._budget.spent(exchange.received_bytes, self._monotonic_s(), complete=not exchange.ask.joining)
        if exchange.ask.finished and exchange.peer is not None and not exchange.outcome.is_failure:
            self._service.told_finished.add(exchange.peer)
        self._record.note(exchange)
        self._event("exchange", **exchange_fields(exchange, self._step))
        if self._joining:
            self._join_tries -= 1
            has_joined = exchange.outcome in (Outcome.BLENDED, Outcome.NO_PEER)
            self._joining = not has_joined and self._join_tries > 0

    def _apply(self, exchange: Exchange, peer_state: State) -> None:
        factor = exchange.factor
        if factor > 0.0:
            self._model.blend(self._staging.values, factor)
            own = self._state
            base = exchange.ask.reference.state.clock if self.config.blend == "delta" else own.clock
            self._state = State(own.loss, own.clock + factor * exchange.share * (peer_state.clock - base))

    def _publish_and_ask(self, asking: bool) -> None:  # noqa: FBT001  (private, and its callers name it)
        fraction = self._fraction_to_ask() if asking or self._joining else None
        if fraction is None and not self._service.wanted:
            return  # nobody would look at it
        taken = self._take_snapshot()
        if taken is None:
            return
        snapshot, ready = taken
        ask = None
        if fraction is not None:
            self._in_flight = True
            ask = Ask(snapshot, fraction, joining=self._joining, finished=self._service.finished)
        hand_out = partial(self._hand_out, snapshot, ask, serving=not self._joining)
        if not self._joining:
            self._service.wanted = False  # before the swap: a pull that comes between asks for one publish too many
        if ready is None:
            hand_out()
        else:
            self._transport.defer(ready, hand_out)

    def _fraction_to_ask(self) -> float | None:
        """How much of the parameters to ask for in this step; None for nothing."""
        if self._in_flight or not self._peers:
            return None
        return self._budget.next_fraction(self._monotonic_s(), self._service.step_interval_s)

    def _take_snapshot(self) -> tuple[Snapshot, Callable[[], None] | None] | None:
        """Copy the model, and what blocks until the copy is there if it is not yet. Never waits.

        Returns:
            None if slow peers hold all buffers.
        """
        lease = self._pool.lease()
        if lease is None:
            self._record.publish_skipped += 1
            return None
        self._version += 1
        slot = lease.index if lease.index in self._shared_slots else None
        if self._segment is not None and slot is not None:
            self._segment.mark(slot, 0)
        ready = self._model.copy_into(lease.buffer)
        return Snapshot(self._version, self._step, self._monotonic_s(), self._state, slot, lease.memory), ready

    def _hand_out(self, snapshot: Snapshot, ask: Ask | None, *, serving: bool) -> None:
        """Serve a snapshot that is complete, and have an exchange made with it; in any thread, one at a time."""
        if self._segment is not None and snapshot.slot is not None:
            self._segment.mark(snapshot.slot, snapshot.version)
        if serving:
            self._service.snapshot = snapshot
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
            published=self._version,
            served=counters.served,
            bytes_out=counters.bytes_out + counters.shared_out * self._model.layout.total_bytes,
            protocol_errors=counters.protocol_errors,
            scores=self._wiring.exchanger.flow_control.scores(),
        )

    def _event(self, event: str, **fields: object) -> None:
        if self._journal is not None:
            self._journal.record(event, step=self._step, **fields)
