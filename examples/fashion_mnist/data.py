"""Fashion-MNIST, and how its pictures become a model's input.

Must not know: models, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from pathlib import Path

from dpwa.examples.samples import Samples, normaliser
from dpwa.examples.torchvision_data import open_data_set

__all__ = ["load_samples", "prepare"]

prepare = normaliser((0.2860,), (0.3530,))  # mean and deviation of the training images, with pixels 0..1


def load_samples(data_dir: Path | None, *, train: bool) -> Samples:
    """All images of one part of Fashion-MNIST, as bytes.

    Args:
        data_dir: torchvision's folder; None: ./data.
        train: the training part; else the test part.
    """
    data_set = open_data_set("FashionMNIST", data_dir, train=train)
    return Samples(data_set.data.unsqueeze(1), data_set.targets.long())
