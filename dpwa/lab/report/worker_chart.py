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

__all__ = ["MOST_WORKERS", "worker_charts"]

ROWS_PER_CHART = 12
MOST_CHARTS = 3
MOST_WORKERS = 16
"""Of a row: more lines hide each other."""
_ROW_INCHES = 1.55
_ENDS_INCHES = 0.5


def worker_charts(summary: Summary) -> list[Chart]:
    """Loss and accuracy of each worker's batches, as many charts as the rows with several workers need."""
    rows = [row for row in summary.rows if _lines(row)]
    shown = rows[: MOST_CHARTS * ROWS_PER_CHART]
    parts = [shown[first : first + ROWS_PER_CHART] for first in range(0, len(shown), ROWS_PER_CHART)]
    left_out = f" The first {len(shown)} of {len(rows)} rows." if len(rows) > len(shown) else ""
    if any(len(_lines(row)) > MOST_WORKERS for row in shown):
        left_out = f" The first {MOST_WORKERS} workers of rows with more.{left_out}"
    return [_chart(part, place, len(parts), left_out) for place, part in enumerate(parts, start=1)]


def _chart(shown: list[RowSummary], place: int, count: int, left_out: str) -> Chart:
    figure = Figure(figsize=(WIDTH_INCHES, _ROW_INCHES * len(shown) + _ENDS_INCHES), layout="constrained")
    fields = figure.subplots(len(shown), 2, squeeze=False, sharex="row")
    for (left, right), row in zip(fields, shown, strict=True):
        _draw(left, right, row)
    for axes in fields[-1]:
        axes.set_xlabel("samples of this worker", fontsize=9, color=INK)
    seeds = {_lines_of(row)[0] for row in shown}
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed of each row"
    caption = f"Training batches of each worker, smoothed by averaging neighbours; {seed}.{left_out}"
    title = "Training batches of every worker"
    name = "workers" if place == 1 else f"workers-{place}"
    return Chart(name, title if count == 1 else f"{title}, {place} of {count}", caption, figure)


def _draw(left: Axes, right: Axes, row: RowSummary) -> None:
    for index, (name, batches) in enumerate(list(_lines(row).items())[:MOST_WORKERS]):
        style = style_of(index).plot_arguments
        samples = np.array(batches.samples)
        left.plot(samples, [number(value) for value in batches.loss], label=name, linewidth=0.9, **style)
        accuracies = [100 * number(value) for value in batches.accuracy]
        right.plot(samples, accuracies, linewidth=0.9, **style)
    left.set_title(row.name, loc="left", fontsize=9, color=INK, parse_math=False)
    _finish(left, "loss")
    _finish(right, "accuracy, %")


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
