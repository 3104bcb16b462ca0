"""One process of a cell: `python -m dpwa.lab.worker CELL_DIR`, started by `dpwa launch` or mpiexec.

It finds its place among the others, loads its part of the data, and trains by the one training function with the hooks
of its strategy. It evaluates nothing.

Must not know: other cells, how processes are started. Runs in: the training thread.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import torch

from dpwa.examples.devices import device_of, rank_of_this_node
from dpwa.examples.samples import Samples
from dpwa.lab.strategies.base import Strategy
from dpwa.lab.strategies.federated.rounds import Schedule
from dpwa.lab.study.cell import Cell, CellFolder
from dpwa.lab.study.kinds import Start
from dpwa.lab.training.data import DataSet, data_dir_of_environment, load, with_wrong_labels
from dpwa.lab.training.handicaps import Handicap, shares_of_work
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.models import build
from dpwa.lab.training.partition import partition
from dpwa.lab.training.recording import Recorder
from dpwa.transport.sockets import keep_freed_memory

__all__ = ["data_of", "main", "order_seed", "parts_of_nodes", "recipe_of", "samples_of_node"]

# Where the classes of the strategies are; each file has a function `make`.
_FILES = {
    "fedavg": "federated",
    "fedprox": "federated",
    "param_avg": "mpi",
    "w_param_avg": "mpi",
    "parallel_sgd": "mpi",
    "ddp": "torch_distributed",
    "allreduce_every_h": "torch_distributed",
    "custom_data_parallel": "data_parallel",
}


def main(arguments: list[str]) -> None:
    """Trains this process's part of a cell.

    Args:
        arguments: the cell's folder.
    """
    folder = CellFolder(Path(arguments[0]))
    cell = folder.cell()
    rank = _rank(cell)
    name = cell.process_names[rank]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # A node of dpwa does this for its frames, and torch's steps get a fifth faster by it: so all strategies have it.
    keep_freed_memory()
    data = data_of(cell, folder)
    device = device_of(rank)
    model = build(cell.settings.model, data.shape, data.classes, seed=cell.seed).to(device)
    if name not in cell.training_names:
        from dpwa.lab.strategies.federated.process import serve  # noqa: PLC0415 - only for these

        serve(cell, folder, [len(part) for part in parts_of_nodes(cell, data)], model)
        return
    strategy = _strategy(cell, folder, rank)
    recorder = Recorder(
        folder,
        cell.process_names,
        name,
        model,
        rounds=cell.rounds,
        saves=rank == 0 or not cell.kind.splits_batch,
        bytes_sent=lambda: strategy.bytes_sent,
        handicap=Handicap(cell.settings, rank + 1, crowding=_crowding(cell)),
    )
    task = Task(model, shard=samples_of_node(cell, data, rank).to(device), prepare=data.prepare)
    try:
        train(
            task, recipe_of(cell, len(task.shard), rank), seed=order_seed(cell, rank), strategy=strategy, watch=recorder
        )
        strategy.finish()
    finally:
        strategy.close()


def data_of(cell: Cell, folder: CellFolder) -> DataSet:
    """The data set of a cell, from the folder that the variable DPWA_DATA_DIR names."""
    return load(cell.settings.data, data_dir_of_environment(), folder.data_cache(cell.settings.data))


def parts_of_nodes(cell: Cell, data: DataSet) -> list[torch.Tensor]:
    """Indices of the training samples that each node holds, the same in every process."""
    labels = data.train.labels.numpy()
    parts = partition(labels, cell.settings.partition, cell.settings.nodes, seed=cell.seed)
    return [torch.from_numpy(part) for part in parts]


def samples_of_node(cell: Cell, data: DataSet, rank: int) -> Samples:
    """What one process trains on: its part, or all of the data where there is only one model.

    Args:
        cell: the cell.
        data: the whole data set.
        rank: of the process, from 0.
    """
    kind, wrong = cell.kind, cell.settings.wrong_labels
    is_whole = kind.splits_batch or kind.is_one_process
    if is_whole and wrong is None:
        return data.train
    parts = parts_of_nodes(cell, data)
    if is_whole and wrong is not None:
        part = parts[wrong.node - 1]
        labels = data.train.labels.clone()
        labels[part] = _worsened(cell, data, part).labels
        return Samples(data.train.images, labels)
    if wrong is not None and wrong.node == rank + 1:
        return _worsened(cell, data, parts[rank])
    return data.train.select(parts[rank])


def _worsened(cell: Cell, data: DataSet, part: torch.Tensor) -> Samples:
    wrong = cell.settings.wrong_labels
    share = 0.0 if wrong is None else wrong.share
    return with_wrong_labels(data.train.select(part), share, data.classes, seed=cell.seed)


def recipe_of(cell: Cell, shard_size: int, rank: int) -> Recipe:
    """How a process trains.

    Args:
        cell: the cell.
        shard_size: samples that it holds.
        rank: of the process, from 0.
    """
    settings, kind = cell.settings, cell.kind
    epochs = settings.n_epochs
    if kind.has_server:
        epochs = Schedule.of(settings, cell.seed).epochs_of(rank)
    steps = epochs * max(1, shard_size // settings.batch_size)
    if not (kind.splits_batch or kind.is_one_process):
        # A very slow node makes one step at least; a client that is never chosen makes none.
        steps = max(min(1, steps), round(steps * shares_of_work(settings, waits=kind.waits)[rank]))
    return Recipe(
        epochs=epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        total_steps=steps,
    )


def order_seed(cell: Cell, rank: int) -> int:
    """Seed of the order of samples: one for all where they share each batch, else another one for each process."""
    if cell.kind.splits_batch or cell.kind.is_one_process:
        return cell.seed
    return 1000 * (cell.seed + 1) + rank


def _rank(cell: Cell) -> int:
    if cell.kind.start is Start.MPI:
        from mpi4py import MPI  # noqa: PLC0415 - an extra; importing it starts MPI

        return int(MPI.COMM_WORLD.Get_rank())
    return int(rank_of_this_node())


def _strategy(cell: Cell, folder: CellFolder, rank: int) -> Strategy:
    if cell.kind.is_method:
        from dpwa.lab.strategies.dpwa import Peers  # noqa: PLC0415 - only what is needed

        return Peers()
    file = _FILES.get(cell.kind.name)
    if file is None:
        return Strategy()
    made: Strategy = import_module(f"dpwa.lab.strategies.{file}").make(cell, rank, len(cell.process_names), folder)
    return made


def _crowding(cell: Cell) -> float:
    """How many processes compute for each core."""
    computing = Schedule.of(cell.settings, cell.seed).per_round if cell.kind.has_server else len(cell.process_names)
    return computing / len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main(sys.argv[1:])
