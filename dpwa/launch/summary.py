"""What the nodes of a launch did, as a table and in words: no run in which nothing was exchanged ends in silence.

Must not know: processes. Runs in: the launcher's main thread, when all nodes have ended; pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["summary"]

_HEADINGS = ("node", "steps", "blended", "failed", "from the mean", "not exchanged")

# Outcomes of exchanges that bring nothing, and what they mean; the first one that occurred is named.
_REASONS = {
    "mismatch": "its peers train a model of another layout; its events.jsonl names the first tensor that differs",
    "refused": "its peers refused it, as being of another run; its events.jsonl has their reason",
    "own_not_finite": "its own model held NaN or infinity",
    "rejected": "its peers' models held NaN or infinity",
    "timed_out": "no exchange ended within timeout_ms",
    "unreachable": "its peers could not be reached",
    "no_peer": "its peers could not be reached",
    "protocol_error": "its peers sent what cannot be; its events.jsonl says what",
}


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
        remark = _remark(closing, has_peers=has_peers)
        if remark and not (name in cut_short and remark in (_NO_STEP, _NOTHING_LEFT)):
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


_NO_STEP = "never made a step: call node.step(loss) after each optimizer.step(), or use attach(model, optimizer)"
_NOTHING_LEFT = "never made a step: its checkpoint left nothing to train, or node.step(loss) is not called"
_NOT_EXCHANGED = {"kept_tensors": "kept", "ignored_tensors": "ignored"}


def _remark(closing: Mapping[str, Any], *, has_peers: bool) -> str:
    """What is worthless about a node's run; empty for nothing."""
    if not closing or not has_peers:
        return ""
    if not closing.get("step"):
        return _NOTHING_LEFT if closing.get("clock") else _NO_STEP
    outcomes = closing.get("outcomes") or {}
    if closing.get("blended") or outcomes.get("pushed"):
        return ""
    failed = next((outcome for outcome in _REASONS if outcomes.get(outcome)), None)
    why = f": {_REASONS[failed]}" if failed else ""
    return f"blended nothing{why}"
