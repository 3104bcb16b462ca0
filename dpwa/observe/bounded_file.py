"""A file that can be appended to for weeks and never exceeds a size: it has one older generation.

    events.jsonl      what is written now
    events.1.jsonl    what was written before; dropped when the next one takes its place

So the newest half of the allowed size is always there. A kill at any moment leaves readable files: a change of
generations is one rename, and a line that was cut off is closed before the next one begins.

Must not know: what is written. Runs in: any thread; a `BoundedFile` in one at a time.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["BoundedFile", "UnwrittenError", "generations", "older_generation", "open_generations", "read_records"]

_NOT_OPEN = -1


def older_generation(path: Path) -> Path:
    """The file of the older generation: events.1.jsonl for events.jsonl."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


def generations(path: Path) -> list[Path]:
    """The files that exist, oldest first."""
    return [file for file in (older_generation(path), path) if file.exists()]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Every line of all generations as JSON, oldest first; lines that a kill or a full disk cut off are left out."""
    with ExitStack() as stack:
        for file in open_generations(path, stack):
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def open_generations(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """Opens the files that exist, oldest first, even while another process changes generations.

    Args:
        path: the file that is written now.
        stack: closes them.
    """
    files: list[BinaryIO] = []
    # The newest first: after a change of generations in between, the older name is the same file, and is left out.
    for name in (path, older_generation(path)):
        with suppress(FileNotFoundError):
            file = stack.enter_context(name.open("rb"))
            if not any(os.path.sameopenfile(file.fileno(), other.fileno()) for other in files):
                files.insert(0, file)
    return files


class UnwrittenError(OSError):
    """The data could not be written, or only in part.

    Attributes:
        written_bytes: how much of the data was written.
    """

    def __init__(self, error: OSError, written_bytes: int) -> None:
        super().__init__(error.errno, error.strerror or str(error), error.filename)
        self.written_bytes = written_bytes


class BoundedFile:
    """A file with a limit.

    Each call looks for it by name: if others have moved, removed or emptied it, it is made again.

    Args:
        path: the file. Its folder is not made, because a mounted folder that is gone must be able to come back.
        limit_bytes: of both generations together.
        head: returns what each further generation begins with.
    """

    def __init__(self, path: Path, limit_bytes: int, head: Callable[[], bytes] = bytes) -> None:
        self.path = path
        self._generation_bytes = limit_bytes // 2
        self._head = head
        self._descriptor = _NOT_OPEN
        self._size_bytes = 0
        self._has_head = False
        self._last_byte = b"\n"

    def append(self, data: bytes, *, starts_line: bool) -> None:
        """Appends data.

        Args:
            data: much smaller than the limit.
            starts_line: the data begin a line: an unfinished line before them is closed first.

        Raises:
            UnwrittenError: the operating system wrote only a part of the data, or nothing.
        """
        written_before_bytes = 0
        try:
            self._find()
            if self._size_bytes and self._size_bytes + len(data) > self._generation_bytes:
                self._turn()
            head = b"" if self._has_head else self._head()
            before = (b"\n" if starts_line and self._last_byte != b"\n" else b"") + head
            written_before_bytes = len(before)
            self._write(before + data)
            self._has_head = True
        except UnwrittenError as error:
            raise UnwrittenError(error, max(0, error.written_bytes - written_before_bytes)) from error
        except OSError as error:
            raise UnwrittenError(error, 0) from error

    def close(self) -> None:
        """Closes the file. The next `append` opens it again."""
        if self._descriptor != _NOT_OPEN:
            descriptor, self._descriptor = self._descriptor, _NOT_OPEN
            os.close(descriptor)

    def _find(self) -> None:
        """Opens the file that has the name now, and looks up its size and its last byte."""
        expected_bytes = self._size_bytes
        if self._descriptor != _NOT_OPEN:
            own = os.fstat(self._descriptor)
            try:
                named = os.stat(self.path)
            except FileNotFoundError:
                named = None
            if named is not None and os.path.samestat(own, named):
                if own.st_size != expected_bytes:
                    self._look()
                return
            self.close()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._look()

    def _look(self) -> None:
        self._size_bytes = os.fstat(self._descriptor).st_size
        # What another writer began has its head already.
        self._has_head = self._size_bytes > 0
        self._last_byte = os.pread(self._descriptor, 1, self._size_bytes - 1) if self._size_bytes else b"\n"

    def _turn(self) -> None:
        """Makes the file the older generation and starts a new one."""
        self.close()
        os.replace(self.path, older_generation(self.path))
        self._find()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                count = os.write(self._descriptor, rest)
                if count == 0:
                    raise OSError(errno.EIO, "nothing was written", str(self.path))
            except OSError as error:
                raise UnwrittenError(error, len(data) - len(rest)) from error
            self._last_byte = bytes(rest[count - 1 : count])
            self._size_bytes += count
            rest = rest[count:]
