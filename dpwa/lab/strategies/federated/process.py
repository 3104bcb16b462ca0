"""One process of fedavg or fedprox: a client, or the server.

Must not know: how a round works. Runs in: the training thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dpwa.config.cluster import ClusterConfig
from dpwa.lab.strategies.federated.client import FederatedClient
from dpwa.lab.strategies.federated.node import FederatedNode
from dpwa.lab.strategies.federated.server import FederatedServer, Participant
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.strategy import Strategy

__all__ = ["make", "serve"]


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:  # noqa: ARG001 - the settings say it
    """The strategy of a client.

    Args:
        trial: of the strategy fedavg or fedprox.
        rank: of the client, from 0.
        size: number of processes, the server's included.
        folder: of the trial.
    """
    settings, names = trial.settings, trial.process_names
    return FederatedClient(
        lambda model: _make_node(folder, names[rank], model),
        Schedule.of(settings, trial.seed),
        rank,
        server=names[-1],
        mu=settings.mu if settings.strategy == "fedprox" else 0.0,
    )


def serve(trial: Trial, folder: TrialFolder, shard_sizes: Sequence[int], model: nn.Module) -> None:
    """Runs the server from start to end.

    Args:
        trial: the trial.
        folder: of the trial.
        shard_sizes: number of samples of each client.
        model: with the initial weights.
    """
    names = trial.process_names
    node = _make_node(folder, names[-1], model)
    try:
        clients = [Participant(name, size) for name, size in zip(trial.training_names, shard_sizes, strict=True)]
        schedule = Schedule.of(trial.settings, trial.seed)
        server = FederatedServer(node, schedule, clients, batch_size=trial.settings.batch_size)
        server.run(
            Recorder(
                folder, names, names[-1], model, rounds=trial.rounds, did=lambda: {"bytes_sent": server.bytes_sent}
            )
        )
    finally:
        node.close()


def _make_node(folder: TrialFolder, name: str, model: nn.Module) -> FederatedNode:
    config = ClusterConfig.load(os.environ.get("DPWA_CONFIG") or folder.cluster_yaml)
    return FederatedNode(config, name, model, run_dir=Path(os.environ.get("DPWA_RUN_DIR") or folder.path))
