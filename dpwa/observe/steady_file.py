"""A file that may fail for a while, as on a full disk: what cannot be written is counted, and writing continues later.

Must not know: what is written. Runs in: one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dpwa.observe.bounded_file import BoundedFile, UnwrittenError

__all__ = ["LostBytes", "SteadyFile"]

_RETRY_S = 1.0
_RETRY_MAX_S = 32.0

# A file that fails again this soon after it came back is tried less often: each failure is reported to people.
_CALM_S = 60.0


@dataclass
class LostBytes:
    """What could not be written since the file failed.

    Attributes:
        error: the first error.
        count: how much, in the caller's unit.
        from_s: when the first was lost, in Unix seconds.
        to_s: when the last was lost, in Unix seconds.
    """

    error: OSError
    count: int
    from_s: float
    to_s: float


class SteadyFile:
    """Appends to a file whenever that works.

    Args:
        file: the file.
        note: returns the line to write first when the file works again; may be empty.
        on_lost: called when the file fails.
        on_resumed: called when it works again.
    """

    def __init__(
        self,
        file: BoundedFile,
        *,
        note: Callable[[LostBytes], bytes],
        on_lost: Callable[[OSError], None],
        on_resumed: Callable[[LostBytes], None],
    ) -> None:
        self._file = file
        self._note = note
        self._on_lost = on_lost
        self._on_resumed = on_resumed
        self._loss: LostBytes | None = None
        self._retry_at_s = 0.0
        self._retry_s = _RETRY_S
        self._resumed_at_s = float("-inf")

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed."""
        return self._loss is not None

    def skip(self, count: int) -> bool:
        """Counts something as lost if the file failed a moment ago; returns whether it did."""
        if self._loss is None or time.monotonic() >= self._retry_at_s:
            return False
        self._count(self._loss, count)
        return True

    def write(self, data: bytes, lost: Callable[[int], int], *, starts_line: bool, must_try: bool = False) -> None:
        """Appends data, or counts what is lost. Without data, checks whether a file that failed works again.

        Args:
            data: what to append.
            lost: given how many bytes were written, returns how much is lost, in the caller's unit.
            starts_line: the data begin a line.
            must_try: try even a file that failed a moment ago, because this is the last chance.
        """
        loss = self._loss
        if not must_try and self.skip(lost(0)):
            return
        note = b"" if loss is None else self._note(loss)
        if not note and not data:
            return
        try:
            self._file.append(note + data, starts_line=starts_line or loss is not None)
        except UnwrittenError as error:
            if loss is not None and note and error.written_bytes >= len(note):
                self._resume(loss)
            self.lose(error, lost(max(0, error.written_bytes - len(note))))
            self._retry_at_s = time.monotonic() + self._retry_s
            return
        if loss is not None:
            self._resume(loss)

    def lose(self, error: OSError, count: int, from_s: float | None = None) -> None:
        """Counts what is lost because of an error; the next write is still tried.

        Args:
            error: the reason.
            count: how much.
            from_s: when the first was lost, in Unix seconds; by default now.
        """
        now_s, loss = time.monotonic(), self._loss
        if loss is None:
            again = now_s - self._resumed_at_s < _CALM_S
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S) if again else _RETRY_S
            self._loss = loss = LostBytes(error, 0, from_s or time.time(), time.time())
            self._on_lost(error)
        self._count(loss, count)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _count(self, loss: LostBytes, count: int) -> None:
        if count:
            loss.count += count
            loss.to_s = time.time()

    def _resume(self, loss: LostBytes) -> None:
        self._loss = None
        self._resumed_at_s = time.monotonic()
        self._on_resumed(loss)
