"""The convolutional network of the digits example.

Must not know: data, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from torch import nn

__all__ = ["digits_network"]


def digits_network() -> nn.Sequential:
    """A network of two convolutions for images of 8x8 pixels and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
