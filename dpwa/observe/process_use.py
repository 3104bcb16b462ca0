"""What a process takes of the machine, and since when it runs, as Linux tells; elsewhere nothing is known.

Must not know: dpwa. Runs in: any thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["environment_of", "process_use", "read_process", "started_ticks", "state_of", "write_process"]

PROCESS_FILE = "process"

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


def write_process(folder: Path) -> None:
    """Leave the number and the start of this process in a node's folder, so that `dpwa chaos` finds it."""
    with suppress(OSError):  # a full disk is no reason not to train
        (folder / PROCESS_FILE).write_text(f"{os.getpid()} {started_ticks(os.getpid())}\n", encoding="ascii")


def read_process(folder: Path) -> tuple[int, int] | None:
    """What `write_process` left: number and start of the node's last process; None if it left nothing."""
    with suppress(OSError, ValueError):
        pid, started = (folder / PROCESS_FILE).read_text(encoding="ascii").split()
        return int(pid), int(started)
    return None


def state_of(pid: int) -> str:
    """The state of a process, as one letter of the kernel's: R, S, T for stopped, Z for ended; empty if it is gone."""
    with suppress(OSError, IndexError):
        return _stat(str(pid))[0]
    return ""


def environment_of(pid: int) -> Mapping[str, str]:
    """The variables with which a process was started; empty if it is gone, or of another user."""
    with suppress(OSError):
        pairs = Path("/proc", str(pid), "environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {}


def _stat(process: str) -> list[str]:
    return Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2].split()
