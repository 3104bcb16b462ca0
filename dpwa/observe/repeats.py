"""Finds repeated events of a journal, and replaces them with one line that counts them.

A node whose peers are all gone finds no peer in every step. The first of these events is written at once; those that
follow become one line when something else happens, or after some seconds.

Must not know: files. Runs in: the journal's thread; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Event", "Repeats"]

INTERVAL_S = 5.0
"""How long repeats are counted before a line reports them, in seconds. A kill loses at most these."""

_KINDS_LIMIT = 1024

# Outcomes that a count describes completely. Events with others have numbers of their own, which readers need.
_COUNTED = frozenset(
    [
        *("not_modified", "not_ready", "busy", "no_peer", "gone", "told"),
        *("timed_out", "unreachable", "mismatch", "refused", "rejected", "protocol_error"),
    ]
)
_SAME = ("outcome", "peer", "kind", "own", "reason", "note")


class Event(NamedTuple):
    """An event of the journal: its time in Unix seconds, its name, and its fields."""

    unix_s: float
    name: str
    fields: Mapping[str, object]


@dataclass
class _Run:
    first: Event
    last: Event
    count: int


class Repeats:
    """Takes events in order, and returns what to write."""

    def __init__(self) -> None:
        self._runs: dict[
            tuple[object, ...], _Run | None
        ] = {}  # None: the first was written, and no other has come since
        self._next_s: float | None = None

    def take(self, event: Event, now_s: float) -> list[Event]:
        """Takes an event; returns what to write now. `now_s` is on a monotonic clock."""
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
        """What to write because it has been counted for long enough."""
        if self._next_s is None or now_s < self._next_s:
            return []
        events = _lines(self._runs)
        # What was not repeated for that long is written at once when it comes again.
        self._runs = {kind: None for kind, run in self._runs.items() if run is not None}
        self._next_s = now_s + INTERVAL_S if self._runs else None
        return events

    def end(self) -> list[Event]:
        """What has been counted so far. Whatever comes next is not a repeat."""
        events = _lines(self._runs)
        self._runs, self._next_s = {}, None
        return events


def _kind_of(event: Event) -> tuple[object, ...] | None:
    """What an event has in common with its repeats; None for an event that is always written."""
    fields = event.fields
    outcome = fields.get("outcome")
    if event.name != "exchange" or outcome not in _COUNTED or "version" in fields:
        return None
    if "exchange_id" in fields and outcome != "no_peer":  # a peer's journal may have a line about the same exchange
        return None
    return tuple(fields.get(name) for name in _SAME)


def _lines(runs: Mapping[tuple[object, ...], _Run | None]) -> list[Event]:
    found = [run for run in runs.values() if run is not None]
    return [_line(run) for run in sorted(found, key=lambda run: run.last.unix_s)]


def _line(run: _Run) -> Event:
    """The newest of the events, with their number."""
    if run.count == 1:
        return run.last
    since = {"repeats": run.count, "first_t": round(run.first.unix_s, 6), "first_step": run.first.fields.get("step")}
    return run.last._replace(fields={**run.last.fields, **since})
