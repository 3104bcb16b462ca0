"""Draws some images of each class of a data set.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dpwa.lab.report.lines import INK

__all__ = ["draw_class_samples"]

IMAGES_PER_CLASS = 10
MOST_CLASSES = 20
_CELL_INCHES = 0.44
_NAME_INCHES = 0.45


def draw_class_samples(path: Path) -> Figure | None:
    """The drawing: a row of images for each class, the first ones of the training set.

    Args:
        path: the file with all images of a data set that a run has made; see `dpwa.lab.training.data.load`.

    Returns:
        None if the file cannot be read or holds no images: a report does without.
    """
    try:
        images = _images(path)
    except (OSError, SafetensorError):
        return None
    if not images:
        return None
    width, height = _NAME_INCHES + IMAGES_PER_CLASS * _CELL_INCHES, len(images) * _CELL_INCHES
    figure = Figure(figsize=(width, height))
    fields = figure.subplots(len(images), IMAGES_PER_CLASS, squeeze=False)
    figure.subplots_adjust(left=_NAME_INCHES / width, right=1, bottom=0, top=1, wspace=0.06, hspace=0.06)
    for row, (label, found) in zip(fields, images.items(), strict=True):
        for axes, image in zip(row, [*found, *[None] * (IMAGES_PER_CLASS - len(found))], strict=True):
            axes.axis("off")
            if image is not None:
                axes.imshow(image, cmap="gray_r", interpolation="nearest")
        row[0].text(-0.35, 0.5, str(label), transform=row[0].transAxes, ha="center", va="center", fontsize=9, color=INK)
    return figure


def _images(path: Path) -> dict[int, list[NDArray[np.float64]]]:
    """Of each class the first images, shape (height, width) or (height, width, 3), values 0..1."""
    with safe_open(path, framework="numpy") as file:
        if not {"train_images", "train_labels"} <= set(file.keys()):
            return {}
        stored, labels = file.get_slice("train_images"), file.get_tensor("train_labels")
        if len(stored.get_shape()) != 4 or labels.ndim != 1:
            return {}  # sequences have no picture
        places = {
            int(label): np.flatnonzero(labels == label)[:IMAGES_PER_CLASS] for label in np.unique(labels)[:MOST_CLASSES]
        }
        return {label: [_image(stored[at : at + 1][0]) for at in found.tolist()] for label, found in places.items()}


def _image(stored: NDArray[np.generic]) -> NDArray[np.float64]:
    """One image for matplotlib, from channels, height and width: three are colours, of fewer the first is shown."""
    values = stored.astype(np.float64)
    low, high = values.min(), values.max()
    values = (values - low) / max(high - low, 1e-12)
    return values[0] if len(values) < 3 else np.moveaxis(values[:3], 0, -1)
