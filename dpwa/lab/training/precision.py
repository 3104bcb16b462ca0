"""A network that multiplies in bfloat16, forwards and backwards, as `torch.autocast` does it.

The weights, their gradients, the optimizer and everything that nodes exchange stay float32.

Must not know: which network, which strategy. Runs in: the training thread, and in those of custom_data_parallel's
replicas.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn

__all__ = ["multiply_in_bfloat16"]


def multiply_in_bfloat16(model: nn.Module) -> None:
    """Lets a model compute convolutions and matrix products in bfloat16, on whatever device its samples are.

    Its names, its tensors and their types stay as they are, and it can still be copied. Scores come out as float32.

    Args:
        model: takes one tensor.
    """
    model.forward = MethodType(_forward, model)  # of this model alone; a copy of it gets one of its own


def _forward(model: nn.Module, samples: Tensor) -> Tensor:
    with torch.autocast(samples.device.type, dtype=torch.bfloat16):
        scores: Tensor = type(model).forward(model, samples)
    return scores.float()
