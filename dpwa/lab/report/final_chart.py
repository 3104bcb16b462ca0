"""Draws the final accuracy of each row: its seeds, and mean and interval where there are enough of them.

One row stands below the other; of a folded study those that differ in the grid's last key stand in one line.

Runs in: the calling thread. Imports matplotlib.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpwa.lab.report import axes as axis
from dpwa.lab.report.charts import WIDTH_INCHES, Chart
from dpwa.lab.report.grid import Fold, fold
from dpwa.lab.report.lines import INK, style_of
from dpwa.lab.report.split import places_of_styles
from dpwa.lab.report.statistics import FEWEST_FOR_INTERVAL
from dpwa.lab.report.summary import RowSummary, Summary

__all__ = ["final_chart"]

ROW_INCHES, LINE_INCHES = 0.24, 0.13
TOP_INCHES, BOTTOM_INCHES, RIGHT_INCHES = 0.12, 0.55, 0.25
LETTER_INCHES = 0.072
LETTERS_OF_A_NAME = 22
KEY_INCHES = 0.3  # above the diagram of a folded study
BESIDE_INCHES = 0.06  # between the dots of one line


def final_chart(summary: Summary) -> Chart | None:
    """The final accuracy of each row; None if no row is done."""
    ended = [row for row in summary.rows if row.accuracy is not None]
    if not ended:
        return None
    with_literature = summary.study.literature_unit == "%" and all(row.is_same_recipe for row in summary.rows)
    seen = [value for row in ended for value in _values(row, with_literature=with_literature)]
    folded = fold(summary)
    lines = summary.rows if folded is None else folded.rows
    names = ["\n".join(textwrap.wrap(line.name, LETTERS_OF_A_NAME)) or line.name for line in lines]
    edges = [0.0, *accumulate(ROW_INCHES + LINE_INCHES * name.count("\n") for name in names)]
    middles = [(above + below) / 2 for above, below in pairwise(edges)]
    height = TOP_INCHES + edges[-1] + BOTTOM_INCHES + (0 if folded is None else KEY_INCHES)
    names_inches = 0.2 + LETTER_INCHES * max(len(line) for name in names for line in name.split("\n"))
    figure = Figure(figsize=(WIDTH_INCHES, height))
    axes = figure.add_axes(
        (
            names_inches / WIDTH_INCHES,
            BOTTOM_INCHES / height,
            (WIDTH_INCHES - names_inches - RIGHT_INCHES) / WIDTH_INCHES,
            edges[-1] / height,
        )
    )
    for place, row, index in _places(summary, folded, middles):
        _draw_row(axes, place, row, style_of(index).colour)
        if with_literature and row.accuracy is not None and row.literature is not None:
            axes.plot(row.literature, place, "D", color=INK, markersize=5, markerfacecolor="none")
    if folded is not None:
        _draw_key(figure, folded)
    axis.accuracies_across(axes, min(seen), max(seen))
    axes.set_ylim(edges[-1], 0)
    axes.set_yticks(middles, names, parse_math=False)
    axis.finish(axes, title="", x_label="final accuracy (% of the test set)", y_label="")
    return Chart("accuracy", "Final accuracy", _caption(ended, with_literature=with_literature), figure)


def _places(summary: Summary, folded: Fold | None, middles: Sequence[float]) -> Iterator[tuple[float, RowSummary, int]]:
    """How far down each row stands, and the index of its colour."""
    if folded is None:
        styles = places_of_styles(summary)
        for place, row in zip(middles, summary.rows, strict=True):
            yield place, row, styles[row.index]
        return
    for place, line in zip(middles, folded.rows, strict=True):
        first = place - BESIDE_INCHES * (len(line.cells) - 1) / 2
        for at, cell in enumerate(line.cells):
            if cell is not None and (cell.accuracy is not None or line.cells.count(None) == len(line.cells) - 1):
                yield first + at * BESIDE_INCHES, cell, at


def _draw_key(figure: Figure, folded: Fold) -> None:
    dots = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=style_of(at).colour)
        for at in range(len(folded.titles))
    ]
    figure.legend(dots, folded.titles, loc="upper right", ncol=len(dots), fontsize=8.5, frameon=False, borderpad=0.1)


def _draw_row(axes: Axes, place: float, row: RowSummary, colour: str) -> None:
    """A dot for each seed; of enough seeds a large one for their mean, with its interval."""
    found = row.accuracy
    if found is None:
        axes.annotate(
            "no result", (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
        )
        return
    has_interval = found.half_width is not None
    axes.plot(
        found.values,
        [place] * len(found.values),
        "o",
        color=colour,
        markersize=3 if has_interval else 5,
        alpha=0.5 if has_interval else 0.8,
    )
    if has_interval:
        axes.errorbar(found.mean, place, xerr=found.half_width, fmt="o", color=colour, markersize=6, capsize=3)


def _caption(ended: Sequence[RowSummary], *, with_literature: bool) -> str:
    parts = ["Of the aggregated model. Small dots are single seeds."]
    intervals = [row.accuracy is not None and row.accuracy.half_width is not None for row in ended]
    if any(intervals):
        parts.append("Large dots are their means, with 95 % confidence intervals.")
    if not all(intervals):
        parts.append(f"Fewer than {FEWEST_FOR_INTERVAL} seeds give no interval.")
    if with_literature and any(row.literature is not None for row in ended):
        parts.append("Diamonds are numbers from the literature.")
    return " ".join(parts)


def _values(row: RowSummary, *, with_literature: bool) -> list[float]:
    """All accuracies of a row that the chart shows, the ends of its interval included."""
    found: list[float] = []
    if row.accuracy is not None:
        half_width = row.accuracy.half_width or 0.0
        ends = (row.accuracy.mean - half_width, row.accuracy.mean + half_width)
        found += [*row.accuracy.values, *(min(100.0, max(0.0, end)) for end in ends if math.isfinite(end))]
    return [*found, row.literature] if with_literature and row.literature is not None else found
