"""A process of the strategies that wait for each other, for their tests: `collective_trainer.py FOLDER [RANK SIZE]`.

FOLDER/trainings.json lists what is trained, one after the other; without RANK and SIZE, MPI knows them. What came out
is in FOLDER/NAME/RANK.npz. The data are random, the network is tiny.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpwa.examples.samples import Samples
from dpwa.lab.strategies.torch_distributed import Ddp
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.losses import LOSSES
from dpwa.lab.training.strategy import Strategy

FEATURES, CLASSES = 6, 3
FILES = {"ddp": "torch_distributed", "allreduce_every_h": "torch_distributed", "custom_data_parallel": "data_parallel"}


class TinyNetwork(nn.Module):
    """Two layers, a buffer of fractions and one of whole numbers; the buffers take no part in the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("counted", torch.zeros(1, dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def network() -> TinyNetwork:
    """The same one every time."""
    torch.manual_seed(5)
    return TinyNetwork()


def samples(count: int) -> Samples:
    """The same ones every time."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, FEATURES, generator=generator)
    return Samples(images, torch.randint(CLASSES, (count,), generator=generator))


def values(model: nn.Module) -> np.ndarray:
    """Parameters and buffer of fractions of a model, one after the other."""
    parts = [*model.parameters(), model.running]
    return np.concatenate([part.detach().numpy().ravel() for part in parts])


def drift(rank: int, step: int, size: int) -> np.ndarray:
    """What is added to all values after a step, where a training is told to drift: another vector for each process."""
    return np.random.default_rng([rank, step]).normal(size=size).astype(np.float32) * (1 + rank)


class Observer:
    """Keeps what happens in each step, and lets happen what the training is told."""

    def __init__(self, training: dict[str, Any], folder: Path, rank: int, model: nn.Module) -> None:
        self.training = training
        self.folder = folder
        self.rank = rank
        self.model = model
        self.models = [values(model)]
        self.steps: list[tuple[float, int, int]] = []

    def begin(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def ended(self) -> None:
        pass

    def stepped(self, step: int, *, done: float, loss: Tensor, right: int, count: int) -> None:  # noqa: ARG002
        self.models.append(values(self.model))
        self.steps.append((loss.item(), right, count))
        if self.training.get("drifts") and step < self.total_steps:
            self._drift(step)
        if [self.rank, step] == self.training.get("trouble_at"):
            self._make_trouble()

    @torch.no_grad()
    def _drift(self, step: int) -> None:
        parts = [*self.model.parameters(), self.model.running]
        added = torch.from_numpy(drift(self.rank, step, len(self.models[-1])))
        for part, change in zip(parts, torch.split(added, [part.numel() for part in parts]), strict=True):
            part.add_(change.view(part.shape))
        self.model.counted += self.rank

    def _make_trouble(self) -> None:
        (self.folder / "trouble").touch()
        kind = self.training["trouble"]
        if kind == "raises":
            raise RuntimeError("trouble on purpose")
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[kind])

    def save(self, strategy: Strategy) -> None:
        loss, right, count = zip(*self.steps, strict=True)
        np.savez(
            self.folder / f"{self.rank}.npz",
            models=np.stack(self.models),
            counted=self.model.counted.numpy(),
            loss=loss,
            right=right,
            count=count,
            bytes_sent=strategy.bytes_sent,
            exchanges=strategy.did().get("exchanges", -1),
        )


def strategy_of(training: dict[str, Any], folder: Path, rank: int, size: int) -> Strategy:
    """As the lab makes it, but for a timeout that a test wants shorter."""
    settings = Settings.model_validate(training["settings"])
    if "timeout_s" in training:
        return Ddp(rank, size, folder / "rendezvous", timeout_s=training["timeout_s"])
    made = import_module(f"dpwa.lab.strategies.{FILES.get(settings.strategy, 'mpi')}")
    return made.make(Trial("study", "row", 0, settings), rank, size, TrialFolder(folder))


def run(training: dict[str, Any], folder: Path, rank: int, size: int) -> None:
    """Train once, as a process of a trial does."""
    folder.mkdir(exist_ok=True)
    settings = Settings.model_validate(training["settings"])
    model = network()
    counts = training["samples"]
    shard = samples(counts[rank])
    strategy = strategy_of(training, folder, rank, size)
    strategy.loss = LOSSES[settings.loss]
    observer = Observer(training, folder, rank, model)
    recipe = Recipe(
        epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        learning_rate=0.0 if training.get("drifts") else settings.learning_rate,
        momentum=settings.momentum,
    )
    try:
        train(Task(model, shard), recipe, seed=7, strategy=strategy, watch=observer)
        strategy.finish()
        observer.save(strategy)
    finally:
        strategy.close()


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    folder = Path(arguments[0])
    if arguments[1:]:
        rank, size = int(arguments[1]), int(arguments[2])
    else:
        from mpi4py import MPI  # noqa: PLC0415 - its import starts MPI

        rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    for name, training in json.loads((folder / "trainings.json").read_text()).items():
        run(training, folder / name, rank, size)


if __name__ == "__main__":
    main(sys.argv[1:])
