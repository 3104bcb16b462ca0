"""Draws the curves of a run: loss and accuracy of each node over time, as one PNG.

Must not know: how the nodes were started. Runs in: the calling thread. Imports matplotlib: import this module only when
a picture is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpwa.observe.live import Record

__all__ = ["draw_curves"]

# 1800 pixels wide: sharp when a page shows it at half that size, with text of at least about 10 pixels.
SIZE_INCHES = (9.0, 4.3)
DOTS_PER_INCH = 200

# Distinguishable for colour-blind readers, too (Okabe and Ito).
NODE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
AVERAGE_COLOUR = "#222222"

SMOOTHED_RECORDS = 4


def draw_curves(
    path: Path,
    *,
    together: Mapping[str, Sequence[Record]],
    alone: Mapping[str, Sequence[Record]],
    averaged_accuracy: float,
) -> None:
    """Writes the picture.

    Args:
        path: the PNG file.
        together: the metrics of each node of the cluster, by name.
        alone: the metrics of the same nodes when each trained alone, by name; drawn dashed.
        averaged_accuracy: of the mean of the cluster's final models, 0..1; drawn as a horizontal line.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for index, name in enumerate(together):
        colour = NODE_COLOURS[index % len(NODE_COLOURS)]
        _draw_node(loss_axes, accuracy_axes, together[name], colour, label=name, line_style="solid")
        _draw_node(loss_axes, accuracy_axes, alone.get(name, ()), colour, label=f"{name} alone", line_style="dashed")
    accuracy_axes.axhline(
        averaged_accuracy * 100,
        color=AVERAGE_COLOUR,
        linestyle="dotted",
        linewidth=1.6,
        label=f"averaged model: {averaged_accuracy:.1%}",
    )
    _label(loss_axes, f"loss (nats, mean of {SMOOTHED_RECORDS} readings)", "Training loss on the node's own shard")
    loss_axes.set_yscale("log")
    _label(accuracy_axes, "accuracy (% of held-out images)", "Accuracy on all classes")
    accuracy_axes.set_ylim(0, 102)
    handles, labels = accuracy_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw_node(
    loss_axes: Axes, accuracy_axes: Axes, records: Sequence[Record], colour: str, *, label: str, line_style: str
) -> None:
    started_s, ended_s = _training_span(records)
    width = 1.6 if line_style == "solid" else 1.1
    losses = _points([record for record in records if started_s <= record["t"] <= ended_s], "loss")
    loss_axes.plot(
        [moment_s - started_s for moment_s, _ in losses],
        _moving_mean([loss for _, loss in losses]),
        color=colour,
        linestyle=line_style,
        linewidth=width,
    )
    # The last accuracies are measured after the last step, when the nodes have exchanged once more.
    accuracies = _points([record for record in records if record["t"] >= started_s], "test_accuracy")
    accuracy_axes.plot(
        [moment_s - started_s for moment_s, _ in accuracies],
        [accuracy * 100 for _, accuracy in accuracies],
        color=colour,
        linestyle=line_style,
        linewidth=width,
        label=label,
    )


def _training_span(records: Sequence[Record]) -> tuple[float, float]:
    """Times of the first and the last step in Unix seconds, as the node reports them, otherwise from its metrics."""
    if not records:
        return 0.0, 0.0
    first_s: float = records[0]["t"]
    last_s: float = records[-1]["t"]
    return records[-1].get("training_started_s", first_s), records[-1].get("training_ended_s", last_s)


def _points(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """Times and values, without values that are missing or not finite (in the file, these are words)."""
    return [(record["t"], record[key]) for record in records if isinstance(record.get(key), (int, float))]


def _moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those just before it: losses of single batches vary too much to be read."""
    windows = (values[max(0, end - SMOOTHED_RECORDS) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def _label(axes: Axes, y_label: str, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("time since the first step (s)", fontsize=10)
    axes.set_ylabel(y_label, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
