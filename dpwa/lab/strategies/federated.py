"""One process of fedavg or fedprox: a client, or the server.

Must not know: how a round works. Runs in: the training thread.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import nn

from dpwa.config import ClusterConfig
from dpwa.examples.training import Task, train
from dpwa.lab.cell import Cell, CellFolder
from dpwa.lab.data import DataSet
from dpwa.lab.handicaps import Handicap
from dpwa.lab.recording import Recorder
from dpwa.lab.strategies.federated_client import FederatedClient
from dpwa.lab.strategies.federated_node import FederatedNode
from dpwa.lab.strategies.federated_rounds import Schedule
from dpwa.lab.strategies.federated_server import Client, FederatedServer
from dpwa.lab.worker import order_seed, parts_of_nodes, recipe_of, samples_of_node

__all__ = ["run_process"]


def run_process(cell: Cell, folder: CellFolder, rank: int, data: DataSet, model: nn.Module) -> None:
    """Trains a client's part of a cell, or serves.

    Args:
        cell: the cell.
        folder: of the cell.
        rank: of this process, from 0; the server's is the last.
        data: the whole data set.
        model: with the initial weights.
    """
    if rank == cell.settings.nodes:
        _serve(cell, folder, data, model)
    else:
        _train(cell, folder, rank, data, model)


def _serve(cell: Cell, folder: CellFolder, data: DataSet, model: nn.Module) -> None:
    names = cell.process_names
    node = _make_node(folder, names[-1], model)
    try:
        sizes = [len(part) for part in parts_of_nodes(cell, data)]
        clients = [Client(name, size) for name, size in zip(names, sizes, strict=False)]  # the server has none
        schedule = Schedule.of(cell.settings, cell.seed)
        server = FederatedServer(node, schedule, clients, batch_size=cell.settings.batch_size)
        server.run(Recorder(folder, names, names[-1], model, rounds=cell.rounds, bytes_sent=lambda: server.bytes_sent))
    finally:
        node.close()


def _train(cell: Cell, folder: CellFolder, rank: int, data: DataSet, model: nn.Module) -> None:
    names, settings = cell.process_names, cell.settings
    schedule = Schedule.of(settings, cell.seed)
    strategy = FederatedClient(
        lambda made: _make_node(folder, names[rank], made),
        schedule,
        rank,
        server=names[-1],
        mu=settings.mu if settings.strategy == "fedprox" else 0.0,
    )
    crowding = schedule.per_round / len(os.sched_getaffinity(0))
    recorder = Recorder(
        folder, names, names[rank], model, rounds=cell.rounds, handicap=Handicap(settings, rank + 1, crowding)
    )
    shard = samples_of_node(cell, data, rank).to(next(model.parameters()).device)
    task = Task(title=cell.row, model=model, shard=shard, held_out=data.held_out, prepare=data.prepare)
    recipe = replace(recipe_of(cell, len(task.shard), rank), epochs=schedule.epochs_of(rank), total_steps=None)
    try:
        train(task, recipe, seed=order_seed(cell, rank), strategy=strategy, watch=recorder)
        strategy.finish()
    finally:
        strategy.close()


def _make_node(folder: CellFolder, name: str, model: nn.Module) -> FederatedNode:
    config = ClusterConfig.load(os.environ.get("DPWA_CONFIG") or folder.cluster_yaml)
    return FederatedNode(config, name, model, run_dir=Path(os.environ.get("DPWA_RUN_DIR") or folder.path))
