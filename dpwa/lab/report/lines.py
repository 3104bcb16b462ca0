"""Lines of the report's charts: one style per row, a band over the seeds, the row's name beside the line's end.

Must not know: what is measured. Runs in: the calling thread. Imports matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpwa.lab.report.summary import Band, Numbers

__all__ = [
    "COLOURS",
    "GRID",
    "INK",
    "Line",
    "Style",
    "draw_line",
    "name_lines",
    "names_height_inches",
    "names_width_inches",
    "spread",
    "style_of",
]

INK = "#1f1f1e"
GRID = "#dededc"

# Distinguishable for colour-blind readers, too (Okabe and Ito, without yellow, which is hard to see on white). After
# the seventh row they start again with another dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.2)), (0, (6, 1.6, 1.2, 1.6)))

_POINTS_WITH_MARKERS = 6
_LETTERS_OF_A_NAME = 22
_LETTER_INCHES = 0.074
_LETTER_POINTS = 8.5
_LINE_INCHES = 0.145
_SLOT_INCHES = 0.05  # between two names
_SAMPLE_INCHES = (0.14, 0.46)  # of a piece of the line before its name, from the right edge of the axes
_NAME_INCHES = 0.52


@dataclass(frozen=True)
class Style:
    """How the lines of a row look."""

    colour: str
    dash: Any

    @property
    def plot_arguments(self) -> dict[str, Any]:
        """For matplotlib."""
        return {"color": self.colour, "linestyle": self.dash}


def style_of(index: int) -> Style:
    """The style of the row with this place in its diagram."""
    return Style(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])


@dataclass(frozen=True)
class Line:
    """One row in one diagram.

    Attributes:
        name: of the row.
        style: of the row.
        x: shape (points,), at least one.
        values: finite, of the same shape.
        is_level: it has no values on the horizontal axis; it is a horizontal line at its last value.
        is_whole: whether the training was completed.
    """

    name: str
    style: Style
    x: Numbers
    values: Band
    is_level: bool = False
    is_whole: bool = True

    @property
    def settled(self) -> Line:
        """The line after its first quarter, in which it comes from where an untrained model is."""
        late = self.x >= self.x[-1] / 4
        values = Band(self.values.mean[late], self.values.low[late], self.values.high[late])
        return replace(self, x=self.x[late], values=values)

    @property
    def wrapped(self) -> str:
        """The name in lines that fit beside the axes."""
        return "\n".join(textwrap.wrap(self.name, _LETTERS_OF_A_NAME)) or self.name

    @property
    def height_inches(self) -> float:
        """Of its name."""
        return (self.wrapped.count("\n") + 1) * _LINE_INCHES + _SLOT_INCHES


def names_width_inches(lines: Sequence[Line]) -> float:
    """Room for the names beside the axes."""
    longest = max(len(part) for line in lines for part in line.wrapped.split("\n"))
    return _NAME_INCHES + longest * _LETTER_INCHES + 0.1


def names_height_inches(lines: Sequence[Line]) -> float:
    """Room for the names above each other."""
    return sum(line.height_inches for line in lines)


def draw_line(axes: Axes, line: Line) -> None:
    """Draws the mean, the band around it, and a mark where it ends early."""
    marker = "o" if len(line.x) <= _POINTS_WITH_MARKERS else ""
    if np.any(line.values.high > line.values.low):
        axes.fill_between(
            line.x, line.values.low, line.values.high, color=line.style.colour, alpha=0.16, linewidth=0, zorder=1.5
        )
    axes.plot(line.x, line.values.mean, **line.style.plot_arguments, linewidth=1.6, marker=marker, markersize=2.6)
    if not line.is_whole:
        axes.plot(line.x[-1:], line.values.mean[-1:], color=line.style.colour, marker="X", markersize=7)


def name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Puts names to the right of the axes, as close to the lines' ends as possible without touching."""
    figure = axes.figure
    box = axes.get_position()
    width_inches = box.width * figure.get_figwidth()  # type: ignore[union-attr]
    height_inches = box.height * figure.get_figheight()  # type: ignore[union-attr]
    to_share = axes.transData + axes.transAxes.inverted()
    ends = [to_share.transform((line.x[-1], line.values.mean[-1])) for line in lines]
    heights = [line.height_inches / height_inches for line in lines]
    places = spread([float(np.clip(end[1], 0, 1)) for end in ends], heights)
    begin, stop = (1 + inches / width_inches for inches in _SAMPLE_INCHES)
    for line, end, place in zip(lines, ends, places, strict=True):
        common: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": line.style.colour}
        axes.plot([begin, stop], [place, place], linestyle=line.style.dash, linewidth=1.8, **common)
        if line.is_level or end[0] > 0.9:  # from further away it would cross other lines
            axes.plot([max(end[0], 1.0) + 0.003, begin], [end[1], place], linewidth=0.6, alpha=0.7, **common)
        axes.text(
            1 + _NAME_INCHES / width_inches,
            place,
            line.wrapped,
            transform=axes.transAxes,
            fontsize=_LETTER_POINTS,
            color=INK,
            verticalalignment="center",
            linespacing=1.15,
            parse_math=False,
        )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Positions near the wanted ones, at which items of these heights do not overlap.

    Items that would overlap form a group around the mean of their wanted positions.

    Args:
        wanted: middles, in 0..1.
        heights: of the items, in the same unit.

    Returns:
        Middles, in the order of the arguments; all within 0..1 if the heights allow it.
    """
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    groups: list[list[int]] = []
    for at in order:
        groups.append([at])
        while len(groups) > 1 and _bottom(groups[-2], wanted, heights) + _height(groups[-2], heights) > _bottom(
            groups[-1], wanted, heights
        ):
            last = groups.pop()
            groups[-1].extend(last)
    places = [0.0] * len(wanted)
    for group in groups:
        edge = _bottom(group, wanted, heights)
        for at in group:
            places[at] = edge + heights[at] / 2
            edge += heights[at]
    return places


def _height(group: Sequence[int], heights: Sequence[float]) -> float:
    return sum(heights[at] for at in group)


def _bottom(group: Sequence[int], wanted: Sequence[float], heights: Sequence[float]) -> float:
    height = _height(group, heights)
    middle = sum(wanted[at] for at in group) / len(group)
    return max(0.0, min(middle - height / 2, 1.0 - height))
