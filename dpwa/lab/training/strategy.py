"""What a strategy is: one process's part in a training, as hooks of the one training function.

That function is `dpwa.lab.training.loop.train`. A strategy whose hooks are left as they are trains alone.

Must not know: data sets, networks, folders. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Strategy"]


class Strategy:
    """One process's part in a training together. The hooks are called in the order in which they stand here.

    Attributes:
        bytes_sent: of models or gradients, by this process so far, as the wire would see them.
        total_steps: how many steps this process will make; set by the training function before `begin`.
    """

    bytes_sent: int = 0
    total_steps: int = 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step. Connections are made here: the clock does not run yet.

        Args:
            model: holds the initial weights.
            optimizer: trains it.
        """
        self.model = model
        self.optimizer = optimizer

    def before_epoch(self, epoch: int) -> None:
        """Before the first batch of an epoch, counted from 1."""

    def part_of(self, batch: Tensor) -> Tensor:
        """Which samples of a batch this process computes.

        Args:
            batch: indices, shape (batch_size,); the same on every process of a strategy that splits batches.
        """
        return batch

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Computes the gradients with which the optimizer makes its step.

        Args:
            images: the model's input.
            labels: int64, shape (count,).

        Returns:
            Mean loss, a tensor without gradient of one element, and how many were classified rightly.
        """
        scores = self.model(images)
        loss = nn.functional.cross_entropy(scores, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), int((scores.argmax(dim=1) == labels).sum())

    def after_step(self, loss: Tensor) -> None:
        """After each step of the optimizer."""

    def after_epoch(self, epoch: int) -> None:
        """After the last step of an epoch, counted from 1."""

    def finish(self) -> None:
        """After the last step; the clock has stopped, and the last snapshot is written. Peers may need this one."""

    def close(self) -> None:
        """Ends connections. Called also after an error."""
