"""The training loop of all strategies; `dpwa.lab.training.strategy` has the hooks that make them different.

With a loop for each strategy, a comparison would compare loops. Your own script needs none of this: see `examples/`.

Must not know: which data set, which model, which strategy. Runs in: the training thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from dpwa.examples.samples import Samples, Transform, unchanged
from dpwa.lab.training.strategy import Strategy

__all__ = ["Recipe", "Task", "Watch", "steps", "train"]


@dataclass(frozen=True)
class Task:
    """What one process learns.

    Attributes:
        model: with the same initial weights in every process.
        shard: this process's own samples.
        prepare: turns stored images into the model's input.
    """

    model: nn.Module
    shard: Samples
    prepare: Transform = unchanged


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the shard.
        batch_size: samples per step; an incomplete last batch is left out.
        learning_rate: of every step.
        momentum: of every step.
        weight_decay: of every step.
        schedule: of the learning rate: "constant", or "cosine" for half a cosine down to 0.
        total_steps: number of steps, whatever `epochs` says; None: whole epochs.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    total_steps: int | None = None

    def rate_at(self, progress: float) -> float:
        """The learning rate after this share of all steps, 0..1."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate


class Watch(Protocol):
    """Observes a training."""

    def begin(self, total_steps: int) -> None:
        """Called before the first step."""

    def stepped(self, step: int, *, epoch: float, loss: torch.Tensor, right: int, count: int) -> None:
        """Called after each step, from 1, with its mean loss, its samples, and how many were classified correctly."""


def train(task: Task, recipe: Recipe, *, seed: int, strategy: Strategy, watch: Watch) -> None:
    """Trains one process from its first step to its last.

    Args: as those of `steps`.
    """
    for _ in steps(task, recipe, seed=seed, strategy=strategy, watch=watch):
        pass


def steps(task: Task, recipe: Recipe, *, seed: int, strategy: Strategy, watch: Watch) -> Iterator[None]:
    """Trains one process; stops whenever a step has been computed, before the strategy hears of it.

    Several trainings can so be made in turns, each in an order and at a time of its own.

    Args:
        task: what to learn.
        recipe: how.
        seed: for the order of the samples.
        strategy: what this process does together with others.
        watch: observes every step.
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
        images = task.prepare(task.shard.images[batch])
        loss, right = strategy.backward(images, task.shard.labels[batch])
        optimizer.step()
        yield
        strategy.after_step(loss)
        if batch_of_epoch + 1 == steps_per_epoch:
            strategy.after_epoch(epoch + 1)
        watch.stepped(step, epoch=step / steps_per_epoch, loss=loss, right=right, count=len(batch))
