"""Draws the final accuracy of each row: a dot with its interval, one row below the other, for any number of rows.

Runs in: the calling thread. Imports matplotlib.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from dpwa.lab.report import axes as axis
from dpwa.lab.report.charts import Chart
from dpwa.lab.report.lines import INK, style_of
from dpwa.lab.report.summary import RowSummary, Summary

__all__ = ["final_chart"]

WIDTH_INCHES = 8.2
ROW_INCHES = 0.24
TOP_INCHES, BOTTOM_INCHES, RIGHT_INCHES = 0.12, 0.55, 0.25
LETTER_INCHES = 0.072


def final_chart(summary: Summary) -> Chart | None:
    """The final accuracy of each row; None if no row is done."""
    ended = [row for row in summary.rows if row.accuracy is not None]
    if not ended:
        return None
    is_per_cent = summary.study.literature_unit == "%"
    seen = [value for row in ended for value in _values(row, with_literature=is_per_cent)]
    height = TOP_INCHES + ROW_INCHES * len(summary.rows) + BOTTOM_INCHES
    names_inches = 0.2 + LETTER_INCHES * max(len(row.name) for row in summary.rows)
    figure = Figure(figsize=(WIDTH_INCHES, height))
    axes = figure.add_axes(
        (
            names_inches / WIDTH_INCHES,
            BOTTOM_INCHES / height,
            (WIDTH_INCHES - names_inches - RIGHT_INCHES) / WIDTH_INCHES,
            ROW_INCHES * len(summary.rows) / height,
        )
    )
    for place, row in enumerate(summary.rows):
        if row.accuracy is None:
            axes.annotate("no result", (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
            continue
        colour = style_of(row.index).colour
        axes.plot(row.accuracy.values, [place] * len(row.accuracy.values), "o", color=colour, markersize=3, alpha=0.5)
        axes.errorbar(
            row.accuracy.mean, place, xerr=row.accuracy.half_width, fmt="o", color=colour, markersize=6, capsize=3
        )
        if is_per_cent and row.literature is not None:
            axes.plot(row.literature, place, "D", color=INK, markersize=5, markerfacecolor="none")
    axis.accuracies_across(axes, min(seen), max(seen))
    axes.set_ylim(len(summary.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axis.finish(axes, title="", x_label="final accuracy (% of the test set)", y_label="")
    caption = (
        "Of the aggregated model: means over the seeds with 95 % confidence intervals. Small dots are single seeds."
    )
    if is_per_cent and any(row.literature is not None for row in ended):
        caption += " Diamonds are numbers from the literature."
    return Chart("accuracy", "Final accuracy", caption, figure)


def _values(row: RowSummary, *, with_literature: bool) -> list[float]:
    """All accuracies of a row that the chart shows."""
    found = list(row.accuracy.values) if row.accuracy is not None else []
    return [*found, row.literature] if with_literature and row.literature is not None else found
