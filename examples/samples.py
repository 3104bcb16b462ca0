"""Labelled images as two tensors: the form in which all examples hold their data.

Must not know: models, adapters, where the images come from. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import TensorDataset

__all__ = ["Samples", "Transform", "normaliser", "unchanged"]

Transform = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a batch of images."""


@dataclass(frozen=True)
class Samples:
    """Images with their classes.

    Attributes:
        images: one per row, as stored (bytes or floats), shaped (count, channels, height, width).
        labels: the class of each image, int64.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: torch.Tensor) -> Samples:
        """The samples with these indices."""
        return Samples(self.images[indices], self.labels[indices])

    def data_set(self) -> TensorDataset:
        """The same for a `DataLoader`."""
        return TensorDataset(self.images, self.labels)

    def first(self, count: int) -> Samples:
        """The first samples, all of them when there are fewer."""
        return Samples(self.images[:count], self.labels[:count])

    def to(self, device: torch.device) -> Samples:
        """The same samples on a device."""
        return Samples(self.images.to(device), self.labels.to(device))


def normaliser(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Transform:
    """A function that turns images of bytes into floats with mean 0 and deviation 1.

    Args:
        mean: of each channel, with pixels 0..1.
        deviation: of each channel, with pixels 0..1.
    """
    shift = torch.tensor(mean).view(-1, 1, 1)
    scale = torch.tensor(deviation).view(-1, 1, 1)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - shift.to(images.device)) / scale.to(images.device)

    return normalise


def unchanged(images: torch.Tensor) -> torch.Tensor:
    """The images themselves: for those that are stored as a model wants them."""
    return images
