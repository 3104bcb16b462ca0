"""What the nodes' journals say of their ends: an exit code of 0 can hide a training that was not finished.

`os._exit(0)` ends a process at once: dpwa is not closed, and no model is saved. `sys.exit(0)` in mid-training closes
dpwa, but peers that call `finish` wait for that node in vain. Both look like success.

Must not know: processes, what an exchange is. Runs in: the launcher's main thread, when all nodes have ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ending", "ending_of", "remarks"]

_EVENTS_FILE = "events.jsonl"
_TAIL_BYTES = 1 << 16  # the last events of a life; each line has a few hundred bytes


@dataclass(frozen=True)
class Ending:
    """How the last life of a node ended, as far as its journal tells.

    Attributes:
        used_dpwa: there is a journal.
        was_closed: dpwa was closed.
        has_finished: `finish` was called, and has returned.
    """

    used_dpwa: bool
    was_closed: bool = False
    has_finished: bool = False

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
        with (node_dir / _EVENTS_FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return Ending(used_dpwa=False)
    seen: set[object] = set()
    for line in reversed(lines):
        event: object = None
        with suppress(ValueError, KeyError, TypeError):  # half a line
            event = json.loads(line)["event"]
        if event == "start":
            break
        seen.add(event)
    return Ending(used_dpwa=True, was_closed="close" in seen, has_finished="finish" in seen)


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
