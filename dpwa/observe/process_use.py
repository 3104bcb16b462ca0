"""What a process takes of the machine, and since when it runs, as Linux tells; elsewhere nothing is known.

Must not know: dpwa. Runs in: any thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["process_use", "started_ticks"]

_OWN = Path("/proc/self")

# Places in /proc/PID/stat behind the name of the program, which may hold blanks and brackets.
_THREADS, _STARTED = 17, 19


def process_use() -> Mapping[str, int]:
    """Open descriptors, threads and resident bytes of this process; empty where nobody tells."""
    with suppress(OSError, ValueError, IndexError):
        resident_pages = int((_OWN / "statm").read_text().split()[1])
        return {
            "descriptors": len(os.listdir(_OWN / "fd")),
            "threads": int(_stat("self")[_THREADS]),
            "resident_bytes": resident_pages * os.sysconf("SC_PAGE_SIZE"),
        }
    return {}


def started_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; 0 if it is gone, or nobody tells.

    With its number it names a process for good: a number alone is given again to others.
    """
    with suppress(OSError, ValueError, IndexError):
        return int(_stat(str(pid))[_STARTED])
    return 0


def _stat(process: str) -> list[str]:
    return Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2].split()
