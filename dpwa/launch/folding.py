"""Bytes that a node prints, as lines for a person: progress bars and the stacks of a Ctrl-C are folded.

A progress bar draws its line again and again: it goes back by a carriage return, and a bar below another bar by a line
end and the control sequence "cursor up". Such strokes are shown about once a second, and the last one always.

Must not know: files, processes. Runs in: the event loop's thread; pure apart from the clock.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Iterator

__all__ = ["LINE_LIMIT", "InterruptFolder", "LineSplitter"]

LINE_LIMIT = 8192
"""Longest line that is shown, in characters; longer ones are shown in pieces. Far more than people read in one line,
and little enough to hold for each node."""

_STACK_LIMIT_LINES = 500
_PROGRESS_INTERVAL_S = 1.0
_MOST_ROWS = 100
_LINE_END = re.compile(r"\r\n|\n|\r")
_CURSOR_UP = re.compile(r"\x1b\[(\d*)[AF]")


class LineSplitter:
    """Turns a stream of bytes into lines of bounded length.

    Args:
        clock: seconds on a clock that never goes back; decides which strokes of a progress bar are shown.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._progress_shown_s = -_PROGRESS_INTERVAL_S
        self._rows_below = 0
        """How far the cursor has gone up: so many line ends only bring it down again, over rows that are there."""
        self._last_stroke = ""
        """The last stroke of a lower bar that was not shown. An upper bar's is followed by a line end of its own."""

    def feed(self, data: bytes) -> list[str]:
        """Takes the next bytes; returns the lines that they complete."""
        text = self._rest + self._decoder.decode(data)
        lines: list[str] = []
        start = 0
        for end in _LINE_END.finditer(text):
            if end.group() == "\r" and end.end() == len(text):
                break  # may be the first half of \r\n
            piece = text[start : end.start()]
            start = end.end()
            lines += self._shown(piece, ends_row=end.group() != "\r")
        *whole, self._rest = _pieces(text[start:])
        return lines + whole

    def finish(self) -> list[str]:
        """The stream has ended; returns what was left without a line end."""
        rest = (self._rest + self._decoder.decode(b"", final=True)).rstrip("\r")
        self._rest = ""
        return [line for line in (self._take_last_stroke(), rest) if line]

    def _shown(self, piece: str, *, ends_row: bool) -> Iterator[str]:
        went_up = sum(int(rows or 1) for rows in _CURSOR_UP.findall(piece))
        self._rows_below = min(self._rows_below + went_up, _MOST_ROWS)
        if ends_row and not self._rows_below:
            last = self._take_last_stroke()
            if last:
                yield last
            yield from _pieces(piece)
            return
        text = _CURSOR_UP.sub("", piece)
        if ends_row:
            self._rows_below -= 1
            self._last_stroke = text if text.strip() else self._last_stroke
        if text and self._shows_progress():
            self._last_stroke = ""
            yield from _pieces(text)

    def _take_last_stroke(self) -> str:
        last, self._last_stroke = self._last_stroke, ""
        return last

    def _shows_progress(self) -> bool:
        now_s = self._clock()
        if now_s - self._progress_shown_s < _PROGRESS_INTERVAL_S:
            return False
        self._progress_shown_s = now_s
        return True


class InterruptFolder:
    """Leaves out the stacks of KeyboardInterrupt; every other line comes out as it went in."""

    def __init__(self) -> None:
        self._stack: list[str] = []

    def feed(self, line: str) -> list[str]:
        """Takes a line; returns those that are to be shown now."""
        if not self._stack:
            if line.startswith("Traceback (most recent call last)"):
                self._stack = [line]
                return []
            return [line]
        if (not line or line[0].isspace()) and len(self._stack) < _STACK_LIMIT_LINES:
            self._stack.append(line)
            return []
        stack, self._stack = self._stack, []
        return [] if line.partition(":")[0] == "KeyboardInterrupt" else [*stack, line]

    def finish(self) -> list[str]:
        """Nothing more will come; returns the lines of a stack without an end."""
        stack, self._stack = self._stack, []
        return stack


def _pieces(line: str) -> list[str]:
    return [line[start : start + LINE_LIMIT] for start in range(0, max(len(line), 1), LINE_LIMIT)]
