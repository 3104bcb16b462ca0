"""Fashion-MNIST for tests: the real one where DPWA_DATA_DIR has it, otherwise images of its number, size and files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

# Read when the tests are collected: later, none of these variables reaches them.
_REAL = Path(os.environ.get("DPWA_DATA_DIR", "data")).absolute()
_FOLDER = Path("FashionMNIST", "raw")
_PARTS = {"train": 60_000, "t10k": 10_000}
_CLASSES, _SIDE = 10, 28


def fashion_folder(made_in: Path) -> tuple[Path, bool]:
    """The folder to train from, and whether its images are the real ones.

    Args:
        made_in: where images are made, if they have to be.
    """
    if all((_REAL / _FOLDER / f"{part}-images-idx3-ubyte").exists() for part in _PARTS):
        return _REAL, True
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 192, (_CLASSES, _SIDE, _SIDE), dtype=np.uint8)
    folder = made_in / _FOLDER
    folder.mkdir(parents=True)
    for part, count in _PARTS.items():
        labels = rng.integers(0, _CLASSES, count, dtype=np.uint8)
        images = classes[labels]
        images += rng.integers(0, 64, images.shape, dtype=np.uint8)
        head = struct.pack(">IIII", 0x0803, count, _SIDE, _SIDE)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x0801, count) + labels.tobytes())
    return made_in, False
