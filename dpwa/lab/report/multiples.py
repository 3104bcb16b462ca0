"""Draws the curves of a study with many rows as small diagrams.

Of a folded study there is one for each point of the grid, all with the same lines; of a split one each has a few rows,
and those of all others in grey.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpwa.lab.report.grid import Fold
from dpwa.lab.report.lines import INK, Line, style_of
from dpwa.lab.report.summary import RowSummary

__all__ = ["Diagrams", "Scales", "multiples", "parts_of_many"]

_WIDTH_INCHES = 7.0
_LEFT_INCHES, _RIGHT_INCHES, _BETWEEN_INCHES = 0.6, 0.1, 0.42
_PANEL_INCHES, _ABOVE_INCHES = 1.15, 0.5
_HEADING_INCHES = 0.3
_BOTTOM_INCHES, _KEY_INCHES = 0.5, 0.17
_NAMES_BESIDE = 2  # in the key below the diagrams
_PARTS_BESIDE = 2
_PART_INCHES, _BELOW_INCHES = 1.6, 0.55
_NAMES_BELOW_INCHES = 0.34
_LETTERS_OF_A_NAME = 48
_OTHERS = "#cfcfcc"


@dataclass(frozen=True)
class Scales:
    """What the axes of a diagram are to show.

    Attributes:
        across: lines that the horizontal axis must hold.
        upwards: lines that the vertical one must hold.
    """

    across: Sequence[Line]
    upwards: Sequence[Line]


@dataclass(frozen=True)
class Diagrams:
    """What is drawn in each diagram of a block.

    Attributes:
        title: of all of them: what is drawn, with its unit.
        lines: by the index of the row that they are of.
        draw: draws some of them into axes.
    """

    title: str
    lines: Mapping[int, Line]
    draw: Callable[[Axes, Sequence[Line], Scales], None]


def multiples(fold: Fold, blocks: Sequence[Diagrams]) -> Figure:
    """Blocks of diagrams one below the other: one column for each value of the last key, and a key of the lines."""
    across, down = len(fold.titles), len(fold.places)
    key_inches = _KEY_INCHES * math.ceil(len(fold.entries) / _NAMES_BESIDE) + 0.1
    row_inches = _PANEL_INCHES + _ABOVE_INCHES
    block_inches = _HEADING_INCHES + down * row_inches + _BOTTOM_INCHES
    height = len(blocks) * block_inches + key_inches
    figure = Figure(figsize=(_WIDTH_INCHES, height))
    panel_inches = (_WIDTH_INCHES - _LEFT_INCHES - _RIGHT_INCHES - (across - 1) * _BETWEEN_INCHES) / across
    for number, block in enumerate(blocks):
        heading = 1 - (number * block_inches + 0.05) / height
        figure.text(0.02, heading, block.title, fontsize=9.5, color=INK, va="top", parse_math=False)
        top = height - number * block_inches - _HEADING_INCHES
        for at, place in enumerate(fold.places):
            rows = [row for row in fold.rows if row.place == place]
            alike = [line for row in rows for line in _lines(block, row.cells)]
            for column, title in enumerate(fold.titles):
                left = _LEFT_INCHES + column * (panel_inches + _BETWEEN_INCHES)
                bottom = top - (at + 1) * row_inches
                box = (left / _WIDTH_INCHES, bottom / height, panel_inches / _WIDTH_INCHES, _PANEL_INCHES / height)
                axes = figure.add_axes(box)
                found = [line for row in rows for line in _lines(block, row.cells[column : column + 1])]
                block.draw(axes, found, Scales(alike, alike))
                axes.set_title(f"{place}\n{title}".strip(), fontsize=7.5, color=INK, loc="left", parse_math=False)
                axes.set_xlabel(axes.get_xlabel() if at == down - 1 else "", fontsize=7.5)
                axes.set_ylabel("")
                axes.tick_params(labelsize=7)
    marks = [Line2D([], [], linewidth=1.8, **style_of(at).plot_arguments) for at in range(len(fold.entries))]
    figure.legend(marks, fold.entries, loc="lower center", ncol=_NAMES_BESIDE, fontsize=7.5, frameon=False)
    return figure


def parts_of_many(parts: Sequence[Sequence[RowSummary]], blocks: Sequence[Diagrams]) -> Figure:
    """Blocks of diagrams one below the other, each of a few rows, with their names below it.

    Args:
        parts: the rows of each diagram.
        blocks: what is drawn.
    """
    endings = {index: " (failed)" for block in blocks for index, line in block.lines.items() if not line.is_whole}
    names = [[_wrapped(row.name + endings.get(row.index, "")) for row in part] for part in parts]
    most = max(sum(name.count("\n") + 1 for name in found) for found in names)
    row_inches = _PART_INCHES + _BELOW_INCHES + _KEY_INCHES * most
    down = math.ceil(len(parts) / _PARTS_BESIDE)
    block_inches = _HEADING_INCHES + down * row_inches
    height = len(blocks) * block_inches
    figure = Figure(figsize=(_WIDTH_INCHES, height))
    width = (_WIDTH_INCHES - _LEFT_INCHES - _RIGHT_INCHES - (_PARTS_BESIDE - 1) * _BETWEEN_INCHES) / _PARTS_BESIDE
    for number, block in enumerate(blocks):
        top = height - number * block_inches
        figure.text(0.02, (top - 0.05) / height, block.title, fontsize=9.5, color=INK, va="top", parse_math=False)
        for at, (part, named) in enumerate(zip(parts, names, strict=True)):
            left = _LEFT_INCHES + at % _PARTS_BESIDE * (width + _BETWEEN_INCHES)
            bottom = top - _HEADING_INCHES - at // _PARTS_BESIDE * row_inches - _PART_INCHES
            axes = figure.add_axes(
                (left / _WIDTH_INCHES, bottom / height, width / _WIDTH_INCHES, _PART_INCHES / height)
            )
            _draw_part(axes, part, named, block)
    return figure


def _draw_part(axes: Axes, part: Sequence[RowSummary], names: Sequence[str], block: Diagrams) -> None:
    own = {row.index: block.lines[row.index] for row in part if row.index in block.lines}
    if own:
        for index, line in block.lines.items():
            if index not in own and not line.is_level:
                axes.plot(line.x, line.values.mean, color=_OTHERS, linewidth=0.7, zorder=1)
    block.draw(axes, list(own.values()), Scales(list(own.values()), list(block.lines.values())))
    axes.set_title("", loc="left")
    axes.set_xlabel(axes.get_xlabel(), fontsize=7.5)
    axes.set_ylabel("")
    axes.tick_params(labelsize=7)
    marks = [Line2D([], [], linewidth=1.8, **style_of(place).plot_arguments) for place in range(len(part))]
    below = -_NAMES_BELOW_INCHES / _PART_INCHES
    axes.legend(marks, names, loc="upper left", bbox_to_anchor=(-0.12, below), fontsize=7.5, frameon=False, borderpad=0)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _LETTERS_OF_A_NAME)) or name


def _lines(block: Diagrams, cells: Sequence[RowSummary | None]) -> list[Line]:
    return [block.lines[cell.index] for cell in cells if cell is not None and cell.index in block.lines]
