"""Draws a partition: how many samples of each class every node holds, and how many in all.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from dpwa.lab.report.lines import GRID, INK

__all__ = ["draw_partition"]

BAR_COLOUR = "#0072B2"
# One hue from light to dark, distinguishable for every eye and on every printer; without the darkest part, on which
# numbers would be hard to read.
COLOURS = LinearSegmentedColormap.from_list("samples", colormaps["Blues"](np.linspace(0.08, 0.8, 64)))

# With more than these, labels would overlap.
MOST_NUMBERS = 16
MOST_NAMES = 32
MOST_CLASS_NAMES = 40

NAME_EVERY = 8
"""With more nodes, only every eighth has a name."""


def draw_partition(counts: NDArray[np.integer], names: Sequence[str]) -> Figure:
    """The drawing: above, a bar per node with all its samples; below, a field per node and class.

    Args:
        counts: samples of each class that each node holds, shape (nodes, classes); see `partition.class_counts`.
        names: of the nodes.
    """
    nodes, classes = counts.shape
    width = float(np.clip(2.2 + 0.55 * nodes, 5.0, 11.0))
    height = float(np.clip(2.4 + 0.24 * classes, 3.6, 9.0))
    figure = Figure(figsize=(width, height), layout="constrained")
    bars, fields = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 0.24 * min(classes, 24)))
    _draw_sizes(bars, counts.sum(axis=1))
    image = _draw_classes(fields, counts)
    every = 1 if nodes <= MOST_NAMES else NAME_EVERY
    crowded = nodes > MOST_NUMBERS or max(map(len, names)) > 5
    fields.set_xticks(range(0, nodes, every), names[::every], fontsize=9, rotation=90 if crowded else 0)
    bar = figure.colorbar(image, ax=fields, fraction=0.05, pad=0.02)
    bar.set_label("samples", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    for axes in figure.axes:
        _put_in_ink(axes)
    return figure


def _put_in_ink(axes: Axes) -> None:
    """Gives labels, ticks and frame the colour that the page replaces by its own."""
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[:].set_color(INK)


def _draw_sizes(axes: Axes, sizes: NDArray[np.integer]) -> None:
    axes.bar(range(len(sizes)), sizes, color=BAR_COLOUR, width=0.8)
    axes.set_ylabel("samples", fontsize=9)
    axes.set_ylim(0, 1.25 * max(1, int(sizes.max())))
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", which="both", length=0, labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    if len(sizes) <= MOST_NUMBERS:
        for node, size in enumerate(sizes.tolist()):
            axes.text(node, size, str(size), fontsize=8, color=INK, ha="center", va="bottom")


def _draw_classes(axes: Axes, counts: NDArray[np.integer]) -> AxesImage:
    nodes, classes = counts.shape
    largest = max(1, int(counts.max()))
    # A class that a node does not hold stays empty, to distinguish none from few at a glance.
    image = axes.imshow(
        np.ma.masked_equal(counts.T, 0), cmap=COLOURS, vmin=0, vmax=largest, aspect="auto", interpolation="nearest"
    )
    axes.set_ylabel("class", fontsize=9)
    every = 1 if classes <= MOST_CLASS_NAMES else 10
    axes.set_yticks(range(0, classes, every), [str(label) for label in range(0, classes, every)], fontsize=8)
    axes.set_xticks(np.arange(nodes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(_remark(counts), fontsize=9)
    if nodes <= MOST_NUMBERS and classes <= MOST_CLASS_NAMES:
        for node, label in np.argwhere(counts > 0).tolist():
            count = int(counts[node, label])
            colour = "white" if count > 0.6 * largest else "black"
            axes.text(node, label, str(count), fontsize=8, color=colour, ha="center", va="center")
    return image


def _remark(counts: NDArray[np.integer]) -> str:
    """The label of the axis, with the classes that no node holds."""
    missing = np.flatnonzero(counts.sum(axis=0) == 0).tolist()
    if not missing:
        return "node"
    return f"node (no node holds {'class' if len(missing) == 1 else 'classes'} {', '.join(map(str, missing))})"
