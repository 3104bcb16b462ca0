"""Writing to a descriptor that another program may have made non-blocking.

The flag belongs to what is open and not to a process: ssh sets it on its own standard error, which is this process's
standard output, too. A full pipe is then no error, and its reader is waited for as elsewhere.

Standard library only: each node of another host has a process of its own here, which is to start at once.

Must not know: what is written. Runs in: any thread.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

__all__ = ["write_all", "write_some"]


def write_some(descriptor: int, data: memoryview | bytes) -> int:
    """Write the beginning, however long that takes; returns how many bytes.

    Raises:
        OSError: it cannot be written.
    """
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    while True:
        with suppress(BlockingIOError):
            return os.write(descriptor, data)
        room.poll()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all, however long that takes.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[write_some(descriptor, view) :]
