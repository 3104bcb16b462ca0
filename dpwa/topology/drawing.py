"""Draws a topology as one PNG: the graph of each round with its matrix.

Must not know: the cluster file. Runs in: the thread that calls it. Imports matplotlib: import this module only when a
picture is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dpwa.topology.graphs import most_square
from dpwa.topology.mixing import Mixing
from dpwa.topology.schedule import Topology

__all__ = ["draw_topology"]

DOTS_PER_INCH = 150
PANEL_INCHES = 3.6
ONE_ROUND_INCHES = 5.2
MOST_ROUNDS = 6
MOST_COLUMNS = 4

NODE_COLOUR = "#0072B2"
EDGE_COLOUR = "#444444"
# Blues without its darkest part, on which the lines between the fields would vanish.
COLOURS = LinearSegmentedColormap.from_list("weights", colormaps["Blues"](np.linspace(0.12, 0.72, 64)))

# Beyond these numbers of nodes labels would cover each other.
MOST_NAMES = 32
MOST_NUMBERS = 12

# Edges that a picture can still tell apart; of denser graphs the matrix shows more.
MOST_EDGES = 6000
FAINT_EDGES = 200

_CURVE = 0.18  # of two arrows between the same nodes
_LABEL_GAP_POINTS = 3.0


def draw_topology(path: Path, topology: Topology, names: Sequence[str], graph: str) -> None:
    """Writes the picture.

    Args:
        path: the PNG file.
        topology: a static one is drawn as one graph beside its matrix, any other one by its first rounds, six at most.
        names: of the nodes.
        graph: name of the graph, which decides where the nodes stand.

    Raises:
        OSError: the file cannot be written.
    """
    rounds = min(MOST_ROUNDS, topology.period or MOST_ROUNDS)
    figure, graphs, matrices = _panels(rounds)
    places = _places(topology.count, graph)
    mixings = [topology.mixing(round_) for round_ in range(rounds)]
    largest = max(mixing.matrix().max() for mixing in mixings)
    images = []
    for round_, mixing in enumerate(mixings):
        _draw_graph(graphs[round_], mixing, names, places)
        images.append(_draw_matrix(matrices[round_], mixing, names, largest))
        if rounds > 1:
            graphs[round_].set_title(f"round {round_}", fontsize=12)
    bar = figure.colorbar(images[0], ax=[*graphs, *matrices], fraction=0.04, pad=0.02, aspect=40)
    bar.set_label("weight", fontsize=11)
    figure.suptitle(_title(topology, graph, rounds), fontsize=13)
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def _panels(rounds: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """The axes of the graphs and those of the matrices: side by side for one round, else one above the other."""
    if rounds == 1:
        figure = Figure(figsize=(2 * ONE_ROUND_INCHES + 0.8, ONE_ROUND_INCHES + 0.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        return figure, [left], [right]
    columns = rounds if rounds <= MOST_COLUMNS else math.ceil(rounds / 2)
    blocks = math.ceil(rounds / columns)
    size = (columns * PANEL_INCHES + 0.8, 2 * blocks * PANEL_INCHES + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2 * blocks, columns, squeeze=False)
    graphs, matrices = list(axes[::2].flat), list(axes[1::2].flat)
    for spare in [*graphs[rounds:], *matrices[rounds:]]:
        spare.set_axis_off()
    return figure, graphs[:rounds], matrices[:rounds]


def _title(topology: Topology, graph: str, rounds: int) -> str:
    title = f"{graph}, {topology.count} {'node' if topology.count == 1 else 'nodes'}"
    if topology.period is None:
        return f"{title}: the first {rounds} of the rounds that are drawn"
    if topology.period > rounds:
        return f"{title}: the first {rounds} of {topology.period} rounds that repeat"
    return title if rounds == 1 else f"{title}: {rounds} rounds that repeat"


def _places(count: int, graph: str) -> NDArray[np.float64]:
    """Where the nodes stand, within the square from -1 to 1; shape (n, 2).

    The first is on top, the others follow clockwise; the hub of a star is in the middle, and a grid is a grid.
    """
    if graph == "grid":
        rows, columns = most_square(count)
        row, column = np.divmod(np.arange(count), columns)
        step = 2 / max(columns - 1, rows - 1, 1)
        return np.column_stack([(column - (columns - 1) / 2) * step, ((rows - 1) / 2 - row) * step])
    around = count - 1 if graph == "star" else count
    angles = math.pi / 2 - 2 * math.pi * np.arange(around) / max(around, 1)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    if graph == "star":
        return np.vstack([np.zeros((1, 2)), circle])
    return circle if count > 1 else np.zeros((1, 2))


def _draw_graph(axes: Axes, mixing: Mixing, names: Sequence[str], places: NDArray[np.float64]) -> None:
    axes.set_xlim(-1.25, 1.25)
    axes.set_ylim(-1.25, 1.25)
    axes.set_aspect("equal")
    axes.set_axis_off()
    _draw_edges(axes, mixing, places)
    labelled = mixing.count <= MOST_NAMES
    size = _node_size(mixing.count)
    axes.scatter(places[:, 0], places[:, 1], s=size, color=NODE_COLOUR, edgecolors="white", linewidths=1.0, zorder=3)
    if not labelled:
        return
    longest = max(map(len, names))
    inside = longest <= 3 and mixing.count <= MOST_NUMBERS
    gap_points = 0.0 if inside else math.sqrt(size) / 2 + _LABEL_GAP_POINTS
    for name, (x, y) in zip(names, places, strict=True):
        distance = math.hypot(x, y)
        right, up = (x / distance, y / distance) if distance > 0 else (0.7, 0.7)
        axes.annotate(
            name,
            (x, y),
            xytext=(right * gap_points, up * gap_points),
            textcoords="offset points",
            color="white" if inside else "black",
            fontsize=7 if inside and longest == 3 else 9,
            ha="center" if inside else _alignment(right, "left", "right"),
            va="center" if inside else _alignment(up, "bottom", "top"),
            zorder=4,
        )


def _alignment(direction: float, positive: str, negative: str) -> str:
    """Which side of a label is at the node, so that it points away from the middle."""
    return "center" if abs(direction) < 0.4 else positive if direction > 0 else negative


def _node_size(count: int) -> float:
    """Area of a node's dot in square points."""
    return float(np.clip(5000 / max(count, 1), 8, 480))


def _draw_edges(axes: Axes, mixing: Mixing, places: NDArray[np.float64]) -> None:
    matrix = mixing.matrix()
    edges = mixing.edges
    if len(edges) > MOST_EDGES:
        axes.text(0, 0, f"{len(edges)} edges", ha="center", va="center", fontsize=11, color=EDGE_COLOUR)
        return
    radius = math.sqrt(_node_size(mixing.count)) / 2
    alpha = 0.9 if len(edges) <= FAINT_EDGES else 0.4
    for receiver, sender in edges.tolist():
        both = matrix[sender, receiver] > 0
        alike = both and math.isclose(matrix[sender, receiver], matrix[receiver, sender])
        if alike and receiver < sender:
            continue  # one line for both directions
        arrow = FancyArrowPatch(
            places[sender],
            places[receiver],
            arrowstyle="-" if alike else "-|>",
            mutation_scale=11,
            connectionstyle=f"arc3,rad={_CURVE if both and not alike else 0}",
            shrinkA=radius,
            shrinkB=radius + (0 if alike else 1),
            linewidth=0.6 + 3.0 * float(matrix[receiver, sender]),
            color=EDGE_COLOUR,
            alpha=alpha,
            zorder=2,
        )
        axes.add_patch(arrow)


def _draw_matrix(axes: Axes, mixing: Mixing, names: Sequence[str], largest: float) -> AxesImage:
    matrix = mixing.matrix()
    image = axes.imshow(np.ma.masked_equal(matrix, 0), cmap=COLOURS, vmin=0, vmax=largest, interpolation="nearest")
    axes.set_xlabel("heard", fontsize=10)
    axes.set_ylabel("hears", fontsize=10)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    if mixing.count <= MOST_NAMES:
        every = range(mixing.count)
        size = 9 if mixing.count <= MOST_NUMBERS else 7
        long = mixing.count > MOST_NUMBERS // 2 or max(map(len, names)) > 3
        axes.set_xticks(every, names, fontsize=size, rotation=90 if long else 0)
        axes.set_yticks(every, names, fontsize=size)
        axes.set_xticks(np.arange(mixing.count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(mixing.count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#DDDDDD", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    if mixing.count <= MOST_NUMBERS:
        _write_weights(axes, matrix, largest)
    return image


def _write_weights(axes: Axes, matrix: NDArray[np.float64], largest: float) -> None:
    size = 9 if len(matrix) <= 6 else 7
    for receiver, sender in np.argwhere(matrix > 0).tolist():
        weight = matrix[receiver, sender]
        colour = "white" if weight > 0.7 * largest else "black"
        text = f"{weight:.2f}".removeprefix("0") if weight < 1 else "1"
        axes.text(sender, receiver, text, fontsize=size, color=colour, ha="center", va="center")
