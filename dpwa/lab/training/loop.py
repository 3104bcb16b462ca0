"""The training loop of all strategies; `dpwa.lab.training.strategy` has the hooks that make them different.

With a loop for each strategy, a comparison would compare loops. Your own script needs none of this: see `examples/`.

Must not know: which data set, which model, which strategy. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpwa.examples.samples import Samples, Transform, unchanged
from dpwa.lab.training.optimizers import multiplier_of, optimizer_of
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
    """How a model is trained: by default, stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the shard.
        batch_size: samples per step; an incomplete last batch is left out.
        learning_rate: of the optimizer, before the schedule.
        momentum: of the optimizer sgd.
        weight_decay: of the optimizer.
        schedule: of the learning rate; see `multiplier_of`.
        total_steps: number of steps, whatever `epochs` says; None: whole epochs.
        optimizer: which; see `optimizer_of`.
        options: of the optimizer, beside the three above, which they override.
        decay_at: for the schedule "steps": the shares of the training after which the rate falls.
        decay_factor: for the same: by which factor.
        warmup_steps: steps in which the rate rises from 0 to what the schedule says.
        clip_norm: longer gradients are shortened to this norm; None: none are.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    total_steps: int | None = None
    optimizer: str = "sgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    decay_at: tuple[float, ...] = (0.5, 0.75)
    decay_factor: float = 0.1
    warmup_steps: int = 0
    clip_norm: float | None = None

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer for all parameters of a model."""
        given: dict[str, Any] = {"lr": self.learning_rate}
        if ":" not in self.optimizer:
            given["weight_decay"] = self.weight_decay
        if self.optimizer == "sgd":
            given["momentum"] = self.momentum
        return optimizer_of(self.optimizer, model, {**given, **self.options})

    def rates(self, optimizer: torch.optim.Optimizer) -> Callable[[int, float], None]:
        """A function that sets the learning rates for a step, from 1, before which a share of the training is done."""
        multiplier = multiplier_of(self.schedule, decay_at=self.decay_at, decay_factor=self.decay_factor)

        def set_rates(step: int, done: float) -> None:
            rising = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier(done) * rising

        return set_rates

    def clip(self, model: nn.Module) -> None:
        """Shortens the gradients of a model, all of them together, to `clip_norm`."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)


class Watch(Protocol):
    """Observes a training."""

    def begin(self, total_steps: int) -> None:
        """Called before the first step."""

    def resume(self, total_steps: int, steps_done: int) -> None:
        """Called instead of `begin` by a process that goes on from a checkpoint."""

    def stepped(self, step: int, *, done: float, loss: torch.Tensor, right: int, count: int) -> None:
        """Called after each step, from 1.

        Args:
            step: its number.
            done: the share of the training that is done, 0 to 1.
            loss: its mean loss.
            right: how many of its labels were predicted.
            count: its samples.
        """

    def ended(self) -> None:
        """Called after the last step."""


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
    optimizer = recipe.make_optimizer(task.model)
    order = torch.Generator().manual_seed(seed)
    steps_per_epoch = max(1, len(task.shard) // recipe.batch_size)
    total_steps = recipe.epochs * steps_per_epoch if recipe.total_steps is None else recipe.total_steps
    task.model.train()
    set_rates = recipe.rates(optimizer)
    strategy.total_steps = total_steps
    strategy.begin(task.model, optimizer)
    if strategy.steps_done:
        watch.resume(total_steps, strategy.steps_done)
    else:
        watch.begin(total_steps)
    shared = strategy.shared_batches(len(task.shard), epochs=recipe.epochs, batch_size=recipe.batch_size)
    if shared is not None:
        for step, batch in enumerate(shared, 1):
            set_rates(step, shared.done)
            loss, right = _compute(task, recipe, optimizer, strategy, batch)
            yield
            strategy.after_step(loss)
            watch.stepped(step, done=shared.done, loss=loss, right=right, count=len(batch))
        watch.ended()
        return
    for step in range(1, total_steps + 1):
        epoch, batch_of_epoch = divmod(step - 1, steps_per_epoch)
        if batch_of_epoch == 0:
            if step > strategy.steps_done:
                strategy.before_epoch(epoch + 1)
            batches = torch.split(torch.randperm(len(task.shard), generator=order), recipe.batch_size)
        if step <= strategy.steps_done:
            continue
        batch = strategy.part_of(batches[batch_of_epoch])
        set_rates(step, (step - 1) / total_steps)
        loss, right = _compute(task, recipe, optimizer, strategy, batch)
        yield
        strategy.after_step(loss)
        if batch_of_epoch + 1 == steps_per_epoch:
            strategy.after_epoch(epoch + 1)
        watch.stepped(step, done=step / total_steps, loss=loss, right=right, count=len(batch))
    if total_steps:  # a client may never be chosen
        watch.ended()


def _compute(
    task: Task, recipe: Recipe, optimizer: torch.optim.Optimizer, strategy: Strategy, batch: Tensor
) -> tuple[Tensor, int]:
    """One step: its mean loss, and how many labels were predicted."""
    optimizer.zero_grad()
    images = task.prepare(task.shard.images[batch])
    loss, right = strategy.backward(images, task.shard.labels[batch])
    recipe.clip(task.model)
    optimizer.step()
    return loss, right
