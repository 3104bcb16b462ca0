"""The losses that a row may train with, by name.

Must not know: models, data sets. Runs in: the training thread, and in those of custom_data_parallel's replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torch.nn import functional

__all__ = ["LOSSES", "Loss"]


class Loss(Protocol):
    """How wrong scores are."""

    def __call__(self, scores: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
        """The loss, one element.

        Args:
            scores: shape (count, classes), or (count, classes, length) for sequences.
            labels: int64, shape (count,), or (count, length).
            reduction: "mean" over the labels, or "sum".
        """


def cross_entropy(scores: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Minus the logarithm of the right class's softmax."""
    return functional.cross_entropy(scores, labels, reduction=reduction)


def mse(scores: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """The squared distance of the scores from 1 for the right class and 0 for the others: summed over the classes."""
    wanted = functional.one_hot(labels, scores.shape[1]).movedim(-1, 1).to(scores.dtype)
    total = functional.mse_loss(scores, wanted, reduction="sum")
    return total / labels.numel() if reduction == "mean" else total


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}
