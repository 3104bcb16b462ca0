"""CIFAR-10, from torchvision's own files or from a folder of images, and how its pictures become a model's input.

Must not know: models, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from dpwa.examples.samples import Samples, normaliser
from dpwa.examples.torchvision_data import open_data_set

__all__ = ["load_samples", "open_images", "prepare", "shift_and_mirror"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
ORDER_SEED = 0
MAX_SHIFT = 4  # pixels

# Mean and deviation of the training images' channels, with pixels 0..1.
prepare = normaliser((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

Images: TypeAlias = "Dataset[tuple[torch.Tensor, ...]]"
"""Pairs of an image, as bytes, and its class."""


def open_images(data_dir: Path | None, *, train: bool) -> Images:
    """One part of the images, class by class in a folder.

    Args:
        data_dir: a folder with train/CLASS/*.jpg and test/CLASS/*.jpg, or torchvision's folder; None: ./data.
        train: training images; else test images.

    Raises:
        ValueError: a folder of images is empty.
    """
    if data_dir is not None and (data_dir / "train").is_dir():
        return _Folder(data_dir / ("train" if train else "test"))
    data_set = open_data_set("CIFAR10", data_dir, train=train)
    return TensorDataset(torch.from_numpy(data_set.data).permute(0, 3, 1, 2), torch.tensor(data_set.targets))


def load_samples(data_dir: Path | None, *, train: bool) -> Samples:
    """The same in memory and in random order, which is always the same one.

    Raises:
        ValueError: a folder of images is empty, or its images are not 32x32 pixels.
    """
    found = open_images(data_dir, train=train)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(ORDER_SEED))  # type: ignore[arg-type]
    images, labels = zip(*(found[index] for index in order.tolist()), strict=True)
    return Samples(torch.stack(images), torch.stack(labels))


class _Folder(Dataset[tuple[torch.Tensor, ...]]):
    """Images in CLASS/*.jpg, decoded when they are asked for: a node does not decode what others train on."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self._files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self._files:
            raise ValueError(f"reading images: expected {folder}/CLASS/*.jpg, found none; check --data-dir")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        path, label = self._files[index]
        with Image.open(path) as image:
            if image.size != (32, 32):
                raise ValueError(f"reading {path}: expected 32x32 pixels, got {image.width}x{image.height}")
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return pixels, torch.tensor(label)


def shift_and_mirror(images: torch.Tensor) -> torch.Tensor:
    """A training batch moved by up to four pixels, and each image mirrored with probability one half.

    Args:
        images: shaped (count, channels, height, width).
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (MAX_SHIFT,) * 4)
    down, right = torch.randint(0, 2 * MAX_SHIFT + 1, (2,)).tolist()
    moved = padded[..., down : down + height, right : right + width]
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), moved.flip(-1), moved)
