"""A strategy: what one process does together with others, as hooks of `dpwa.lab.training.loop.train`.

The hooks of this class train alone.

Must not know: data sets, networks, folders. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from dpwa.lab.training.losses import LOSSES, Loss

__all__ = ["SharedBatches", "Strategy"]


class SharedBatches(Protocol):
    """Batches that nodes share out while they train: how many a node gets, the training shows."""

    @property
    def done(self) -> float:
        """The share of the training that all nodes together have done, 0 to 1; it never falls."""

    def __iter__(self) -> Iterator[Tensor]:
        """Indices of the samples of each step."""


class Strategy:
    """What one process does together with others. The hooks are listed in the order in which they are called.

    Attributes:
        bytes_sent: of models or gradients, by this process so far, as they would be on the wire.
        averages: of its model with others' so far, where all average at fixed steps; None: it does nothing of the kind.
        steps_done: how many were made in earlier lives of this process; `begin` says so where there is a checkpoint.
        total_steps: how many steps this process will make; set by the training loop before `begin`.
        loss: what the steps make smaller; set before the training by whoever knows the trial.
    """

    bytes_sent: int = 0
    averages: int | None = None
    steps_done: int = 0
    total_steps: int = 0
    loss: Loss = staticmethod(LOSSES["cross_entropy"])

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called before the first step. Connections are made here: the clock is not running yet.

        Args:
            model: holds the initial weights.
            optimizer: trains it.
        """
        self.model = model
        self.optimizer = optimizer

    def did(self) -> dict[str, float]:
        """What this process has done so far, for the header of a round's model: bytes_sent.

        Strategies that average models also say `asked`, the exchanges that their settings ask for in so many steps, and
        `exchanges`, those of this process that came to something.
        """
        if self.averages is None:
            return {"bytes_sent": self.bytes_sent}
        return {"bytes_sent": self.bytes_sent, "asked": self.averages, "exchanges": self.averages}

    def shared_batches(
        self,
        samples: int,  # noqa: ARG002 - of those that share
        *,
        epochs: int,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
    ) -> SharedBatches | None:
        """What this process trains where all share out the same samples while they train. Called after `begin`.

        Args:
            samples: of the data that all hold.
            epochs: passes over them by all together.
            batch_size: samples per step.

        Returns:
            None: each process has samples of its own, and goes through them in its own order.
        """
        return None

    def before_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch; the first epoch is 1."""

    def part_of(self, batch: Tensor) -> Tensor:
        """The samples of a batch that this process computes.

        Args:
            batch: indices, shape (batch_size,); the same in every process of a strategy that splits batches.
        """
        return batch

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Computes the gradients for a step of the optimizer.

        Args:
            images: the model's input.
            labels: int64, shape (count,), or (count, length) for sequences.

        Returns:
            Mean loss, a tensor of one element without gradient, and how many labels were predicted.
        """
        scores = self.model(images)
        loss = self.loss(scores, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), int((scores.argmax(dim=1) == labels).sum())

    def after_step(self, loss: Tensor) -> None:
        """Called after each step of the optimizer."""

    def after_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch; the first epoch is 1."""

    def finish(self) -> bool:
        """Called after the last step, when the last snapshot is written. Peers may still need this process.

        Returns:
            Whether it has replaced the model, so that the last snapshot is to be written anew.
        """
        return False

    def close(self) -> None:
        """Ends connections. Called after errors, too."""
