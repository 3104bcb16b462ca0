"""Removes the shared memory that MPI jobs leave behind: mpich makes a segment for each, and does not always remove it.

Must not know: what the jobs do. Runs in: the main thread.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

__all__ = ["remove_mpi_segments"]

_FOLDER = Path("/dev/shm")  # noqa: S108 - where the system keeps them
_PATTERN = "mpich_shm_*"
_YOUNG_S = 2.0


def remove_mpi_segments() -> None:
    """Remove the segments of this user that no process has mapped. Those of the last seconds may be just in the making.

    Only Linux tells who has mapped what; elsewhere nothing is removed.
    """
    proc = Path("/proc")
    if not proc.joinpath("self", "maps").exists():
        return
    for path in _FOLDER.glob(_PATTERN):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if time.time() - path.stat().st_mtime > _YOUNG_S and not _is_mapped(path, proc):
                path.unlink()


def _is_mapped(path: Path, proc: Path) -> bool:
    for maps in proc.glob("[0-9]*/maps"):
        # Processes of other users cannot be looked into; but then they cannot have mapped what only we may read.
        with suppress(OSError):
            if str(path) in maps.read_text(encoding="utf-8", errors="replace"):
                return True
    return False
