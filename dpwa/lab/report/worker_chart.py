"""Draws the training batches of every worker: beside each other, one pair of diagrams for each row.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpwa.lab.report.charts import WIDTH_INCHES, Chart
from dpwa.lab.report.lines import GRID, INK, style_of
from dpwa.lab.report.results import Batches, number
from dpwa.lab.report.summary import RowSummary, Summary

__all__ = ["worker_chart"]

MOST_ROWS = 12
_ROW_INCHES = 1.55
_ENDS_INCHES = 0.5


def worker_chart(summary: Summary) -> Chart | None:
    """Loss and accuracy of each worker's batches; None if no row has several workers."""
    rows = [row for row in summary.rows if _lines(row)]
    if not rows:
        return None
    shown = rows[:MOST_ROWS]
    figure = Figure(figsize=(WIDTH_INCHES, _ROW_INCHES * len(shown) + _ENDS_INCHES), layout="constrained")
    fields = figure.subplots(len(shown), 2, squeeze=False, sharex="row")
    for (left, right), row in zip(fields, shown, strict=True):
        for index, (name, batches) in enumerate(_lines(row).items()):
            style = style_of(index).plot_arguments
            samples = np.array(batches.samples)
            left.plot(samples, [number(value) for value in batches.loss], label=name, linewidth=0.9, **style)
            accuracies = [100 * number(value) for value in batches.accuracy]
            right.plot(samples, accuracies, linewidth=0.9, **style)
        left.set_title(row.name, loc="left", fontsize=9, color=INK, parse_math=False)
        _finish(left, "loss")
        _finish(right, "accuracy, %")
    for axes in fields[-1]:
        axes.set_xlabel("samples of this worker", fontsize=9, color=INK)
    left_out = f" The first {MOST_ROWS} of {len(rows)} rows." if len(rows) > MOST_ROWS else ""
    seeds = {_lines_of(row)[0] for row in shown}
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed of each row"
    caption = f"Training batches of each worker, smoothed by averaging neighbours; {seed}.{left_out}"
    return Chart("workers", "Training batches of every worker", caption, figure)


def _lines(row: RowSummary) -> dict[str, Batches]:
    return _lines_of(row)[1]


def _lines_of(row: RowSummary) -> tuple[int, dict[str, Batches]]:
    """The first seed of which there is something, and its workers' batches; without any, nothing."""
    for result in row.measured:
        found = {name: batches for name, batches in result.worker_batches.items() if batches.samples}
        if len(found) > 1:
            return result.seed, found
    return 0, {}


def _finish(axes: Axes, what: str) -> None:
    axes.set_ylabel(what, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(visible=True, linewidth=0.5, color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
