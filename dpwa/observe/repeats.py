"""Which events of a journal are the same once more, and the one line that stands for many of them.

A node whose peers are all gone has an exchange with nobody in every step. The first one is written at once; those that
follow become one line, which counts them, when something else happens, or after some seconds.

Must not know: files, why an exchange ended as it did. Runs in: the journal's thread; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Event", "Repeats"]

INTERVAL_S = 5.0
"""For so long repeats are counted before a line tells of them, in seconds; a kill loses no more of them."""

_KINDS_LIMIT = 1024

# What tells nothing that the count does not tell. All others have numbers of their own, which readers need.
_COUNTED = frozenset(
    [
        *("not_modified", "not_ready", "busy", "no_peer", "gone", "told"),
        *("timed_out", "unreachable", "mismatch", "refused", "rejected", "protocol_error"),
    ]
)
_SAME = ("outcome", "peer", "kind", "own", "reason", "note")


class Event(NamedTuple):
    """An event of the journal: when it was, in Unix seconds, its name, and what it tells."""

    unix_s: float
    name: str
    fields: Mapping[str, object]


@dataclass
class _Run:
    first: Event
    last: Event
    count: int


class Repeats:
    """Takes events in their order, and gives back what is to be written."""

    def __init__(self) -> None:
        self._runs: dict[tuple[object, ...], _Run | None] = {}  # None: the first was written, and none came since
        self._next_s: float | None = None

    def take(self, event: Event, now_s: float) -> list[Event]:
        """What is to be written now that this event has come.

        Args:
            event: it.
            now_s: on a clock that never goes back.
        """
        kind = _kind_of(event)
        if kind is None or len(self._runs) >= _KINDS_LIMIT:
            return [*self.end(), event]
        if kind not in self._runs:
            self._runs[kind] = None
            if self._next_s is None:
                self._next_s = now_s + INTERVAL_S
            return [event]
        run = self._runs[kind]
        if run is None:
            self._runs[kind] = _Run(event, event, 1)
        else:
            run.last, run.count = event, run.count + 1
        return []

    def due(self, now_s: float) -> list[Event]:
        """What has been counted for long enough."""
        if self._next_s is None or now_s < self._next_s:
            return []
        events = _lines(self._runs)
        # Whatever was not repeated for that long is news when it comes again.
        self._runs = {kind: None for kind, run in self._runs.items() if run is not None}
        self._next_s = now_s + INTERVAL_S if self._runs else None
        return events

    def end(self) -> list[Event]:
        """What has been counted so far; what comes next is no repeat."""
        events = _lines(self._runs)
        self._runs, self._next_s = {}, None
        return events


def _kind_of(event: Event) -> tuple[object, ...] | None:
    """What it has in common with its repeats; None for an event that stays by itself."""
    fields = event.fields
    outcome = fields.get("outcome")
    if event.name != "exchange" or outcome not in _COUNTED or "version" in fields:
        return None
    if "exchange_id" in fields and outcome != "no_peer":  # a peer may have a line about the same one
        return None
    return tuple(fields.get(name) for name in _SAME)


def _lines(runs: Mapping[tuple[object, ...], _Run | None]) -> list[Event]:
    found = [run for run in runs.values() if run is not None]
    return [_line(run) for run in sorted(found, key=lambda run: run.last.unix_s)]


def _line(run: _Run) -> Event:
    """The newest of them with the number of all."""
    if run.count == 1:
        return run.last
    since = {"repeats": run.count, "first_t": round(run.first.unix_s, 6), "first_step": run.first.fields.get("step")}
    return run.last._replace(fields={**run.last.fields, **since})
