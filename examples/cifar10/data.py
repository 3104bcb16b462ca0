"""CIFAR-10, from torchvision's own files or from a folder of images.

Must not know: models, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from dpwa.examples.samples import Samples
from dpwa.examples.shards import Place, shard_evenly
from dpwa.examples.torchvision_data import open_data_set

__all__ = ["load_shard", "shift_and_mirror"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
SHARD_SEED = 0
MAX_SHIFT = 4  # pixels


def load_shard(data_dir: Path | None, place: Place, *, train: bool) -> Samples:
    """One part of the images, as bytes.

    Args:
        data_dir: a folder with train/CLASS/*.jpg and test/CLASS/*.jpg, or torchvision's folder; None for ./data.
        place: which of the equal parts.
        train: whether training images are wanted, or else test images.

    Raises:
        ValueError: a folder of images is empty, or its images are not 32x32 pixels.
    """
    if data_dir is not None and (data_dir / "train").is_dir():
        return _load_folder(data_dir / ("train" if train else "test"), place)
    data_set = open_data_set("CIFAR10", data_dir, train=train)
    chosen = shard_evenly(len(data_set.targets), place, seed=SHARD_SEED)
    return Samples(
        torch.from_numpy(data_set.data[chosen.numpy()]).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(data_set.targets)[chosen],
    )


def _load_folder(folder: Path, place: Place) -> Samples:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise ValueError(f"reading images: expected {folder}/CLASS/*.jpg, found none; check --data-dir")
    # Chosen before they are read: a node does not decode what the other nodes train on.
    chosen = [found[index] for index in shard_evenly(len(found), place, seed=SHARD_SEED).tolist()]
    images = torch.stack([_load_image(path) for path, _ in chosen])
    return Samples(images, torch.tensor([label for _, label in chosen]))


def _load_image(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        if image.size != (32, 32):
            raise ValueError(f"reading {path}: expected 32x32 pixels, got {image.width}x{image.height}")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


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
