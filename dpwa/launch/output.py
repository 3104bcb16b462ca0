"""What the nodes print: read from their pipes, kept raw in a file, cut into lines, and shown with a prefix.

The rules, in the order of the data:
- Every byte goes to the node's `output.log` first, unchanged. The file has a limit and an older generation. While it
  cannot be written, as on a full disk, what is not kept is counted, and a line in the file says so later.
- The bytes are cut into bounded lines, and progress bars and the stacks of an interrupt are folded: `folding.py`.
- Control sequences other than colours are not passed on, so one node cannot move the cursor of all.
- A slow reader of the launcher's output slows the nodes down, as a pipe does. A reader that has stopped (Ctrl-S, a
  pager that waits) does not: after `STUCK_S` lines are left out of what is shown, and counted.

Must not know: nodes as processes, the config. All runs in the event loop's thread, except that `LinePrinter`
is called from there and writes in a thread of its own, because a write to a terminal can block forever
and the loop has signals to answer.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dpwa.launch.folding import InterruptFolder, LineSplitter
from dpwa.launch.patient import write_some
from dpwa.observe.bounded_file import BoundedFile
from dpwa.observe.journal import DEFAULT_MAX_BYTES, output_max_bytes
from dpwa.observe.steady_file import LostBytes, SteadyFile

__all__ = ["STUCK_S", "LinePrinter", "NodeOutput", "OutputPipe", "prefix_chars", "printable"]

STUCK_S = 2.0
"""A reader that takes nothing for this long is taken to have stopped, in seconds."""

OUTPUT_MAX_BYTES = output_max_bytes(DEFAULT_MAX_BYTES)
"""What is kept of a node's output unless the cluster file says otherwise."""

_SEPARATOR = " | "
_ROOM_POLL_S = 0.05
_QUEUE_LIMIT_LINES = 2000
_WRITE_BYTES = 4096  # small writes, so that a slow reader is seen to make progress
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # no red: that is for errors
_CONTROL = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # other sequences with parameters: cursor, erase, modes
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # window titles, links
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"  # the rest, except the tab
)


def prefix_chars(names: Sequence[str]) -> int:
    """Characters before each line that is shown."""
    return max((len(name) for name in names), default=0) + len(_SEPARATOR)


def printable(line: str) -> str:
    """The line without control characters, except tabs and colours."""
    return _CONTROL.sub(lambda match: match["colour"] or "", line)


class NodeOutput:
    """What one node prints, over all its lives.

    Args:
        path: file that gets the raw output appended, or None.
        on_line: called with each line.
        max_bytes: of the file and its older generation together.
    """

    def __init__(self, path: Path | None, on_line: Callable[[str], None], *, max_bytes: int = OUTPUT_MAX_BYTES) -> None:
        self.show = on_line
        self.folds_interrupts = False
        """Whether stacks of KeyboardInterrupt are left out of what is shown: the launcher has sent the interrupt."""
        self._log: SteadyFile | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()  # there also for a node that prints nothing
            except OSError as error:
                self.show(f"[dpwa] the output of this node is not kept: {error}")
                return
            self._log = SteadyFile(
                BoundedFile(path, max_bytes), note=_missing, on_lost=self._tell_lost, on_resumed=self._tell_resumed
            )

    def keep(self, data: bytes) -> None:
        """Appends to the file."""
        if self._log is not None:
            self._log.write(data, lambda written_bytes: len(data) - written_bytes, starts_line=False)

    def say(self, line: str) -> None:
        """Adds a line of the launcher's own, shown and kept like the node's."""
        text = f"[dpwa] {line}"
        self.keep(f"{text}\n".encode())
        self.show(text)

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _tell_lost(self, error: OSError) -> None:
        self.show(f"[dpwa] the output of this node is not being kept until that works again: {error}")

    def _tell_resumed(self, loss: LostBytes) -> None:
        self.show(f"[dpwa] the output of this node is kept again; {loss.count} bytes are missing")


def _missing(loss: LostBytes) -> bytes:
    return f"[dpwa] {loss.count} bytes of output are missing here: {loss.error.strerror or loss.error}\n".encode()


class OutputPipe(asyncio.Protocol):
    """Receives what a node prints during one life, from the read end of a pipe.

    Args:
        output: gets the bytes and the lines.
        has_room: False asks for a pause, during which the pipe fills up and the node has to wait.
    """

    def __init__(self, output: NodeOutput, has_room: Callable[[], bool]) -> None:
        self._output = output
        self._has_room = has_room
        self._splitter = LineSplitter()
        self._folder = InterruptFolder()
        self._ended = asyncio.Event()
        self._is_draining = False
        self._transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is open (called by asyncio)."""
        if isinstance(transport, asyncio.ReadTransport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The node has printed something (called by asyncio)."""
        self._output.keep(data)
        for line in self._splitter.feed(data):
            self._show(line)
        if not self._is_draining and not self._has_room() and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_ROOM_POLL_S, self._resume_when_room)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        """Nobody holds the write end any more, or the transport was closed (called by asyncio)."""
        for line in self._splitter.finish():
            self._show(line)
        for line in self._folder.finish():
            self._output.show(line)
        self._ended.set()

    async def drain(self, timeout_s: float) -> None:
        """After the node's end: reads what is left in the pipe, then closes it.

        Args:
            timeout_s: longest wait for the end of the stream. A process that left the node's group may hold the
                pipe open forever; what it prints later is dropped.
        """
        if self._transport is None:
            return
        self._is_draining = True
        self._transport.resume_reading()
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except asyncio.TimeoutError:
            self._transport.close()
            await self._ended.wait()

    def _show(self, line: str) -> None:
        for one in self._folder.feed(line) if self._output.folds_interrupts else (line,):
            self._output.show(one)

    def _resume_when_room(self) -> None:
        if self._transport is None or self._is_draining:
            return
        if self._has_room():
            self._transport.resume_reading()
        else:
            asyncio.get_running_loop().call_later(_ROOM_POLL_S, self._resume_when_room)


class LinePrinter:
    """Writes the lines of all nodes to one descriptor, each with its node's name.

    Args:
        descriptor: where to write, usually 1.
        names: the nodes, for the width and the colours of the prefixes.
        has_colours: whether each name gets a colour of its own.
        on_reader_gone: called once, from the printer's thread, when nobody can read the output any more.
    """

    def __init__(
        self, descriptor: int, names: Sequence[str], *, has_colours: bool, on_reader_gone: Callable[[], None]
    ) -> None:
        self._descriptor = descriptor
        width = prefix_chars(names) - len(_SEPARATOR)
        self._prefixes = {name: f"{name:<{width}}{_SEPARATOR}" for name in names}
        self._line_end = "\n"
        if has_colours:
            for index, name in enumerate(names):
                self._prefixes[name] = f"\x1b[{_COLOURS[index % len(_COLOURS)]}m{self._prefixes[name]}\x1b[0m"
            self._line_end = "\x1b[0m\n"  # a colour that a node forgot to end ends with its line
        self._on_reader_gone = on_reader_gone
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Each counter has one writer (the thread that calls, or the printer's), so that no lock is needed.
        self._left_out_total = 0
        self._written_bytes_total = 0
        self._seen_bytes_total = 0
        self._seen_at_s = time.monotonic()
        # A daemon: the end of the launcher must not wait for a terminal that takes nothing.
        self._thread = threading.Thread(target=self._run, name="dpwa-printer", daemon=True)
        self._thread.start()

    def put(self, name: str, line: str) -> None:
        """Shows a line of a node. Never blocks."""
        if self._queue.qsize() >= _QUEUE_LIMIT_LINES and self._is_stuck():
            self._left_out_total += 1
        else:
            self._queue.put(f"{self._prefixes[name]}{printable(line)}{self._line_end}")

    def has_room(self) -> bool:
        """Whether more lines are welcome; also True when the reader has stopped and lines are left out anyway."""
        return self._queue.qsize() < _QUEUE_LIMIT_LINES or self._is_stuck()

    def close(self, timeout_s: float | None) -> None:
        """Waits until everything is written.

        Args:
            timeout_s: longest wait; None waits as long as the reader goes on taking lines.
        """
        self._queue.put(None)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._seen_at_s = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(_ROOM_POLL_S)
            if self._is_stuck() or (deadline_s is not None and time.monotonic() > deadline_s):
                break

    def _is_stuck(self) -> bool:
        now_s = time.monotonic()
        if self._written_bytes_total != self._seen_bytes_total or self._queue.empty():
            self._seen_bytes_total = self._written_bytes_total
            self._seen_at_s = now_s
        return now_s - self._seen_at_s > STUCK_S

    def _run(self) -> None:
        reported_total = 0
        while (text := self._queue.get()) is not None:
            if self._left_out_total != reported_total:
                count = self._left_out_total - reported_total
                reported_total += count
                text += f"[dpwa] {count} lines were not shown here; each node's output.log has them\n"
            try:
                self._write(text.encode())
            except BrokenPipeError:
                self._on_reader_gone()
                return
            except OSError:  # a full disk or a lost terminal; the output.log of each node is still written
                return

    def _write(self, data: bytes) -> None:
        # The descriptor and not sys.stdout: a thread that hangs inside a buffered stream would also hang the exit.
        view = memoryview(data)
        while view:
            written_bytes = write_some(self._descriptor, view[:_WRITE_BYTES])
            self._written_bytes_total += written_bytes
            view = view[written_bytes:]
