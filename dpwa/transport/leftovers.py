"""Who owns a segment of shared memory, and how those that nobody owns any more are removed.

A process that ends by SIGKILL removes nothing, and memory files outlive it. So an owner holds a lock on its file for as
long as it lives, which the kernel lets go of whatever ends the process; and every start of dpwa removes those of
this user's segments on which there is no lock.

- The lock (flock) is held through an open file of its own, which is never mapped. It belongs to that open file, and so
  to every process that has inherited it: a forked child closes it at once, or a DataLoader worker that outlives its
  trainer would keep the trainer's segment.
- A file has a name before it can have a lock. Its maker therefore looks, once it has the lock, whether the file still
  has its name, and makes another if not.

Must not know: what is in a segment. It uses the standard library alone and nothing of dpwa: the launcher's guard
loads this file by its path. Runs in: any thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress

__all__ = ["FOLDER", "MAGIC", "create_owned", "disown", "remove_unowned"]

FOLDER = "/dev/shm"  # noqa: S108  (the memory file system itself; its files are checked before they are touched)

MAGIC = b"dpwa-s02"
"""A segment begins with this. Segments of the format before it have no lock, so nothing tells whether they are used."""

_NAME = re.compile(r"dpwa-.+-[0-9a-f]{16}")
_MAX_ATTEMPTS = 100

_locks: set[int] = set()


def create_owned(path: str) -> tuple[int, int]:
    """Make a new private file that `remove_unowned` leaves alone while this process lives.

    Args:
        path: of the file, which must not exist.

    Returns:
        The descriptor of the file, open for reading and writing, and the one that holds the lock, for `disown`.

    Raises:
        OSError: it cannot be made or locked.
    """
    for _ in range(_MAX_ATTEMPTS):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lock = _lock_of(path)
        except OSError:
            os.close(file)
            with suppress(OSError):
                os.unlink(path)
            raise
        if lock is not None:
            return file, lock
        os.close(file)  # somebody removed it before it had its lock
    raise FileNotFoundError(f"{path} is removed again and again")


def disown(lock: int) -> None:
    """Let go of a lock that `create_owned` gave."""
    # In this order: a child that is forked between the two must not find a number that is another file's by now.
    _locks.discard(lock)
    os.close(lock)


def remove_unowned() -> int:
    """Remove this user's segments whose owners have ended; the number of files removed."""
    removed = 0
    with suppress(OSError):
        for name in os.listdir(FOLDER):
            if _NAME.fullmatch(name):
                with suppress(OSError):  # owned, another user's, or gone meanwhile
                    removed += _has_removed(os.path.join(FOLDER, name))
    return removed


def _lock_of(path: str) -> int | None:
    """Lock a file that was just made; None if it has lost its name."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever looks whether it is owned holds it for a moment
        if os.fstat(lock).st_nlink == 0:
            os.close(lock)
            return None
    except OSError:
        os.close(lock)
        raise
    _locks.add(lock)
    return lock


def _has_removed(path: str) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o600:
            return False
        if os.read(file, len(MAGIC)) not in (MAGIC, bytes(len(MAGIC)), b""):  # zeros, nothing: killed while making it
            return False
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink == 0:  # another remover was first, and the name may be a new file's by now
            return False
        os.unlink(path)
        return True
    finally:
        os.close(file)


def _let_go_in_child() -> None:
    for lock in _locks:
        with suppress(OSError):
            os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
