"""Small data sets in place of the real ones, and torch's random state as it was after each test of the examples."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _random_state_kept() -> Iterator[None]:
    random_state = torch.get_rng_state()
    yield
    torch.set_rng_state(random_state)


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """A Fashion-MNIST of 300 and 40 random images, in torchvision's layout."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 40)):
        _write_idx(raw / f"{part}-images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28)))
        _write_idx(raw / f"{part}-labels-idx1-ubyte", generator.integers(0, 10, count))
    return tmp_path


@pytest.fixture
def cifar10_folder(tmp_path: Path) -> Path:
    """A folder of 2 classes with 130 training and 4 test images each; each image has a colour of its own."""
    for part, count in (("train", 130), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (index, label, 99)).save(folder / f"{index:04}.png")
    return tmp_path
