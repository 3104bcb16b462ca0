"""What the nodes of a launch did, as a table and in words: no run in which nothing was exchanged ends in silence.

Must not know: processes. Runs in: the launcher's main thread, when all nodes have ended; pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dpwa.observe.endings import remark_on_training

__all__ = ["summary"]

_HEADINGS = ("node", "steps", "blended", "failed", "from the mean", "not exchanged")


def summary(
    closings: Mapping[str, Mapping[str, Any]],
    distances: Mapping[str, float],
    *,
    has_peers: bool,
    cut_short: Collection[str] = (),
) -> Iterator[str]:
    """A line per node, and then one for each node whose training was worth nothing to the others.

    Args:
        closings: last event of each node's journal, by name; empty for a node that was not closed, or without dpwa.
        distances: of the saved models from their mean, relative to it; not of every node.
        has_peers: whether the cluster has more than one node.
        cut_short: nodes that failed or were stopped. That they made no step is no mistake of the script's loop.
    """
    rows = [_HEADINGS, *(_row(name, closing, distances.get(name)) for name, closing in closings.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  ".join(cells)
    for name, closing in closings.items():
        remark = remark_on_training(closing) if has_peers else ""
        if remark and (closing.get("step") or name not in cut_short):
            yield f"node {name} {remark}"


def _row(name: str, closing: Mapping[str, Any], distance: float | None) -> tuple[str, ...]:
    if not closing:
        return (name, *["-"] * (len(_HEADINGS) - 1))
    away = "-" if distance is None else f"{distance:.2%}"
    left = [f"{closing[key]} {word}" for key, word in _NOT_EXCHANGED.items() if closing.get(key)]
    return (
        name,
        str(closing.get("step", "-")),
        str(closing.get("blended", "-")),
        str(closing.get("failures", "-")),
        away,
        ", ".join(left) or "-",
    )


_NOT_EXCHANGED = {"kept_tensors": "kept", "ignored_tensors": "ignored"}
