"""What the tests share of the strategies whose processes wait for each other: starting them, and what must come out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from collective_trainer import Observer, drift, network, samples, values
from dpwa.lab.strategies.collective import allreduce_bytes
from dpwa.lab.study.settings import Settings
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.losses import LOSSES
from dpwa.lab.training.strategy import Strategy

TRAINER = str(Path(__file__).with_name("collective_trainer.py"))
DEADLINE_S = 90.0


def training(strategy: str, count: int | list[int], *, size: int = 1, **settings: Any) -> dict[str, Any]:
    """What the trainer reads of one training: numbers of samples per process, and settings."""
    return {
        "settings": {"strategy": strategy, **settings},
        "samples": count if isinstance(count, list) else [count] * size,
    }


def start(folder: Path, trainings: dict[str, Any], commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    """Start processes that make these trainings."""
    (folder / "trainings.json").write_text(json.dumps(trainings))
    return [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]


def start_mpi(folder: Path, trainings: dict[str, Any], size: int) -> list[subprocess.Popen[str]]:
    """One mpiexec."""
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    return start(folder, trainings, [[mpiexec, "-n", str(size), sys.executable, TRAINER, str(folder)]])


def start_ranks(folder: Path, trainings: dict[str, Any], size: int) -> list[subprocess.Popen[str]]:
    """Processes that are told their rank."""
    return start(
        folder, trainings, [[sys.executable, TRAINER, str(folder), str(rank), str(size)] for rank in range(size)]
    )


def wait(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> str:
    """What a process printed until its end; it is killed when that does not come in time, which is an error."""
    try:
        return process.communicate(timeout=deadline_s)[0]
    finally:
        process.kill()
        process.wait()


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """All end well."""
    outputs = [wait(process) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)


def results(folder: Path, name: str, size: int) -> list[SimpleNamespace]:
    """What came out of a training, per process."""
    return [SimpleNamespace(**np.load(folder / name / f"{rank}.npz")) for rank in range(size)]


def alone(made: dict[str, Any], tmp_path: Path) -> Observer:
    """The same training by one process, on whole batches."""
    settings = Settings.model_validate(made["settings"])
    model = network()
    shard = samples(made["samples"][0])
    observer = Observer({}, tmp_path, 0, model)
    recipe = Recipe(settings.n_epochs, settings.batch_size, settings.learning_rate, settings.momentum)
    strategy = Strategy()
    strategy.loss = LOSSES[settings.loss]
    train(Task(model, shard), recipe, seed=7, strategy=strategy, watch=observer)
    return observer


def check_like_alone(found: list[SimpleNamespace], expected: Observer) -> None:
    """Every process has, after every step, the model that one process has; together they saw all samples."""
    for result in found:
        np.testing.assert_allclose(result.models, np.stack(expected.models), atol=1e-5, rtol=0)
    loss, right, count = (np.array(column) for column in zip(*expected.steps, strict=True))
    np.testing.assert_array_equal(sum(result.count for result in found), count)
    np.testing.assert_array_equal(sum(result.right for result in found), right)
    mean_loss = sum(result.loss * result.count for result in found) / count
    np.testing.assert_allclose(mean_loss, loss, atol=1e-5)


def check_sgd_on_whole_batches(found: list[SimpleNamespace], made: dict[str, Any], tmp_path: Path) -> None:
    """The processes make the steps of one process, with a ring all-reduce of all gradients in each."""
    expected = alone(made, tmp_path)
    check_like_alone(found, expected)
    step_bytes = allreduce_bytes(4 * sum(parameter.numel() for parameter in network().parameters()), len(found))
    assert {int(result.bytes_sent) for result in found} == {len(expected.steps) * step_bytes}


def drifted(steps: list[int], meetings: list[list[int]], weights: Any = None) -> list[list[np.ndarray]]:
    """Models after each step of processes that only drift, and meet after these steps of their own.

    Args:
        steps: of each process.
        meetings: for each process, the steps after which it meets the others.
        weights: gives the weights of the models in an average, from these models and the last average; None is equal.
    """
    size = len(steps)
    first = values(network())
    models = [first.astype(np.float64) for _ in steps]
    seen = [[first.astype(np.float64)] for _ in steps]
    done = [0] * size
    last = first.astype(np.float64)
    for number in range(len(meetings[0])):
        for rank in range(size):
            while done[rank] < meetings[rank][number]:
                if done[rank] > 0:
                    models[rank] = models[rank] + drift(rank, done[rank], len(first))
                done[rank] += 1
                seen[rank].append(models[rank])
        share = np.full(size, 1 / size) if weights is None else weights(models, last)
        last = sum(part * model for part, model in zip(share, models, strict=True))
        models = [last] * size
        for rank in range(size):
            seen[rank][-1] = last
    return seen
