"""The journal of one node: its events and metrics, as JSON lines in the run folder.

`events.jsonl` has a line for each exchange, failure, start and end, with repeated ones counted in one line;
`metrics.jsonl` has one for each metrics interval. All tools that look at a run read these two files and their older
generations (`bounded_file`). docs/architecture.md lists the fields.

Must not know: exchanges, sockets, models. Runs in: `record` in any thread, where it costs an append to a list; the
thread named `dpwa-journal-…` writes the files.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dpwa.observe.bounded_file import BoundedFile, older_generation
from dpwa.observe.journal_lines import line
from dpwa.observe.repeats import Event, Repeats
from dpwa.observe.steady_file import LostBytes, SteadyFile

__all__ = [
    "DEFAULT_MAX_BYTES",
    "EVENTS_FILE",
    "METRICS_FILE",
    "MODEL_FILE",
    "OUTPUT_FILE",
    "Journal",
    "node_folder",
    "older_generations",
    "output_max_bytes",
]

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "metrics.jsonl"
OUTPUT_FILE = "output.log"
MODEL_FILE = "model.safetensors"

DEFAULT_MAX_BYTES = 256_000_000
"""Limit of all files of a node together, unless the config sets another one."""

# The most that a kill can lose of the journal, and how often its thread wakes up.
_WRITE_INTERVAL_S = 0.25

# Events that may wait for the thread while the disk hangs without an error, like a network drive whose server is gone.
# That is half a minute at 300 exchanges a second, and about 8 MB.
_WAITING_LIMIT = 8192

# Written at a time, so that little is lost or repeated when the disk becomes full.
_WRITE_BYTES = 64 * 1024

_logger = logging.getLogger("dpwa")


def node_folder(run_dir: Path, node: str) -> Path:
    """The folder of one node within a run folder."""
    return run_dir / "nodes" / node


def output_max_bytes(max_bytes: int) -> int:
    """The share of a node's printed output in the limit of all its files."""
    return max_bytes // 4


def older_generations(folder: Path) -> list[Path]:
    """The files of a node that are no longer written: they may go when something better needs room."""
    names = (EVENTS_FILE, METRICS_FILE, OUTPUT_FILE)
    return [older for older in (older_generation(folder / name) for name in names) if older.exists()]


class _Line(NamedTuple):
    """A line to write, and the number of events that it reports."""

    data: bytes
    events: int


class Journal:
    """Writes one node's events and metrics.

    If the disk is full or gone, lines are lost and counted, but the training continues. Writing resumes when possible.

    Args:
        folder: the node's folder; made if missing. A restarted node appends to existing files.
        sample: returns the present metrics; called by the journal's thread.
        metrics_interval_s: seconds between two lines of metrics.
        max_bytes: limit of all files of the node together; events may use half of it, metrics a quarter.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sample: Callable[[], Mapping[str, object]],
        metrics_interval_s: float,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._folder = folder
        self._sample = sample
        self._metrics_interval_s = metrics_interval_s
        self._waiting: deque[Event] = deque()  # append and popleft are atomic
        self._overflow = 0
        self._overflow_from_s = 0.0
        self._overflow_lock = threading.RLock()  # a signal handler may record an event, too
        self._repeats = Repeats()
        self._start_line = b""
        self._is_start_lost = False
        self._metrics_lost_line = b""
        self._told: set[str] = set()
        self._failing: set[str] = set()
        self._lost_total = 0
        events = BoundedFile(folder / EVENTS_FILE, max_bytes // 2, head=lambda: self._start_line)
        metrics = BoundedFile(folder / METRICS_FILE, max_bytes // 4)
        self._events_file = SteadyFile(
            events,
            note=self._events_note,
            on_lost=partial(self._tell_lost, EVENTS_FILE),
            on_resumed=partial(self._tell_resumed, EVENTS_FILE),
        )
        self._metrics_file = SteadyFile(
            metrics,
            note=lambda _loss: b"",  # reported among the events: every line of this file is a measurement
            on_lost=partial(self._tell_lost, METRICS_FILE),
            on_resumed=partial(self._tell_resumed, METRICS_FILE),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-journal-{folder.name}", daemon=True)

    def start(self) -> None:
        """Makes the folder and the file of events, which even the shortest life leaves, and starts the thread.

        Raises:
            OSError: they cannot be made.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / EVENTS_FILE).touch()
        self._thread.start()

    def record(self, event: str, /, **fields: object) -> None:
        """Records an event that happens now."""
        if len(self._waiting) < _WAITING_LIMIT:
            self._waiting.append(Event(time.time(), event, fields))
            return
        with self._overflow_lock:
            self._overflow += 1
            self._overflow_from_s = self._overflow_from_s or time.time()

    def close(self, timeout_s: float) -> None:
        """Writes what is left, and a last line of metrics. May be called again, and before `start`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._sample = dict  # releases the node: its memory must not wait for the garbage collector

    # --- In the journal's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        next_metrics_s = time.monotonic() + self._metrics_interval_s
        period_s = min(_WRITE_INTERVAL_S, self._metrics_interval_s)
        is_stopping = False
        while not is_stopping:
            is_stopping = self._stop.wait(period_s)
            now_s = time.monotonic()
            is_sampled = is_stopping or now_s >= next_metrics_s
            if is_sampled:  # a process that was suspended does not catch up on what it missed
                next_metrics_s = max(next_metrics_s, now_s - self._metrics_interval_s) + self._metrics_interval_s
            try:
                if is_sampled:
                    self._write_metrics(must_try=is_stopping)
                self._write_events(now_s, is_last=is_stopping)
            except Exception as error:  # noqa: BLE001  the one broad catch of this thread
                self._tell_problem(f"{type(error).__name__}: {error}")
        self._events_file.close()
        self._metrics_file.close()

    def _write_events(self, now_s: float, *, is_last: bool) -> None:
        events: list[Event] = []
        for _ in range(len(self._waiting)):  # and not until none is left: the trainer adds more
            events += self._repeats.take(self._waiting.popleft(), now_s)
        events += self._repeats.end() if is_last else self._repeats.due(now_s)
        self._lose_overflow()
        start_line = self._last_start_line(events)
        if not (is_last or start_line) and self._events_file.skip(sum(map(_count_of, events))):
            events = []  # do not format lines that cannot be written
        lines = [_Line(self._line_of(event), _count_of(event)) for event in events]
        for group in _groups(lines) or [[]]:
            self._events_file.write(
                b"".join(data for data, _ in group), partial(_lost_of, group), starts_line=True, must_try=is_last
            )
        if start_line:  # every further file begins with it
            self._start_line, self._is_start_lost = start_line, self._events_file.is_failing

    def _write_metrics(self, *, must_try: bool) -> None:
        try:
            values = self._sample()
        except Exception as error:  # noqa: BLE001  a custom method's `statistics` may raise anything
            problem = f"the metrics cannot be read: {type(error).__name__}: {error}"
            self._tell_problem(problem)
            values = {"problem": problem}
        own = {"t": round(time.time(), 6)}
        made = line({**own, **values, **own}, self._tell_problem)
        self._metrics_file.write(made, lambda _written: 1, starts_line=True, must_try=must_try)

    def _line_of(self, event: Event) -> bytes:
        own: dict[str, object] = {"t": round(event.unix_s, 6), "event": event.name}
        return line({**own, **event.fields, **own}, self._tell_problem)  # no field replaces these two

    def _last_start_line(self, events: Sequence[Event]) -> bytes:
        """The line about this life for the beginning of later files; empty if no life starts among these events."""
        starts = [event for event in events if event.name == "start"]
        if not starts:
            return b""
        return self._line_of(starts[-1]._replace(fields={**starts[-1].fields, "continued": True}))

    # --- What is lost ---------------------------------------------------------------------------------------------

    def _lose_overflow(self) -> None:
        if not self._overflow:
            return
        with self._overflow_lock:
            count, from_s = self._overflow, self._overflow_from_s
            self._overflow, self._overflow_from_s = 0, 0.0
        self._events_file.lose(OSError(errno.EBUSY, "the disk was too slow"), count, from_s)

    def _events_note(self, loss: LostBytes) -> bytes:
        start_line = self._start_line if self._is_start_lost else b""
        return start_line + self._metrics_lost_line + self._lost_line(EVENTS_FILE, loss)

    def _lost_line(self, file_name: str, loss: LostBytes) -> bytes:
        return self._line_of(Event(time.time(), "journal_lost", _loss_fields(file_name, loss)))

    def _tell_lost(self, file_name: str, error: OSError) -> None:
        if not self._failing:
            _logger.warning(
                "the journal in %s cannot be written now (%s: %s): lines are lost until it can; training continues",
                self._folder,
                file_name,
                error.strerror or error,
            )
        self._failing.add(file_name)

    def _tell_resumed(self, file_name: str, loss: LostBytes) -> None:
        self._failing.discard(file_name)
        if file_name == METRICS_FILE:
            if EVENTS_FILE in self._failing:  # the event would be lost there; it goes into that file's note
                self._metrics_lost_line += self._lost_line(file_name, loss)
            else:
                self.record("journal_lost", **_loss_fields(file_name, loss))
        else:
            self._is_start_lost, self._metrics_lost_line = False, b""
        self._lost_total += loss.count
        if not self._failing:
            _logger.warning("the journal in %s is written again; %d lines were lost", self._folder, self._lost_total)
            self._lost_total = 0

    def _tell_problem(self, problem: str) -> None:
        """Reports each kind of problem once."""
        kind = problem[:60]
        if kind not in self._told and len(self._told) < 16:
            self._told.add(kind)
            _logger.warning("the journal in %s: %s (reported once; training continues)", self._folder, problem[:300])


def _loss_fields(file_name: str, loss: LostBytes) -> dict[str, object]:
    return {
        "file": file_name,
        "count": loss.count,
        "from": round(loss.from_s, 6),
        "to": round(loss.to_s, 6),
        "reason": loss.error.strerror or str(loss.error),
    }


def _count_of(event: Event) -> int:
    count = event.fields.get("repeats", 1)
    return count if isinstance(count, int) else 1


def _groups(lines: Sequence[_Line]) -> list[list[_Line]]:
    """The lines in pieces of about `_WRITE_BYTES`."""
    groups: list[list[_Line]] = []
    size_bytes = _WRITE_BYTES
    for one in lines:
        if size_bytes >= _WRITE_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(one)
        size_bytes += len(one.data)
    return groups


def _lost_of(group: Sequence[_Line], written_bytes: int) -> int:
    """The number of events in those lines that were not written completely."""
    lost = end_bytes = 0
    for one in group:
        end_bytes += len(one.data)
        if end_bytes > written_bytes:
            lost += one.events
    return lost
