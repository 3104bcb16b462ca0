"""Removes the shared memory that MPI jobs leave behind: MPICH makes a segment for each and does not always remove it.

Runs in: the main thread.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

__all__ = ["remove_mpi_segments"]

_FOLDER = Path("/dev/shm")  # noqa: S108 - where the system keeps them
_PATTERN = "mpich_shm_*"
_YOUNG_S = 2.0


def remove_mpi_segments(folder: Path = _FOLDER) -> None:
    """Removes this user's segments that no process has mapped, except the youngest, which a job may be about to map.

    Only Linux says who has mapped what; elsewhere nothing is removed.
    """
    proc = Path("/proc")
    if not proc.joinpath("self", "maps").exists():
        return
    for path in folder.glob(_PATTERN):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if time.time() - path.stat().st_mtime > _YOUNG_S and not _is_mapped(path, proc):
                path.unlink()


def _is_mapped(path: Path, proc: Path) -> bool:
    for maps in proc.glob("[0-9]*/maps"):
        # Other users' processes cannot be looked into, but neither can they have mapped what only this user may read.
        with suppress(OSError):
            if str(path) in maps.read_text(encoding="utf-8", errors="replace"):
                return True
    return False
