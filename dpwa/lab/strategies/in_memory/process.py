"""A whole trial in one process: `python -m dpwa.lab.strategies.in_memory.process TRIAL_DIR`.

Every node trains with the lab's training loop and is a node of dpwa, with the same methods, exchanges and blends as
between processes; only the way between two nodes is a function call, and time is virtual. Two runs with one seed give
the same models to the bit, on one machine and with one version of torch. The process evaluates what it has trained:
another one would spend seconds on importing torch.

Runs in: the training thread.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.config.data_rate import bytes_per_s
from dpwa.lab.strategies.dpwa import did_by_node
from dpwa.lab.strategies.in_memory.network import Link, VirtualNetwork, VirtualTransport
from dpwa.lab.strategies.in_memory.virtual_time import VirtualTime
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.assignment import data_of, model_of, order_seed, recipe_of, samples_of_node
from dpwa.lab.training.data import DataSet
from dpwa.lab.training.evaluation import evaluate
from dpwa.lab.training.loop import Task, steps
from dpwa.lab.training.losses import LOSSES
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.strategy import Strategy
from dpwa.node.node import Node
from dpwa.snapshot.state import Codec
from dpwa.transport.interface import Ends

__all__ = ["main", "run"]


def main(arguments: list[str]) -> None:
    """Trains the trial in the folder that the only argument names, and writes its result."""
    started_s = time.monotonic()
    torch.set_num_threads(1)  # sums in another order would be other models
    folder = TrialFolder(Path(arguments[0]))
    trial = folder.trial()
    data = data_of(trial, folder)
    run(trial, folder, data)
    wall_s = time.monotonic() - started_s
    write_json(folder.result_json, {**evaluate(folder, trial, data, exit_code=0), "wall_s": wall_s})


def run(trial: Trial, folder: TrialFolder, data: DataSet) -> None:
    """Trains all nodes of a trial to their ends, and leaves in its folder what its processes would have left."""
    virtual_time = VirtualTime()
    config = ClusterConfig.load(folder.cluster_yaml) if trial.kind.is_method else None
    network = VirtualNetwork(virtual_time, _link(trial, config))
    nodes = [_VirtualNode(trial, folder, rank, data, config, network) for rank in range(len(trial.process_names))]
    try:
        for node in nodes:
            node.begin()
        virtual_time.run()
    finally:
        for node in nodes:
            node.close()


def _link(trial: Trial, config: ClusterConfig | None) -> Link:
    virtual = trial.settings.virtual
    rate = math.inf if virtual.bandwidth is None else bytes_per_s(virtual.bandwidth) or math.inf
    if config is None:
        return Link(virtual.latency_s, rate)
    codec = Codec.RAW if config.codec == "auto" else Codec[config.codec.upper()]
    return Link(virtual.latency_s, rate, codec, config.wait_s, config.timeout_s)


class _VirtualPeers(Strategy):
    """Trains as a node on a virtual network; see `dpwa.lab.strategies.dpwa.Peers` for its twin between processes."""

    def __init__(self, config: ClusterConfig, name: str, network: VirtualNetwork) -> None:
        self._config, self._name, self._network = config, name, network
        self.transport: VirtualTransport | None = None
        self._node: Node | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._tensors = TorchModel(model, self._config, optimizer=optimizer)
        self._node = Node(
            self._config,
            self._name,
            self._tensors,
            make_transport=self._transport_of,
            monotonic_s=self._network.time.clock,
        )
        self._node.start()

    def _transport_of(self, wiring: Ends) -> VirtualTransport:
        self.transport = VirtualTransport(self._network, self._name, wiring)
        return self.transport

    def after_step(self, loss: Tensor) -> None:
        """See `Strategy.after_step`."""
        if self._node is not None:
            self._node.step(float(loss))

    def finishing(self) -> Iterator[None]:
        """The node's last turns, until all others have finished, too."""
        if self._node is not None:
            yield from self._node.finishing()

    def did(self) -> dict[str, float]:
        """See `Strategy.did`."""
        return super().did() if self._node is None else did_by_node(self._node.statistics())

    def die(self) -> None:
        """Be gone, without a word to anybody."""
        self._network.leave(self._name)

    def close(self) -> None:
        """See `Strategy.close`."""
        if self._node is not None:
            self._node.close()


class _VirtualNode:
    """One node's training in virtual time: a step is computed at once, and counts when its time is over.

    Args:
        trial: the trial.
        folder: its folder.
        rank: of the node, from 0.
        data: the data set.
        config: the cluster; None for a process that trains alone.
        network: of all nodes.
    """

    def __init__(
        self,
        trial: Trial,
        folder: TrialFolder,
        rank: int,
        data: DataSet,
        config: ClusterConfig | None,
        network: VirtualNetwork,
    ) -> None:
        settings, name = trial.settings, trial.process_names[rank]
        self._network, self._time = network, network.time
        self._strategy = Strategy() if config is None else _VirtualPeers(config, name, network)
        self._strategy.loss = LOSSES[settings.loss]
        slow, kill = settings.slow, settings.kill
        self._step_s = settings.virtual.step_s * (slow.factor if slow is not None and slow.node == rank + 1 else 1.0)
        self._jitter = settings.virtual.jitter
        self._rng = random.Random(f"{trial.seed}/{name}/virtual")  # noqa: S311  (no secret)
        shard = samples_of_node(trial, data, rank)
        recipe = recipe_of(trial, len(shard), rank)
        self._last_step = math.inf
        if kill is not None and kill.node == rank + 1:
            steps_in_all = recipe.total_steps or 0
            self._last_step = min(math.ceil(kill.at * steps_in_all), steps_in_all - 1)
        self._steps = 0
        self._waiting = 0  # counts the waits, so that the end of an earlier one is not taken for that of a later
        model = model_of(trial, data)
        self._merges = config is not None and config.merge_at_end
        self._turns: Iterator[None] = iter(())
        self._recorder = Recorder(
            folder,
            trial.process_names,
            name,
            model,
            rounds=trial.rounds,
            did=self._strategy.did,
            clock=self._time.clock,
            meets=False,
        )
        self._training: Iterator[None] = steps(
            Task(model, shard=shard, prepare=data.prepare),
            recipe,
            seed=order_seed(trial, rank),
            strategy=self._strategy,
            watch=self._recorder,
        )

    def begin(self) -> None:
        """Get ready, and compute the first step."""
        self._compute()

    def _compute(self) -> None:
        """Let the strategy hear of the step that was computed, and compute the next one."""
        if next(self._training, _ENDED) is _ENDED:
            if isinstance(self._strategy, _VirtualPeers):
                self._turns = self._strategy.finishing()
                self._finish()
                self._network.published()
            return
        if self._steps >= self._last_step and isinstance(self._strategy, _VirtualPeers):
            self._recorder.write_last_word()
            self._strategy.die()
            return
        self._steps += 1
        # Lognormal with mean 1: what a shared machine does to equal steps.
        spread = self._rng.lognormvariate(-(self._jitter**2) / 2, self._jitter) if self._jitter else 1.0
        self._time.after(self._step_s * spread, self._step_over)

    def _step_over(self) -> None:
        """The time of a step is over: it may have to wait for its exchange."""
        transport = self._strategy.transport if isinstance(self._strategy, _VirtualPeers) else None
        longest_s = 0.0 if transport is None else transport.longest_wait_s
        if transport is None or longest_s <= 0.0:
            self._compute()
            return
        self._waiting += 1
        transport.on_arrival(partial(self._wait_over, self._waiting))
        self._time.after(longest_s, partial(self._wait_over, self._waiting))

    def _wait_over(self, wait: int) -> None:
        if wait == self._waiting:
            self._waiting += 1
            self._compute()

    def _finish(self) -> None:
        """Take part in what the others still do, and in the merge, a turn in each of what would be steps."""
        if next(self._turns, _ENDED) is not _ENDED:
            self._time.after(self._step_s, self._finish)
        elif self._merges:
            self._recorder.write_merged()

    def close(self) -> None:
        """End the node."""
        self._strategy.close()


_ENDED = object()


if __name__ == "__main__":
    main(sys.argv[1:])
