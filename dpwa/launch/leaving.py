"""`dpwa leave`: asks a node on this machine to go, by a file in its folder that the node looks for.

A signal would need the node's process, which may be another one by now, and would count as a failure.

Must not know: click, what the node computes. Runs in: the main thread.
"""

from __future__ import annotations

import time
from pathlib import Path

from dpwa.errors import ConfigError, DpwaError
from dpwa.node.belonging import LEAVE_FILE
from dpwa.observe.journal import node_folder

__all__ = ["ask_to_leave"]

# A node looks at each step.
_PATIENCE_S = 60.0
_PAUSE_S = 0.05


def ask_to_leave(run_dir: Path, node: str, patience_s: float = _PATIENCE_S) -> str:
    """Ask, and wait until the node has taken notice.

    Returns:
        What has happened, for a person to read.

    Raises:
        ConfigError: there is no such node in this run folder.
        DpwaError: it did not take notice.
    """
    folder = node_folder(run_dir, node)
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in folder.parent.glob("*"))) or "none"
        raise ConfigError(f"{run_dir}: has no node {node}; it has {there}")
    note = folder / LEAVE_FILE
    try:
        note.touch()
    except OSError as error:
        raise ConfigError(f"{note}: cannot be written ({error.strerror})") from error
    end_s = time.monotonic() + patience_s
    while note.exists():
        if time.monotonic() >= end_s:
            note.unlink(missing_ok=True)
            raise DpwaError(
                f"node {node} took no notice within {patience_s:g} s: it does not run here, or makes no step, or its "
                " cluster file has no `join`; SIGTERM ends any node"
            )
        time.sleep(_PAUSE_S)
    return f"node {node} saves its model and leaves"
