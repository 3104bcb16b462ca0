"""The lab's light_cnn with a pause in each training step, so that four processes of two cores compute equally fast.

Must not know: how processes train together. Runs in: the training thread.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from dpwa.lab.training.models import build

PAUSE_S = 0.050


class _Paced(nn.Module):
    """A network whose forward pass takes longer while it trains."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The network's scores."""
        if self.training and torch.is_grad_enabled():
            time.sleep(PAUSE_S)
        found: Tensor = self.network(images)
        return found


def light_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """206,922 parameters for 28x28 grey pixels: 0.83 MB.

    Args:
        shape: of a sample.
        classes: number of outputs.
    """
    return _Paced(build("light_cnn", shape, classes, seed=torch.initial_seed() % 2**31))
