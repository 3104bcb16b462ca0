"""What the nodes' journals say of their ends: an exit code of 0 can hide a training that was not finished.

`os._exit(0)` ends a process at once: dpwa is not closed, and no model is saved. `sys.exit(0)` in mid-training closes
dpwa, but peers that call `finish` wait for that node in vain. Both look like success.

A training can be worthless, too: no step, or no exchange that brought anything. The node writes that into its last
event, and the launcher says it.

Must not know: processes, how an exchange is made. Runs in: the launcher's main thread, when the nodes have ended;
`remark_on_training` in the trainer's, when its node is closed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpwa.observe.journal import EVENTS_FILE

__all__ = ["Ending", "ending_of", "remark_on_training", "remarks"]

_TAIL_BYTES = 1 << 16  # the last events of a life; each line has a few hundred bytes

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


@dataclass(frozen=True)
class Ending:
    """How the last life of a node ended, as far as its journal tells.

    Attributes:
        used_dpwa: there is a journal.
        was_closed: dpwa was closed.
        has_finished: `finish` was called, and has returned.
        closing: fields of the last event, which count what the node did; empty if it was not closed.
    """

    used_dpwa: bool
    was_closed: bool = False
    has_finished: bool = False
    closing: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_cut_off(self) -> bool:
        """Whether it stopped without closing dpwa."""
        return self.used_dpwa and not self.was_closed


def ending_of(node_dir: Path) -> Ending:
    """Read the end of a node's journal.

    Args:
        node_dir: the node's folder within the run folder.
    """
    try:
        with (node_dir / EVENTS_FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return Ending(used_dpwa=False)
    seen: dict[object, Mapping[str, Any]] = {}
    for line in reversed(lines):
        fields: Mapping[str, Any] = {}
        with suppress(ValueError, TypeError):  # half a line
            fields = dict(json.loads(line))
        event = fields.get("event")
        if event == "start":
            break
        seen.setdefault(event, fields)
    return Ending(
        used_dpwa=True, was_closed="close" in seen, has_finished="finish" in seen, closing=seen.get("close", {})
    )


def remarks(endings: Mapping[str, Ending]) -> dict[str, str]:
    """What is to be said of nodes that ended with exit code 0, by name.

    Args:
        endings: of all those nodes, by name.
    """
    some_finished = any(ending.has_finished for ending in endings.values())
    said = {}
    for name, ending in endings.items():
        if ending.is_cut_off:
            said[name] = "its journal has no end: dpwa was not closed (by os._exit?), and no model was saved"
        elif ending.used_dpwa and some_finished and not ending.has_finished:
            said[name] = "without the finish() that others called: perhaps in the middle of its training"
    return said


def remark_on_training(closing: Mapping[str, Any]) -> str:
    """What was worthless about the run of a node that had peers; empty for nothing.

    Args:
        closing: fields of the last event of its journal, with `step`.
    """
    if not closing:
        return ""
    if not closing.get("step") and closing.get("clock"):
        return "never made a step: its checkpoint left nothing to train, or node.step(loss) is not called"
    if not closing.get("step"):
        return "never made a step: call node.step(loss) after each optimizer.step(), or use attach(model, optimizer)"
    outcomes = closing.get("outcomes") or {}
    if closing.get("blended") or outcomes.get("pushed"):
        return ""
    failed = next((outcome for outcome in _REASONS if outcomes.get(outcome)), None)
    why = f": {_REASONS[failed]}" if failed else ""
    return f"blended nothing{why}"
