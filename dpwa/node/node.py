"""The node: the one object that an adapter needs. It publishes, has exchanges made and applies them.

It imports no framework: a `Model` gives it what it needs. Runs in: every method in the
trainer's thread; `statistics` in any.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, DpwaError, InternalError, NodeClosed
from dpwa.exchange.leasing import Leases
from dpwa.exchange.messages import INCARNATION_BYTES
from dpwa.methods.base import ExchangeKind
from dpwa.node.assembly import assemble, outer_momentum, pacing_of
from dpwa.node.belonging import Belonging
from dpwa.node.boundary import Boundary
from dpwa.node.checkpoint import restore, to_keep
from dpwa.node.extended_model import ExtendedModel
from dpwa.node.publishing import SnapshotPublisher
from dpwa.node.record import NodeStatistics, Record, closing_fields
from dpwa.observe.endings import remark_on_training
from dpwa.observe.journal import Journal, node_folder
from dpwa.observe.process_use import started_ticks, write_process
from dpwa.snapshot.checksum import checksum_of
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.model import Model
from dpwa.snapshot.staging import first_not_finite
from dpwa.transport.faults import Faults, NodeFaults, SteeredPartition
from dpwa.transport.interface import MakeTransport, Transport
from dpwa.transport.zeromq import ZmqTransport

__all__ = ["Model", "Node"]

# All of `close` together stays below this.
_CLOSE_TIMEOUT_S = 1.5

# How often a node that has finished looks at what its peers have begun.
_FINISH_PAUSE_S = 0.02

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
        peers_restart: whether nodes that fail are started anew: `finish` waits longer for silent ones.
        launch_id: of the launch that has started all nodes of the cluster at once: those that go on from checkpoints
            are then of one lineage, as before. Empty: this node was started by itself.
        make_transport: a transport other than ZeroMQ, for tests and simulations.
        monotonic_s: the clock that scores and durations go by.

    Raises:
        ConfigError: the name is not in the config, the method or interpolation cannot be made, or the keys cannot be
            used.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        model: Model,
        *,
        run_dir: Path | None = None,
        peers_restart: bool = False,
        launch_id: str = "",
        make_transport: MakeTransport | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.name = config.node(name).name
        self.run_dir = run_dir
        self._launch_id = launch_id
        self._life = _Life.NEW
        self._pid = os.getpid()
        self._monotonic_s = monotonic_s
        self._peers = tuple(peer.name for peer in config.peers_of(name))
        self._has_peers = not config.is_alone
        self.method = config.method_for(name)
        self._model = ExtendedModel(model, self.method)
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._faults = self._make_faults()
        self._parts = assemble(
            config,
            name,
            run=config.run_id,
            incarnation=self._incarnation,
            layout=self._model.layout,
            method=self.method,
            monotonic_s=monotonic_s,
            faults=None if self._faults is None else self._faults.faults,
        )
        self._service = self._parts.wiring.service
        on_complete = self._note_snapshot if config.journal_checksums and run_dir is not None else None
        self._belonging = Belonging.of(
            self.name,
            self._parts.wiring.exchanger.meetings,
            self._event,
            None if run_dir is None else node_folder(run_dir, self.name),
        )
        self._publisher = SnapshotPublisher(self._model, self._service, self._snapshot_slots(), on_complete)
        self._transport: Transport = (
            make_transport(self._parts.wiring)
            if make_transport
            else ZmqTransport(config, name, self._parts.wiring, run_dir=run_dir)
        )
        self._record = Record(monotonic_s())
        self._journal = self._make_journal()
        outer = outer_momentum(config, model)
        self._boundary = Boundary(
            config,
            name,
            model=self._model,
            method=self.method,
            outer=outer,
            pacing=pacing_of(self._parts, self.method, outer, self._event),
            faults=self._faults,
            service=self._service,
            context=self._parts.context,
            publisher=self._publisher,
            transport=self._transport,
            record=self._record,
            event=self._event,
        )
        self._boundary.farewell.peers_restart = peers_restart

    def _snapshot_slots(self) -> int:
        # A round more is kept for neighbours that are a step behind.
        return self.config.snapshot_slots + (self.method.kind is ExchangeKind.GATHER)

    def _make_journal(self) -> Journal | None:
        if self.run_dir is None:
            return None
        return Journal(
            node_folder(self.run_dir, self.name),
            sample=lambda: self._record.metrics(self.statistics(), self._monotonic_s()),
            metrics_interval_s=self.config.metrics_interval_s,
            max_bytes=self.config.journal_max_bytes,
        )

    def _make_faults(self) -> NodeFaults | None:
        if not self.config.faults.kinds:
            return None
        run_dir = self.run_dir if self.config.faults.steered else None
        steered = None if run_dir is None else SteeredPartition(run_dir)
        return NodeFaults(
            Faults(self.config.faults, self.name, partial(self._event, "fault"), steered),
            folder=None if self.run_dir is None else node_folder(self.run_dir, self.name),
            pause=time.sleep,
            before_death=self._write_journal,
        )

    # --- Life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve the model and be ready for exchanges.

        Raises:
            ConfigError: the node's address cannot be listened on, or the run folder cannot be written.
            NodeClosed: the node was closed already, or was made before this process was forked.
        """
        self._check_process()
        if self._life is not _Life.NEW:
            raise NodeClosed(f"node {self.name} cannot be started: it is {self._life.value}")
        try:
            self._start_journal()
            if self._belonging is not None:
                self._belonging.begin()
            if self._has_peers:
                self._transport.start()
                if self._transport.shares_memory:
                    self._publisher.share(run_id=self.config.run_id, node=self.name, incarnation=self._incarnation)
                weights, ready = self._publisher.weights()
                begin = partial(self._boundary.doubts.begin, weights)
                begin() if ready is None else self._transport.defer(ready, begin)
            self._life = _Life.RUNNING
        finally:
            if self._life is not _Life.RUNNING:
                self.close()
        self._event(
            "start",
            run=self.config.run_id,
            incarnation=self._incarnation.hex(),
            peers=list(self._peers),
            layout=self._model.layout.fingerprint.hex(),
            pid=os.getpid(),
            process_started=started_ticks(os.getpid()),
            **asdict(self._model.inventory),
        )
        if self.config.is_newcomer and self._belonging is not None:
            with self._training():
                self._belonging.copy_a_model(self._boundary, self._check_running)

    def _start_journal(self) -> None:
        if self._journal is None or self.run_dir is None:
            return
        try:
            self._journal.start()
            write_process(node_folder(self.run_dir, self.name))
            resolved = self.run_dir / "config.yaml"
            if not resolved.exists():
                resolved.write_text(self.config.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"run folder {self.run_dir}: cannot be written ({error}); choose another with DPWA_RUN_DIR or --run-dir"
            ) from error

    def close(self) -> None:
        """End threads and connections within 2 s. May be called in any state, any number of times, from any thread.

        In a forked child it does nothing: all that could be closed is the parent's.

        Raises:
            InternalError: a background thread did not end in time, or had failed before.
        """
        if self._life is _Life.CLOSED or self.is_forked:
            return
        was_running = self._life is _Life.RUNNING
        self._life = _Life.CLOSED
        if was_running and self._belonging is not None:
            self._belonging.leave(self._parts.context.proposals.wake)
        deadline_s = time.monotonic() + _CLOSE_TIMEOUT_S
        try:
            self._transport.close(_CLOSE_TIMEOUT_S)
        finally:
            # Let go of all buffers at once: the node itself may be kept, for its statistics.
            if self._belonging is not None:
                self._belonging.close()
            self._boundary.close()
            self._publisher.close()
            self._parts.close()
            if self._journal is not None:
                try:
                    self._event("close", **{**self.method.statistics(), **self._closing()})
                finally:  # the numbers of a custom method may raise anything
                    self._journal.close(max(0.1, deadline_s - time.monotonic()))
        if was_running:
            self._raise_background_error()

    def _closing(self) -> dict[str, object]:
        did = self.statistics()
        fields = closing_fields(did)
        can_ask = self.config.is_open or bool(self.config.asked_by(self.name))
        remark = remark_on_training({**fields, "step": did.step}) if can_ask else ""
        return {**fields, "remark": remark} if remark else fields

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that made the node."""
        return self._pid != os.getpid()

    def _check_process(self) -> None:
        if self.is_forked:
            raise NodeClosed(
                f"this is a forked child of node {self.name} (process {self._pid}): the node lives in the parent "
                "alone. Train there, or make a node in the child with a name of its own"
            )

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Around what the trainer does: `close` may come at any point of it, from another thread or a signal's handler.

        It takes away what a step works with; what fails then is no error of its own.
        """
        self._check_running()
        try:
            yield
        except Exception as error:
            if self._life is _Life.CLOSED:
                raise NodeClosed(f"node {self.name} was closed in the middle of a step") from error
            raise

    def _check_running(self) -> None:
        self._check_process()
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
        """Count a training step: apply finished exchanges, publish, begin the next one.

        The order matters: the snapshot that the next exchange refers to must hold the blend before it, or that blend
        would count twice.

        Args:
            loss: of the step; None if unknown.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        with self._training():
            began_s = self._monotonic_s()
            self._boundary.advance(loss)
            self._boundary.publish_and_ask()
            self._record.stepped(began_s, self._boundary.resume())

    def update_send(self, loss: float | None = None) -> None:
        """First half of the 2017 dpwa's pair, called before a batch: publish and ask for an exchange.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        with self._training():
            self._boundary.note_loss(loss)
            self._boundary.publish_and_ask()

    def update_wait(self, loss: float | None = None) -> None:
        """Second half of the pair, called after the batch: apply the exchange, waiting up to `wait_ms` for it.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        with self._training():
            began_s = self._monotonic_s()
            self._boundary.advance(loss)
            self._record.stepped(began_s, self._boundary.resume())

    def finish(self, timeout_s: float | None = None, *, merge: bool | None = None) -> bool:
        """After the last step: go on serving and blending until every peer has finished too, or is left behind.

        The node takes part in what its peers begin. By itself it only goes on pulling (`pull`, where no merge follows),
        or passes on what peers that train push to it (`gosgd`, `sgp`). When a peer is left behind, `farewell.py` says;
        a warning names it, and one before that whom a long wait is for.

        Args:
            timeout_s: wait at most so long; None: as long as peers train.
            merge: then let all nodes that finish so have one model, the mean of their last ones; see `merging.py`.
                None: as the config's `merge_at_end` says.

        Returns:
            False if peers are left behind, or a merge was wanted and this node has no merged model.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        turns = self.finishing(timeout_s, merge=merge)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return bool(end.value)
            self.pause()

    def pause(self) -> None:
        """Between two turns of `finishing`: applies what comes, and ends early if that is to be passed on.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        with self._training():
            self._boundary.pause(_FINISH_PAUSE_S)

    def finishing(self, timeout_s: float | None = None, *, merge: bool | None = None) -> Generator[None, None, bool]:
        """`finish` in turns, for whoever has something else to do, or another time, between them; else `pause`.

        Args:
            timeout_s: see `finish`.
            merge: see `finish`.

        Returns:
            What `finish` returns.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        deadline_s = math.inf if timeout_s is None else self._monotonic_s() + timeout_s
        with self._training():
            self._begin_to_finish(merge=self.config.merge_at_end if merge is None else merge)
            while (answer := self._finish_turn(deadline_s - self._monotonic_s())) is None:
                self._check_running()
                yield
            return answer

    def _begin_to_finish(self, *, merge: bool) -> None:
        if merge:
            self._boundary.merging.begin()
        self._event("finishing")
        self._service.tell(finished=True)
        self._boundary.farewell.begin(self._monotonic_s())

    def _finish_turn(self, left_s: float) -> bool | None:
        """Apply what has come, and begin the next exchange; the answer of `finish` if there is nothing more to do."""
        self._boundary.collect(min(_FINISH_PAUSE_S, max(0.0, left_s)))
        now_s = self._monotonic_s()
        if self._boundary.may_leave(now_s) or left_s <= 0.0 or self.is_asked_to_leave:
            self._boundary.leave()
            is_merged = self._boundary.merging.end()
            return self._boundary.farewell.end(now_s) and is_merged
        self._boundary.publish_and_ask()
        return None

    @property
    def is_asked_to_leave(self) -> bool:
        """Whether `dpwa leave` has asked this node to end its training, which is up to its script or adapter."""
        return self._belonging is not None and self._belonging.is_asked_to_leave()

    def lease_blocks(self, samples: int, *, block_samples: int | None = None, seed: object = 0) -> Leases:
        """Share out a data set of so many samples among the nodes, block by block, so that fast nodes take more.

        All nodes call it with the same numbers. `adapters/sampler.py` shows how the blocks are used.

        Args:
            samples: how many the data set has.
            block_samples: in one block; None: so many that each node has about 100 blocks in an epoch.
            seed: of the order of the samples: anything that is written in the same way on all nodes.

        Raises:
            NodeClosed: the node is not running.
            ConfigError: a number is out of range, these samples are shared out already, nodes may join, or one cannot
                be asked.
        """
        self._check_running()
        if self.config.is_open:
            raise ConfigError(
                f"node {self.name}: data are shared out among the nodes of a cluster file; with `join` nobody knows "
                "them all: give each node data of its own"
            )
        if silent := [node.name for node in self.config.nodes if not node.serve]:
            raise ConfigError(
                f"node {self.name}: data are shared out by asking each other, and {', '.join(silent)} cannot be asked "
                "(serve: false): give each node data of its own"
            )
        leasing, was_begun = self._parts.leasing, self._parts.leasing.has_any
        leases = leasing.share_out(samples, block_samples, seed)
        if not was_begun:
            leasing.check = self._check_running
            if self._has_peers:
                self._transport.ask_for_leases(leasing)
        return leases

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
        self._check_running()
        deadline_s = time.monotonic() + timeout_s
        while self.method.kind is ExchangeKind.PUSH and self._boundary.in_flight and time.monotonic() < deadline_s:
            with self._training():
                self._boundary.collect(_SETTLE_PAUSE_S)
        return {**to_keep(self._boundary, self.method, self.config.method), "members": self.known_members()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, before the first step; the model has been loaded.

        Raises:
            ConfigError: it is of another method or model, or damaged.
        """
        restore(self._boundary, self.method, self.config.method, self.name, state, launch_id=self._launch_id)
        self._boundary.doubts.forget_origin()

    def known_members(self) -> list[dict[str, str | int]]:
        """Name, host and port of each member that is not in the file, for a checkpoint. Any thread."""
        return [] if self._belonging is None else self._belonging.known(self._peers)

    def remember_members(self, members: Iterable[Mapping[str, Any]]) -> None:
        """What `known_members` gave in a former life: whom to ask, beside the addresses of `join`. Before `start`.

        Raises:
            ConfigError: it is damaged.
        """
        if self._belonging is not None:
            self._belonging.remember(members)

    # --- What it did ----------------------------------------------------------------------------------------------

    def statistics(self) -> NodeStatistics:
        """What the node did so far. Any thread, any state."""
        counters = self._transport.counters
        return self._record.statistics(
            step=self._boundary.step,
            state=self._boundary.state,
            published=self._publisher.version,
            served=counters.served,
            bytes_out=counters.bytes_out + counters.shared_out * self._model.layout.total_bytes,
            protocol_errors=counters.protocol_errors,
            scores=self._parts.context.flow_control.scores(),
            method=self.method.statistics(),
            faults={} if self._faults is None else self._faults.faults.counts(),
            inventory=self._model.inventory,
            merged_models=self._boundary.merging.held.models,
            members={} if self._belonging is None else self._belonging.states(),
            ignored_entries={} if self._belonging is None else self._belonging.ignored(),
        )

    def _note_snapshot(self, snapshot: Snapshot) -> None:
        fields: dict[str, object] = {"version": snapshot.version, "checksum": checksum_of(snapshot.memory)}
        if tensor := first_not_finite(self._model.layout, snapshot.memory):
            fields["not_finite"] = tensor
        self._event("snapshot", **fields)

    def note(self, event: str, /, **fields: object) -> None:
        """Write an event of the adapter into the journal. Any thread."""
        self._event(event, **fields)

    def _write_journal(self) -> None:
        if self._journal is not None:
            self._journal.close(_CLOSE_TIMEOUT_S)

    def _event(self, event: str, /, **fields: object) -> None:
        if self._journal is not None:
            self._journal.record(event, **{**fields, "step": self._boundary.step})
