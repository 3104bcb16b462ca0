"""The journal of one node: what happened, and how it went, as JSON lines in the run folder.

`events.jsonl` has a line for each exchange, each failure, start and end; `metrics.jsonl` one for each metrics interval.
All tools that look at a run read these two files. docs/architecture.md lists their fields.

Must not know: exchanges, sockets, models. Runs in: `record` in any thread, where it costs an append to a
list; files are written by the thread named `dpwa-journal-…`.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

__all__ = ["EVENTS_FILE", "METRICS_FILE", "Journal", "node_folder"]

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "metrics.jsonl"

# How much a kill may lose of the journal, and how rarely its thread wakes up.
_WRITE_INTERVAL_S = 0.25

_logger = logging.getLogger("dpwa")


def node_folder(run_dir: Path, node: str) -> Path:
    """The folder of one node within a run's."""
    return run_dir / "nodes" / node


class Journal:
    """Writes one node's events and metrics.

    A disk that is full or gone ends the journal with a warning, never the training.

    Args:
        folder: the node's folder; made if missing. Existing files are continued: a restart adds to them.
        sample: gives the metrics of this moment; called by the journal's thread.
        metrics_interval_s: seconds between two lines of metrics.
    """

    def __init__(self, folder: Path, *, sample: Callable[[], Mapping[str, object]], metrics_interval_s: float) -> None:
        self._folder = folder
        self._sample = sample
        self._metrics_interval_s = metrics_interval_s
        self._events: deque[tuple[float, str, Mapping[str, object]]] = deque()  # append and popleft are atomic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-journal-{folder.name}", daemon=True)

    def start(self) -> None:
        """Make the folder and start the thread.

        Raises:
            OSError: the folder cannot be made.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def record(self, event: str, /, **fields: object) -> None:
        """Note an event of this moment."""
        self._events.append((time.time(), event, fields))

    def close(self, timeout_s: float) -> None:
        """Write what is left and a last line of metrics. May be called again, and before `start`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._sample = dict  # lets go of the node: it and its memory must not wait for the garbage collector

    def _run(self) -> None:
        try:
            with (
                open(self._folder / EVENTS_FILE, "a", encoding="utf-8") as events,
                open(self._folder / METRICS_FILE, "a", encoding="utf-8") as metrics,
            ):
                self._write(events, metrics)
        except OSError as error:
            _logger.warning("the journal in %s ends here: %s; training goes on", self._folder, error)

    def _write(self, events: IO[str], metrics: IO[str]) -> None:
        next_metrics_s = time.monotonic() + self._metrics_interval_s
        period_s = min(_WRITE_INTERVAL_S, self._metrics_interval_s)
        while True:
            stopping = self._stop.wait(period_s)
            if self._events:
                while self._events:
                    unix_s, event, fields = self._events.popleft()
                    events.write(_line({"t": round(unix_s, 6), "event": event, **fields}))
                events.flush()
            if stopping or time.monotonic() >= next_metrics_s:
                next_metrics_s += self._metrics_interval_s
                metrics.write(_line({"t": round(time.time(), 6), **self._sample()}))
                metrics.flush()
            if stopping:
                return


def _line(fields: Mapping[str, object]) -> str:
    """One line of strict JSON."""
    return json.dumps(_plain(fields), allow_nan=False, separators=(",", ":")) + "\n"


def _plain(value: object) -> object:
    """What JSON can hold: NaN and infinity become the words "nan", "inf" and "-inf", arrays lists, the rest text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    to_list = getattr(value, "tolist", None)  # numbers and arrays of numpy
    return _plain(to_list()) if callable(to_list) else str(value)
