"""Scales and ticks of the report's charts.

Runs in: the calling thread. Imports matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dpwa.lab.report.lines import GRID, INK, Line
from dpwa.lab.report.summary import Numbers
from dpwa.lab.report.text import bytes_text

__all__ = ["accuracies_across", "accuracy_axis", "bytes_axis", "finish", "log_axis", "plain_axis"]

_TICKS = (0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 88, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 99.5, 99.9)
# Where ticks would be too close to each other, those that come first here are kept.
_FIRST_TICKS = (90, 80, 50, 95, 99, 70, 85, 0, 10, 98, 97, 92)
_LEAST_DISTANCE = 0.055  # of the axis
_LEAST_ERROR = 0.05  # per cent
_HIGHEST_BOTTOM = 99.0  # per cent: lines that are all at 100 need an axis, too
_LONG_NUMBERS = 100_000  # from here on fewer of them fit side by side
_MOST_EVEN = 12.0  # percentage points: a wider range is spaced by the error, a smaller one evenly


def accuracy_axis(axes: Axes, lines: Sequence[Line], target: float | None) -> None:
    """A vertical axis of percentages, spaced by the logarithm of the error: a logit scale has no ticks for these."""
    axes.set_yscale("function", functions=(_height_of_accuracy, _accuracy_of_height))
    wanted = [] if target is None else [target]
    low = min([float(line.values.low.min()) for line in lines] + wanted)
    high = max([float(line.values.high.max()) for line in lines] + wanted)
    axes.set_ylim(*_space_errors(axes.yaxis, low, high))


def accuracies_across(axes: Axes, low: float, high: float) -> None:
    """A horizontal axis of percentages: a wide range is spaced in the same way, a narrow one evenly.

    Args:
        axes: of the diagram.
        low: the lowest accuracy to show, in per cent.
        high: the highest one.
    """
    if high - low > _MOST_EVEN:
        axes.set_xscale("function", functions=(_height_of_accuracy, _accuracy_of_height))
        axes.set_xlim(*_space_errors(axes.xaxis, low, high))
        return
    room = max(0.05 * (high - low), 0.05)
    axes.set_xlim(low - room, min(100.0, high + room))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def _space_errors(axis: Axis, low: float, high: float) -> tuple[float, float]:
    """Sets the ticks of an axis that is spaced by the logarithm of the error; returns its ends."""
    low = min(low, _HIGHEST_BOTTOM)
    bottom, top = max(0.0, low - 0.06 * (100 - low)), 100 - max(_LEAST_ERROR, 0.9 * (100 - high))
    edges = _height_of_accuracy(np.array([bottom, top]))
    ticks: list[float] = []
    for tick in (*_FIRST_TICKS, *(tick for tick in _TICKS if tick not in _FIRST_TICKS)):
        heights = (_height_of_accuracy(np.array([tick, *ticks])) - edges[0]) / (edges[1] - edges[0])
        if bottom <= tick <= top and all(abs(heights[1:] - heights[0]) >= _LEAST_DISTANCE):
            ticks.append(tick)
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return bottom, top


def _height_of_accuracy(accuracy: Numbers) -> Numbers:
    return -np.log10(np.maximum(100 - np.asarray(accuracy, np.float64), _LEAST_ERROR))


def _accuracy_of_height(height: Numbers) -> Numbers:
    # matplotlib also asks for values far outside the axis.
    return 100 - np.power(10.0, np.clip(-np.asarray(height, np.float64), -300, 300))


def log_axis(axes: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic vertical axis with plain numbers."""
    axes.set_yscale("log")
    low = min(float(line.values.low.min()) for line in lines)
    high = max(float(line.values.high.max()) for line in lines)
    axes.set_ylim(low / 1.15, high * 1.15)
    digits: tuple[float, ...] = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    if high / low < 3:
        digits = tuple(float(digit) for digit in np.arange(1, 10, 0.5))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=digits, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain_axis(axes: Axes, lines: Sequence[Line]) -> None:
    """A horizontal axis from 0 to the end of the longest line."""
    end = max(float(line.x[-1]) for line in lines) or 1.0
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(5 if end < _LONG_NUMBERS else 3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def bytes_axis(axes: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic horizontal axis of bytes."""
    axes.set_xscale("log")
    known = [line.x for line in lines if not line.is_level]
    low = min((float(x[0]) for x in known), default=1e6)
    high = max((float(x[-1]) for x in known), default=1e7)
    axes.set_xlim(low / 1.2, high * 1.05 if high > low else high * 1.2)
    digits = (1.0, 2.0, 5.0) if math.log10(high / low) < 1.2 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=digits, numticks=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))


def finish(axes: Axes, *, title: str, x_label: str, y_label: str) -> None:
    """Sets what all diagrams have in common."""
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9, colors=INK, which="both", length=3)
    axes.grid(visible=True, which="major", linewidth=0.5, color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
