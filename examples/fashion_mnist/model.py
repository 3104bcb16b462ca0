"""The network of McMahan et al., which many papers on averaged training compare with.

It is the one that "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017) trains on MNIST.

Must not know: data, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from torch import nn

__all__ = ["fashion_network"]


def fashion_network(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """The network of McMahan et al.: 1,663,370 parameters for grey images of 28x28 pixels and ten classes.

    Args:
        shape: channels, height and width of an image.
        classes: how many scores it gives.
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=5, padding=2),
        nn.MaxPool2d(2),  # before the ReLU, which gives the same and has a quarter of the work
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )
