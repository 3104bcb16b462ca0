"""dpwa in one line: an optimizer's steps are the node's.

    node = attach(model, optimizer)

Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn

from dpwa import ConfigError

from .identity import ConfigLike
from .losses import LossLike
from .model_identity import identity_of_model
from .optimizer_hook import OptimizerHook
from .optimizer_state import unwrapped_optimizer
from .pytorch import DpwaPyTorchAdapter
from .restoring import Kept

__all__ = ["attach"]

# Rules that without a loss would be constant.
_BY_LOSS = ("loss", "loss_divergence")


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[], LossLike] | None = None,
    name: str | None = None,
    config: ConfigLike = None,
    checkpoint: Mapping[str, Kept] | None = None,
) -> DpwaPyTorchAdapter:
    """Add dpwa to an existing loop in one line: every real step of the optimizer becomes a step of the node.

    A step that a GradScaler skips does not count (a fused optimizer's on a GPU does: to know better, the trainer would
    have to wait for the GPU). dpwa ends with the process, or with `close` of the returned adapter; the optimizer then
    goes on without it. Until then the adapter's own `step` is refused: it would count each step twice.

    Args:
        model: see `DpwaPyTorchAdapter`.
        optimizer: the one that trains the model; one that Accelerate or Lightning has wrapped is unwrapped.
        loss: returns the loss of the latest step; needed by interpolations that look at it.
        name: see `DpwaPyTorchAdapter`.
        config: see `DpwaPyTorchAdapter`.
        checkpoint: see `DpwaPyTorchAdapter`.

    Raises:
        ConfigError: as `DpwaPyTorchAdapter`; or the config's interpolation needs a loss and none is given.
    """
    optimizer = unwrapped_optimizer(optimizer, "attach")
    identity = identity_of_model(model, name, config)
    if loss is None and (identity.config.interpolation in _BY_LOSS or identity.config.divergence_threshold > 0):
        raise ConfigError(
            "attach: this config's interpolation looks at the loss; pass loss=..., a function that returns the loss of "
            "the latest step, or make a DpwaPyTorchAdapter instead, and call its step(loss) in the loop"
        )
    adapter = DpwaPyTorchAdapter(model, name, cast("Any", identity), optimizer=optimizer, checkpoint=checkpoint)
    with ExitStack() as undo:
        undo.callback(adapter.close)  # what nobody gets nobody could close
        adapter._hook = OptimizerHook(adapter._step, optimizer, loss)  # noqa: SLF001
        undo.pop_all()
    return adapter
