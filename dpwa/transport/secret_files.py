"""Files that nobody but their user can read: written so, and refused when they are not.

Must not know: what is in them. Runs in: any thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dpwa.errors import ConfigError

__all__ = ["read_secret", "write_secret"]


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600.

    Raises:
        FileExistsError: there is one already.
        ConfigError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def read_secret(path: Path, most_bytes: int, advice: str) -> bytes | None:
    """The content of a file of this user that nobody else can read; None if there is none.

    Args:
        path: of the file.
        most_bytes: it may have.
        advice: what to do about one that others can read or that is too long.

    Raises:
        ConfigError: it cannot be read, others can read it, or it is too long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); start the node as the user whose file it is"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        is_secret = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if not is_secret:
            raise ConfigError(
                f"{path}: expected a file of this user that nobody else can read, got mode "
                f"{stat.filemode(status.st_mode)} of user {status.st_uid}; {advice}"
            )
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ConfigError(f"{path}: expected at most {most_bytes} bytes; {advice}")
    return content
