"""Draws a study: accuracy, loss and consensus of every row, by epochs, time and bytes.

A row has the same colour and dash in all charts, and its name beside the end of its line. A study with many rows has
small diagrams: for each point of its grid, in which a row has the style of its entry, or else for a few rows each.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpwa.lab.report import axes as axis
from dpwa.lab.report.grid import fold
from dpwa.lab.report.lines import INK, Line, draw_line, name_lines, names_height_inches, names_width_inches, style_of
from dpwa.lab.report.multiples import Diagrams, Scales, multiples, parts_of_many
from dpwa.lab.report.split import places_of_styles, split
from dpwa.lab.report.summary import Band, Curves, Numbers, RowSummary, Summary

__all__ = ["Chart", "charts"]

WIDTH_INCHES = 5.2  # what a phone shows with letters that can be read
PANEL_INCHES = 2.7
MOST_BATCH_ACCURACY = 99.5  # per cent: single batches without any error would stretch the axis
LEFT_INCHES, TOP_INCHES, BETWEEN_INCHES, BOTTOM_INCHES = 0.75, 0.3, 0.8, 0.55


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its file, without extension.
        title: what it shows.
        caption: how to read it.
        figure: the drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class _Panel:
    """One diagram of a chart.

    Attributes:
        title: above it.
        x: of a row's points.
        y: of a row's points.
        x_label: with its unit.
        y_label: with its unit.
        is_accuracy: whether the vertical axis is in per cent; otherwise it is logarithmic.
        is_in_bytes: whether the horizontal axis is logarithmic, in bytes; otherwise it begins at 0.
    """

    title: str
    x: Callable[[Curves], Numbers]
    y: Callable[[Curves], Band]
    x_label: str
    y_label: str
    is_accuracy: bool = False
    is_in_bytes: bool = False


_EPOCHS = "epochs"
_SAMPLES = "samples seen by all processes"
_ACCURACY = "accuracy (% of the test set)"
_BY_SEEDS = "Lines are means over the seeds; bands range from the lowest to the highest seed."
_EPOCHS_ARE = "Epochs are passes over the data by all processes together."
_BY_ERROR = "The accuracy axis is logarithmic in the error (100 % minus accuracy)."
_OTHERS = "Lines of other diagrams' rows are grey; horizontal axes may differ."
_BEGINNING = "Axes suit what comes after the first quarter of a line: its beginning may be outside."


_BY_ROUND_PANELS = (
    _Panel("Accuracy", lambda c: c.epoch, lambda c: c.accuracy, _EPOCHS, _ACCURACY, is_accuracy=True),
    _Panel("Loss", lambda c: c.epoch, lambda c: c.loss, _EPOCHS, "cross-entropy (nats, test set)"),
)
_TRAINING = "(training samples)"
_TRAINING_PANELS = (
    _Panel(
        "Accuracy",
        lambda c: c.epoch,
        lambda c: _up_to(c.train_accuracy, MOST_BATCH_ACCURACY),
        _EPOCHS,
        f"accuracy, % {_TRAINING}",
        is_accuracy=True,
    ),
    _Panel("Loss", lambda c: c.epoch, lambda c: c.train_loss, _EPOCHS, f"cross-entropy {_TRAINING}"),
)
_BATCH_PANELS = (
    _Panel("Loss", lambda c: c.batch_samples, lambda c: c.batch_loss, _SAMPLES, "loss of the batch"),
    _Panel(
        "Accuracy",
        lambda c: c.batch_samples,
        lambda c: _up_to(c.batch_accuracy, MOST_BATCH_ACCURACY),
        _SAMPLES,
        "accuracy (% of the batch)",
        is_accuracy=True,
    ),
)
_BYTES_PANEL = _Panel(
    "", lambda c: c.bytes_sent, lambda c: c.accuracy, "bytes sent", _ACCURACY, is_accuracy=True, is_in_bytes=True
)


def charts(summary: Summary) -> list[Chart]:
    """The charts of a study for which something was measured."""
    target = summary.study.target_accuracy
    made = [
        _chart(
            summary,
            "accuracy-by-round",
            "Accuracy and loss by round",
            f"Accuracy and loss of the aggregated model after each round. {_EPOCHS_ARE} {_BY_SEEDS} {_BY_ERROR}",
            *_BY_ROUND_PANELS,
        ),
        _chart(
            summary,
            "training-by-round",
            "The same on training samples",
            "Accuracy and loss of the aggregated model after each round on training samples, as many as there are "
            f"in the test set. {_BY_SEEDS} {_BY_ERROR}",
            *_TRAINING_PANELS,
        ),
        _chart(
            summary,
            "accuracy-by-time",
            "Accuracy by training time",
            "Accuracy of the aggregated model on the training clock, which leaves out start-up and evaluation."
            + (f" The dotted line is the target, {target:g} %." if target is not None else ""),
            _Panel("", lambda c: c.time_s, lambda c: c.accuracy, "training time (s)", _ACCURACY, is_accuracy=True),
        ),
        _chart(
            summary,
            "accuracy-by-bytes",
            "Accuracy by bytes sent",
            "Accuracy of the aggregated model. Bytes are those of the models or gradients that all processes together "
            "have sent. Rows that send nothing are horizontal lines at their last accuracy.",
            _BYTES_PANEL,
        ),
        _chart(
            summary,
            "loss",
            "Training batches",
            "Loss and accuracy of the training batches: means over the workers, smoothed by averaging neighbours."
            f" Accuracies above {MOST_BATCH_ACCURACY} % are drawn at {MOST_BATCH_ACCURACY} %.",
            *_BATCH_PANELS,
        ),
        _chart(
            summary,
            "consensus",
            "Consensus distance",
            f"Mean distance of the nodes' models from their mean, relative to the norm of the mean. {_BY_SEEDS}",
            _Panel("", lambda c: c.epoch, lambda c: c.consensus, _EPOCHS, "consensus distance"),
        ),
    ]
    return [chart for chart in made if chart is not None]


def _chart(summary: Summary, name: str, title: str, caption: str, *panels: _Panel) -> Chart | None:
    styles = places_of_styles(summary)
    lines = {panel: _lines(summary.rows, panel, styles) for panel in panels}
    if not any(lines.values()):
        return None
    if not any(panel.is_in_bytes for panel in panels):
        caption = f"{caption} {_BEGINNING}"
    target = summary.study.target_accuracy if name in {"accuracy-by-round", "accuracy-by-time"} else None
    folded, parts = fold(summary), split(summary)
    if folded is None and not parts:
        return Chart(name, title, caption, _figure({panel: list(lines[panel].values()) for panel in panels}, target))
    if parts:
        caption = f"{caption} {_OTHERS}"
    blocks = [Diagrams(panel.y_label, found, _drawing(panel, target)) for panel, found in lines.items() if found]
    figure = multiples(folded, blocks) if folded is not None else parts_of_many(parts, blocks)
    return Chart(name, title, caption, figure)


def _drawing(panel: _Panel, target: float | None) -> Callable[[Axes, Sequence[Line], Scales], None]:
    def draw(axes: Axes, lines: Sequence[Line], scales: Scales) -> None:
        _draw(axes, panel, lines, target, scales)

    return draw


def _lines(rows: Sequence[RowSummary], panel: _Panel, styles: Mapping[int, int]) -> dict[int, Line]:
    """The lines of those rows that have one, by the rows' indices."""
    found: dict[int, Line] = {}
    for row in rows:
        if row.curves is None:
            continue
        x, band = panel.x(row.curves), panel.y(row.curves)
        is_level = panel.is_in_bytes and not (x > 0).any()
        known = np.isfinite(x) & np.isfinite(band.mean)
        if is_level:
            known &= np.arange(len(x)) == (np.flatnonzero(known)[-1] if known.any() else -1)
        elif panel.is_in_bytes:
            known &= x > 0
        if not panel.is_accuracy:
            known &= band.low > 0
        if known.any():
            failed = "" if row.curves.is_whole else " (failed)"
            values = Band(band.mean[known], band.low[known], band.high[known])
            style = style_of(styles[row.index])
            found[row.index] = Line(f"{row.name}{failed}", style, x[known], values, is_level, row.curves.is_whole)
    return found


def _up_to(band: Band, most: float) -> Band:
    return Band(*(np.minimum(values, most) for values in (band.mean, band.low, band.high)))


def _figure(lines: dict[_Panel, list[Line]], target: float | None) -> Figure:
    """Diagrams one below the other, with room for the names on the right."""
    every = [line for found in lines.values() for line in found]
    panel_inches = max(PANEL_INCHES, names_height_inches(max(lines.values(), key=len)))
    top = TOP_INCHES if any(panel.title for panel in lines) else TOP_INCHES / 3
    height = top + len(lines) * panel_inches + (len(lines) - 1) * BETWEEN_INCHES + BOTTOM_INCHES
    width = WIDTH_INCHES
    figure = Figure(figsize=(width, height))
    right_inches = names_width_inches(every)
    for place, (panel, found) in enumerate(lines.items()):
        bottom = height - top - (place + 1) * panel_inches - place * BETWEEN_INCHES
        axes = figure.add_axes(
            (LEFT_INCHES / width, bottom / height, (width - LEFT_INCHES - right_inches) / width, panel_inches / height)
        )
        _draw(axes, panel, found, target, Scales(found, found))
        name_lines(axes, found)
    return figure


def _draw(axes: Axes, panel: _Panel, lines: Sequence[Line], target: float | None, scales: Scales) -> None:
    """Draw lines into a diagram."""
    upwards = scales.upwards if panel.is_in_bytes else [line.settled for line in scales.upwards]
    for line in lines:
        if not line.is_level:
            draw_line(axes, line)
    if not lines:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=INK)
    elif panel.is_accuracy:
        axis.accuracy_axis(axes, upwards, target)
    else:
        axis.log_axis(axes, upwards)
    if lines:
        (axis.bytes_axis if panel.is_in_bytes else axis.plain_axis)(axes, scales.across)
    if panel.is_accuracy and target is not None:
        axes.axhline(target, color=INK, linewidth=0.9, linestyle=(0, (1, 2.5)))
    for line in lines:
        if line.is_level:
            axes.axhline(line.values.mean[-1], **line.style.plot_arguments, linewidth=1.2)
    axis.finish(axes, title=panel.title, x_label=panel.x_label, y_label=panel.y_label)
