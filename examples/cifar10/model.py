"""The networks of the CIFAR-10 example.

Must not know: data, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from dpwa import mend_torchvision

__all__ = ["build_network", "network_of"]


def build_network(name: str) -> nn.Module:
    """A fresh model for images of 32x32 pixels and ten classes: "small" or "resnet18"."""
    if name == "small":
        return _small_network()
    mend_torchvision()  # nothing, where torch and torchvision fit together
    from torchvision.models import resnet18  # noqa: PLC0415 - after it has been mended

    network: nn.Module = resnet18(num_classes=10)
    return network


def network_of(weights: Container[str]) -> nn.Module:
    """A fresh model of the kind that has weights with these names."""
    return build_network("resnet18" if "fc.weight" in weights else "small")


def _small_network() -> nn.Sequential:
    """Three convolutions with BatchNorm, small enough for a laptop."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 64), (64, 128)):
        layers += [
            nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))
