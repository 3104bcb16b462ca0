"""A step of an optimizer as a step of the node, for loops that `attach` has joined.

Must not know: nodes. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .losses import LossLike

__all__ = ["OptimizerHook"]


class OptimizerHook:
    """Makes a step of the optimizer one of the node, until it is removed.

    Args:
        step: makes one step of the node, given a loss.
        optimizer: whose steps count.
        loss: returns the loss of the latest step; None: it is not known.
    """

    def __init__(
        self,
        step: Callable[[LossLike], None],
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], LossLike] | None,
    ) -> None:
        self._step: Callable[[LossLike], None] | None = step
        self._loss = loss
        self._is_running = False
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def remove(self) -> None:
        """Release the adapter and the loss function, which the optimizer would otherwise keep alive."""
        self._step = self._loss = None
        if not self._is_running:  # the optimizer is going through its hooks: an empty one stays
            self._handle.remove()

    def _after_step(self, stepped: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        step = self._step
        if step is None or _was_skipped(stepped):
            return
        self._is_running = True
        try:
            step(self._loss() if self._loss is not None else None)
        finally:
            self._is_running = False


def _was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler made this step do nothing."""
    # A GradScaler leaves out the call of most optimizers, but tells a fused one to skip by itself.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and not found_inf.is_cuda and bool(found_inf > 0)
