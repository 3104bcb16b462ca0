"""Shows running nodes from their metrics files: a live table in a terminal, elsewhere a plain line per change.

Must not know: how the nodes were started, what they learn. Runs in: the thread that calls `LiveView.update` (rich
redraws the table in its own thread).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dpwa.observe.bounded_file import open_generations

__all__ = ["LiveView", "MetricsTail", "Record"]

LINE_INTERVAL_S = 2.0
REDRAWS_PER_S = 4
MISSING = "-"
BAR_WIDTH = 6

# Two short lines each: the table fits in 80 columns.
COLUMNS = (
    "step",
    "",
    "epoch",
    "loss",
    "test\naccuracy",
    "exchanges\nok/failed",
    "peer,\nfactor",
    "MB\nin/out",
    "steps\n/s",
)

Record = dict[str, Any]
"""One line of a metrics file."""


class MetricsTail:
    """Reads a metrics file while a node writes it, even when the file changes generations.

    Attributes:
        records: all lines read so far, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_of = (0, 0)  # device and number of the file that was read last
        self._offset_bytes = 0
        self.records: list[Record] = []

    def read_new(self) -> None:
        """Reads the lines that were completed since the last call. The file need not exist yet."""
        with ExitStack() as stack:
            files = open_generations(self._path, stack)
            numbers = [(status.st_dev, status.st_ino) for status in (os.fstat(file.fileno()) for file in files)]
            first_unread = numbers.index(self._read_of) if self._read_of in numbers else 0
            for file, number in list(zip(files, numbers, strict=True))[first_unread:]:
                self._read_rest(file, number)

    def _read_rest(self, file: BinaryIO, number: tuple[int, int]) -> None:
        if number != self._read_of:
            self._read_of, self._offset_bytes = number, 0
        file.seek(self._offset_bytes)
        # The last line may be incomplete: it is left for the next call.
        complete, line_end, _ = file.read().rpartition(b"\n")
        self._offset_bytes += len(complete) + len(line_end)
        for line in complete.splitlines():
            record = _parse(line)
            if record is not None:
                self.records.append(record)

    @property
    def last(self) -> Record:
        """The newest line; empty if there is none yet."""
        return self.records[-1] if self.records else {}


def _parse(line: bytes) -> Record | None:
    """A line as a record; None for one that a killed node left unfinished."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class LiveView:
    """The state of several nodes on a console; a context manager.

    Args:
        console: where to show it.
        title: what the nodes are doing.
        tails: the metrics file of each node, by name.
    """

    def __init__(self, console: Console, title: str, tails: Mapping[str, MetricsTail]) -> None:
        self._console = console
        self._title = title
        self._tails = tails
        self._started_s = time.monotonic()
        self._line_due_s = self._started_s + LINE_INTERVAL_S
        self._states_shown = ""
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=REDRAWS_PER_S)

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        self.update()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def update(self) -> None:
        """Reads new lines and shows them; call it several times a second."""
        for tail in self._tails.values():
            tail.read_new()
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() >= self._line_due_s:
            self._line_due_s = time.monotonic() + LINE_INTERVAL_S
            self._print_line()

    def _print_line(self) -> None:
        states = ", ".join(f"{name} {_state_in_words(tail.last)}" for name, tail in self._tails.items())
        if states == self._states_shown:
            return
        self._states_shown = states
        line = f"{self._title}, {time.monotonic() - self._started_s:.0f} s: {states}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _table(self) -> Table:
        elapsed_s = time.monotonic() - self._started_s
        table = Table(title=f"{self._title} ({elapsed_s:.0f} s)", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        table.add_column("node", no_wrap=True, max_width=16)
        for heading in COLUMNS:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, tail in self._tails.items():
            table.add_row(name, *_cells(tail.last))
        return table


def _cells(record: Record) -> tuple[RenderableType, ...]:
    return (
        _number(record, "step", ".0f"),
        ProgressBar(total=record.get("epochs") or 1, completed=record.get("epoch") or 0, width=BAR_WIDTH),
        f"{_number(record, 'epoch', '.1f')}/{_number(record, 'epochs', '.0f')}",
        _number(record, "loss", ".3f"),
        _number(record, "test_accuracy", ".1%"),
        f"{_number(record, 'exchanges', '.0f')}/{_number(record, 'failures', '.0f')}",
        f"{record.get('last_peer') or MISSING} {_number(record, 'last_factor', '.2f')}",
        f"{_megabytes(record, 'bytes_in')}/{_megabytes(record, 'bytes_out')}",
        _number(record, "steps_per_s", ".0f"),
    )


def _megabytes(record: Record, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, int):
        return MISSING
    megabytes = value / 1e6
    return f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"


def _number(record: Record, key: str, form: str) -> str:
    """A value for people; in the file, a value that is not finite is a word."""
    value = record.get(key)
    return format(value, form) if isinstance(value, (int, float)) else str(value or MISSING)


def _state_in_words(record: Record) -> str:
    if not record:
        return "is starting"
    return (
        f"step {_number(record, 'step', '.0f')} loss {_number(record, 'loss', '.2f')} "
        f"accuracy {_number(record, 'test_accuracy', '.0%')}"
    )
