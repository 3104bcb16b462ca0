"""One process of a trial: `python -m dpwa.lab.worker TRIAL_DIR`, started by `dpwa launch` or mpiexec.

It finds its rank, loads its part of the data, and trains with the lab's training loop and the hooks of its strategy. It
evaluates nothing.

Runs in: the training thread.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from dpwa.examples.devices import device_of, rank_of_this_node
from dpwa.lab.study.kinds import Start
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.assignment import data_of, model_of, order_seed, parts_of_nodes, recipe_of, samples_of_node
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.handicaps import Handicap, restarts
from dpwa.lab.training.loop import Task, train
from dpwa.lab.training.losses import LOSSES
from dpwa.lab.training.machine import machine_cores
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.strategy import Strategy
from dpwa.transport.sockets import keep_freed_memory

__all__ = ["main"]

# The modules of the strategies; each has a function `make`.
_FILES = {
    "fedavg": "federated.process",
    "fedprox": "federated.process",
    "param_avg": "mpi",
    "w_param_avg": "mpi",
    "parallel_sgd": "mpi",
    "ddp": "torch_distributed",
    "ddp_restarts": "torch_distributed",
    "allreduce_every_h": "torch_distributed",
    "custom_data_parallel": "data_parallel",
    "hivemind": "hivemind_averaging",
    "decent_dp": "decentralized_data_parallel",
}


def main(arguments: list[str]) -> None:
    """Trains this process's part of the trial in the folder that the only argument names."""
    folder = TrialFolder(Path(arguments[0]))
    trial = folder.trial()
    rank = _rank(trial)
    name = trial.process_names[rank]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # A node of dpwa does this for its messages. It makes torch's steps up to a fifth faster, so every strategy gets it.
    keep_freed_memory()
    data = data_of(trial, folder)
    device = device_of(rank)
    model = model_of(trial, data).to(device)
    if name not in trial.training_names:
        from dpwa.lab.strategies.federated.process import serve  # noqa: PLC0415 - only for these

        serve(trial, folder, [len(part) for part in parts_of_nodes(trial, data)], model)
        return
    strategy = _strategy(trial, folder, rank)
    strategy.loss = LOSSES[trial.settings.loss]
    recorder = Recorder(
        folder,
        trial.process_names,
        name,
        model,
        rounds=trial.rounds,
        saves=rank == 0 or not trial.kind.splits_batch,
        did=strategy.did,
        handicap=Handicap(trial.settings, rank + 1, crowding=_crowding(trial), life=restarts()),
    )
    task = Task(model, shard=samples_of_node(trial, data, rank).to(device), prepare=data.prepare)
    try:
        train(
            task,
            recipe_of(trial, len(task.shard), rank),
            seed=order_seed(trial, rank),
            strategy=strategy,
            watch=recorder,
        )
        if strategy.finish():
            recorder.write_merged()
    except BaseException:
        with suppress(OSError):  # on a full disk what went wrong is still to be told
            recorder.write_last_word()
        raise
    finally:
        strategy.close()


def _rank(trial: Trial) -> int:
    if trial.kind.start is Start.MPI:
        from mpi4py import MPI  # noqa: PLC0415 - an extra; importing it starts MPI

        return int(MPI.COMM_WORLD.Get_rank())
    if trial.kind.start is Start.TORCHRUN:
        return int(os.environ["RANK"])
    return int(rank_of_this_node())


def _strategy(trial: Trial, folder: TrialFolder, rank: int) -> Strategy:
    if trial.kind.is_method:
        from dpwa.lab.strategies.dpwa import Peers  # noqa: PLC0415 - only what is needed

        return Peers(shares_samples=trial.settings.sampler, seed=order_seed(trial, 0))
    file = _FILES.get(trial.kind.name)
    if file is None:
        return Strategy()
    made: Strategy = import_module(f"dpwa.lab.strategies.{file}").make(trial, rank, len(trial.process_names), folder)
    return made


def _crowding(trial: Trial) -> float:
    """Number of computing processes per core."""
    computing = Schedule.of(trial.settings, trial.seed).per_round if trial.kind.has_server else len(trial.process_names)
    return computing / machine_cores()


if __name__ == "__main__":
    main(sys.argv[1:])
