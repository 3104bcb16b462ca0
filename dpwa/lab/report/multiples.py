"""Draws the curves of a folded study: one small diagram for each point of the grid, all with the same lines.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpwa.lab.report.grid import Fold
from dpwa.lab.report.lines import INK, Line, style_of
from dpwa.lab.report.summary import RowSummary

__all__ = ["Diagrams", "multiples"]

_WIDTH_INCHES = 7.0
_LEFT_INCHES, _RIGHT_INCHES, _BETWEEN_INCHES = 0.6, 0.1, 0.42
_PANEL_INCHES, _ABOVE_INCHES = 1.15, 0.5
_HEADING_INCHES = 0.3
_BOTTOM_INCHES, _KEY_INCHES = 0.5, 0.17
_NAMES_BESIDE = 2  # in the key below the diagrams


@dataclass(frozen=True)
class Diagrams:
    """What is drawn at each point of the grid.

    Attributes:
        title: of all of them: what is drawn, with its unit.
        lines: by the index of the row that they are of.
        draw: draws some of them into axes, on the scales of the second sequence.
    """

    title: str
    lines: Mapping[int, Line]
    draw: Callable[[Axes, Sequence[Line], Sequence[Line]], None]


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
                block.draw(axes, found, alike)
                axes.set_title(f"{place}\n{title}".strip(), fontsize=7.5, color=INK, loc="left", parse_math=False)
                axes.set_xlabel(axes.get_xlabel() if at == down - 1 else "", fontsize=7.5)
                axes.set_ylabel("")
                axes.tick_params(labelsize=7)
    marks = [Line2D([], [], linewidth=1.8, **style_of(at).plot_arguments) for at in range(len(fold.entries))]
    figure.legend(marks, fold.entries, loc="lower center", ncol=_NAMES_BESIDE, fontsize=7.5, frameon=False)
    return figure


def _lines(block: Diagrams, cells: Sequence[RowSummary | None]) -> list[Line]:
    return [block.lines[cell.index] for cell in cells if cell is not None and cell.index in block.lines]
