"""What happened to the nodes of a run, as JSON lines beside their journals: written by those who start and break them.

    RUN/launch.jsonl   `dpwa launch`: which process each node was, when it ended, with which exit code
    RUN/chaos.jsonl    `dpwa chaos`: each fault, its begin and end, and what shows that it happened

Must not know: processes, what the nodes compute. Runs in: any one thread. A file that cannot be written is told once,
and nothing else comes of it.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

__all__ = ["CHAOS_FILE", "LAUNCH_FILE", "RunRecord"]

LAUNCH_FILE = "launch.jsonl"
CHAOS_FILE = "chaos.jsonl"

_logger = logging.getLogger("dpwa")


class RunRecord:
    """Appends to one of these files. They stay small: a few lines for each life of a node, and for each fault.

    Args:
        run_dir: the run folder.
        file_name: which of the files.
    """

    def __init__(self, run_dir: Path, file_name: str) -> None:
        self._path = run_dir / file_name
        self._has_told = False

    def write(self, event: str, /, **fields: object) -> None:
        """Append an event that happens now."""
        line = json.dumps({"t": round(time.time(), 6), "event": event, **fields}) + "\n"
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(line)
        except OSError as error:
            if not self._has_told:
                self._has_told = True
                _logger.warning("%s cannot be written: %s", self._path, error.strerror or error)
