"""Draws what `dpwa chaos` did to a run: who was down when, and what the step rates did meanwhile, as one PNG.

Must not know: how the faults were made. Runs in: the calling thread. Imports matplotlib: import this module only when a
picture is wanted.
"""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dpwa.observe.curves import DOTS_PER_INCH, NODE_COLOURS
from dpwa.observe.lives import Run, number

__all__ = ["draw_chaos"]

_WIDTH_INCHES = 9.0
_ROW_INCHES = 0.28

# Distinguishable for colour-blind readers, too, and from the nodes' colours.
_FAULTS = {
    "kill": ("#D55E00", "killed, until it is back"),
    "restart": ("#CC79A7", "told to end, until it is back"),
    "stop": ("#E69F00", "stopped"),
    "partition": ("#9AB8D0", "cut off from some"),
}
_ALIVE = "#E4E4E4"


def draw_chaos(path: Path, run: Run) -> None:
    """Write the picture.

    Raises:
        OSError: the file cannot be written.
    """
    lives = run.all_lives()
    first_s, last_s = min(life.began_s for life in lives), max(life.last_s for life in lives)
    names = list(run.lives)
    heights = (max(1.0, _ROW_INCHES * len(names)), 2.6)
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 1.2), layout="constrained")
    who, rates = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    _draw_lives(who, run, names, first_s, last_s)
    _draw_rates(rates, run, names, first_s)
    rates.set_xlim(0, max(1.0, last_s - first_s))
    kinds = [kind for kind in _FAULTS if any(fault.kind == kind for fault in run.faults)]
    handles = [Patch(color=_ALIVE, label="alive"), *(Patch(color=_FAULTS[k][0], label=_FAULTS[k][1]) for k in kinds)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw_lives(axes: Axes, run: Run, names: list[str], first_s: float, last_s: float) -> None:
    for row, name in enumerate(names):
        for life in run.lives[name]:
            axes.barh(row, life.last_s - life.began_s, left=life.began_s - first_s, height=0.8, color=_ALIVE)
    # Partitions last, narrow: a node can be cut off and stopped at the same time.
    for fault in sorted(run.faults, key=lambda fault: fault.kind == "partition"):
        ended_s = last_s if math.isinf(fault.ended_s) else fault.ended_s
        is_partition = fault.kind == "partition"
        smallest = min(fault.groups, key=len, default=frozenset())
        colour = _FAULTS.get(fault.kind, ("#222222", ""))[0]
        for row, name in enumerate(names):
            if name == fault.node or (is_partition and name in smallest):
                height = 0.3 if is_partition else 0.8
                axes.barh(row, ended_s - fault.began_s, left=fault.began_s - first_s, height=height, color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_title(f"{len(run.faults)} faults: who was down", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rates(axes: Axes, run: Run, names: list[str], first_s: float) -> None:
    for index, name in enumerate(names):
        colour = NODE_COLOURS[index % len(NODE_COLOURS)]
        for life in run.lives[name]:
            points = [(line["t"] - first_s, rate) for line in life.metrics if (rate := number(line.get("steps_per_s")))]
            label = name if life is run.lives[name][0] else None
            axes.plot(*zip(*points, strict=True) if points else ((), ()), color=colour, linewidth=1.2, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the start of the first node (s)", fontsize=10)
    axes.set_ylabel("steps per second", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("the step rate of each node", fontsize=11)
    if len(names) <= 8:
        axes.legend(loc="upper right", ncols=4, frameon=False, fontsize=8)
