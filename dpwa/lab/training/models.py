"""The networks of the lab, by name, with initial weights from a seed.

Each is a plain sequence of Conv2d, ReLU, MaxPool2d, Flatten and Linear, so that it can be rebuilt layer by layer in
another framework.

Runs in: the training thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import prod

import torch
from torch import nn

from dpwa.errors import ConfigError
from dpwa.examples.fashion_mnist.model import fashion_network

__all__ = ["build", "initial_weights_hash"]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def build(name: str, shape: Shape, classes: int, *, seed: int) -> nn.Sequential:
    """A network with initial weights that depend on the seed alone, in every process.

    The global random state stays as it was.

    Args:
        name: "mcmahan_cnn", "light_cnn" or "mlp".
        shape: of an image; convolutional networks halve height and width twice.
        classes: number of outputs.
        seed: for the initial weights.

    Raises:
        ConfigError: there is no such network, or the images are too small for it.
    """
    if name not in _NETWORKS:
        raise ConfigError(f'building a model: expected one of {", ".join(_NETWORKS)}, got "{name}"')
    if name != "mlp" and min(shape[1:]) < 4:
        raise ConfigError(f"building {name}: expected images of at least 4x4 pixels, got {shape[1]}x{shape[2]}")
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: `torch.manual_seed` would also seed the GPUs', which are not restored here.
        torch.default_generator.manual_seed(seed)
        return _NETWORKS[name](shape, classes)


def initial_weights_hash(model: nn.Module) -> str:
    """SHA-256 over the bytes of all tensors of a model, in their order, in hexadecimal.

    Two models with the same hash are the same, whichever process made them.
    """
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _light_cnn(shape: Shape, classes: int) -> nn.Sequential:
    """Two small convolutions, cheap enough for many trials on a laptop: 206,922 parameters for 28x28 grey pixels."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _mlp(shape: Shape, classes: int) -> nn.Sequential:
    """784-256-64-10 for 28x28 grey pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), 256),
        nn.ReLU(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


_NETWORKS: dict[str, Callable[[Shape, int], nn.Sequential]] = {
    "mcmahan_cnn": fashion_network,
    "light_cnn": _light_cnn,
    "mlp": _mlp,
}
