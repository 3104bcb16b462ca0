"""The training that the image examples share with the lab: one loop, in which a strategy has its hooks.

An example's strategy is one line of dpwa after each step: see `WithPeers`.

Must not know: which data set, which model. Runs in: the training thread.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.examples.evaluation import accuracy_of, report_average
from dpwa.examples.progress import TrainingProgress
from dpwa.examples.samples import Samples, Transform, unchanged
from dpwa.examples.shards import Place
from dpwa.lab.strategies.base import Strategy

__all__ = ["Recipe", "Task", "Watch", "argument_parser", "device_of_node", "run_node", "train"]

# Enough for a curve that is steady to a point or two; the whole set is measured once, at the end.
SAMPLES_OF_AN_ESTIMATE = 1000


@dataclass(frozen=True)
class Task:
    """What one node learns.

    Attributes:
        title: its name in messages.
        model: with the same first weights on every node.
        shard: this node's own samples.
        held_out: samples that no node trains on.
        prepare: turns stored images into the model's input.
        augment: changes the prepared images of a training batch at random.
    """

    title: str
    model: nn.Module
    shard: Samples
    held_out: Samples
    prepare: Transform = unchanged
    augment: Transform = unchanged


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the shard.
        batch_size: samples per step; an incomplete last batch is left out.
        learning_rate: of every step.
        momentum: of every step.
        weight_decay: of every step.
        schedule: of the learning rate: "constant", or "cosine", half of one down to 0.
        total_steps: ends the training after so many steps, whatever `epochs` says; None for whole epochs.
        measure_every_steps: how often the accuracy is estimated.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    total_steps: int | None = None
    measure_every_steps: int = 20

    def rate_at(self, progress: float) -> float:
        """The learning rate.

        Args:
            progress: share of all steps that has been made, 0..1.
        """
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate


def argument_parser(description: str, *, epochs: int) -> argparse.ArgumentParser:
    """The command line that all examples share.

    Args:
        description: what the example does.
        epochs: the default number of passes over the shard.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("DPWA_DATA_DIR"),
        help="folder with the data (default: the variable DPWA_DATA_DIR, else ./data)",
    )
    parser.add_argument("--epochs", type=_positive, default=epochs, help="passes over the shard (default: %(default)s)")
    parser.add_argument(
        "--shard",
        type=_place,
        metavar="K/N",
        help="train on part K of N (default: the part of this node among the nodes of the cluster)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number of at least 1, got "{text}"')
    return int(text)


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Watch(Protocol):
    """Looks on while a model is trained."""

    def begin(self, total_steps: int) -> None:
        """The first step comes next."""

    def stepped(self, step: int, *, epoch: float, loss: torch.Tensor, right: int, count: int) -> None:
        """A step was made, the first one is 1: with this mean loss, and so many of its samples classified rightly."""


def run_node(task: Task, recipe: Recipe, *, seed: int) -> None:
    """Trains one node from start to end, and prints how good it and the averaged model are.

    Args:
        task: what to learn.
        recipe: how.
        seed: of the order of the samples; another one on every node, so that equal shards are not learned in step.
    """
    with DpwaPyTorchAdapter(task.model) as dpwa:
        with Estimates(dpwa, task, recipe) as estimates:
            train(task, recipe, seed=seed, strategy=WithPeers(dpwa), watch=estimates)
        dpwa.finish()
        accuracy = accuracy_of(task.model, task.held_out, task.prepare)
        dpwa.log(test_accuracy=accuracy)
        print(f"{task.title}: test accuracy of {dpwa.name}: {accuracy:.1%}", flush=True)
        report_average(dpwa, task.model, lambda: accuracy_of(task.model, task.held_out, task.prepare))


def train(task: Task, recipe: Recipe, *, seed: int, strategy: Strategy, watch: Watch) -> None:
    """The training loop, of the examples and of all strategies of the lab.

    Args:
        task: what to learn.
        recipe: how.
        seed: of the order of the samples.
        strategy: what this process does together with others.
        watch: told of every step.
    """
    optimizer = torch.optim.SGD(
        task.model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    order = torch.Generator().manual_seed(seed)
    steps_per_epoch = max(1, len(task.shard) // recipe.batch_size)
    total_steps = recipe.epochs * steps_per_epoch if recipe.total_steps is None else recipe.total_steps
    task.model.train()
    strategy.total_steps = total_steps
    strategy.begin(task.model, optimizer)
    watch.begin(total_steps)
    for step in range(1, total_steps + 1):
        epoch, batch_of_epoch = divmod(step - 1, steps_per_epoch)
        if batch_of_epoch == 0:
            strategy.before_epoch(epoch + 1)
            batches = torch.split(torch.randperm(len(task.shard), generator=order), recipe.batch_size)
        batch = strategy.part_of(batches[batch_of_epoch])
        optimizer.param_groups[0]["lr"] = recipe.rate_at((step - 1) / total_steps)
        optimizer.zero_grad()
        images = task.augment(task.prepare(task.shard.images[batch]))
        loss, right = strategy.backward(images, task.shard.labels[batch])
        optimizer.step()
        strategy.after_step(loss)
        if batch_of_epoch + 1 == steps_per_epoch:
            strategy.after_epoch(epoch + 1)
        watch.stepped(step, epoch=step / steps_per_epoch, loss=loss, right=right, count=len(batch))


class WithPeers(Strategy):
    """Trains as a node of a cluster: one line after each step.

    Args:
        dpwa: shares the model with the other nodes.
    """

    def __init__(self, dpwa: DpwaPyTorchAdapter) -> None:
        self.dpwa = dpwa

    def after_step(self, loss: torch.Tensor) -> None:
        self.dpwa.step(loss)


class Estimates:
    """Estimates the accuracy now and then, shows it, and has dpwa write it down.

    Args:
        dpwa: the node.
        task: what is learned.
        recipe: how.
    """

    def __init__(self, dpwa: DpwaPyTorchAdapter, task: Task, recipe: Recipe) -> None:
        self.dpwa = dpwa
        self.task = task
        self.recipe = recipe
        self.estimate = task.held_out.first(SAMPLES_OF_AN_ESTIMATE)
        self.accuracy = 0.0

    def __enter__(self) -> Estimates:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    def begin(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.accuracy = accuracy_of(self.task.model, self.estimate, self.task.prepare)
        self.dpwa.log(epochs=self.recipe.epochs, test_accuracy=self.accuracy, training_started_s=time.time())
        self.progress = TrainingProgress(self.task.title, total_steps)

    def stepped(self, step: int, *, epoch: float, loss: torch.Tensor, right: int, count: int) -> None:  # noqa: ARG002
        if step % self.recipe.measure_every_steps == 0 or step == self.total_steps:
            self.accuracy = accuracy_of(self.task.model, self.estimate, self.task.prepare)
            self.progress.show(step, epoch=epoch, loss=loss.item(), accuracy=self.accuracy)
        self.dpwa.log(epoch=epoch, test_accuracy=self.accuracy)
        if step == self.total_steps:
            self.dpwa.log(training_ended_s=time.time())


def device_of_node(place: Place) -> torch.device:
    """The device that a node trains on: one of the GPUs in turn, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", place.index % torch.cuda.device_count())
    return torch.device("cpu")
