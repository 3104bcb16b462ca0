"""What a node reports to its user while others press on it: buffers that are held, connections that were closed.

The log gets one warning, in words. The journal gets counts, at most one line in ten seconds, so that an attack fills no
disk.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from dpwa.transport.connection_rules import Cause

__all__ = ["Pressure"]

# A step or two without a new snapshot is nothing: peers on slow links read for that long.
_LONG_S = 1.0

_BETWEEN_EVENTS_S = 10.0


class Pressure:
    """Reports it for one node.

    Args:
        node: its name.
        guarded: by cause, what its serving side has closed so far; another thread counts it up.
        event: writes a line of the journal.
    """

    def __init__(self, node: str, guarded: Mapping[Cause, int], event: Callable[..., None]) -> None:
        self._node = node
        self._guarded = guarded
        self._event = event
        self._written: Mapping[Cause, int] = dict(guarded)
        self._next_event_s = 0.0
        self._skipped_since_s: float | None = None
        self._is_told = False

    def published(self) -> None:
        """A snapshot was taken."""
        self._skipped_since_s = None

    def skipped(self, now_s: float) -> None:
        """None could be: peers hold all buffers."""
        if self._skipped_since_s is None:
            self._skipped_since_s = now_s
        if not self._is_told and now_s - self._skipped_since_s >= _LONG_S:
            self._is_told = True
            logging.getLogger("dpwa").warning(
                "node %s: for %.1f s peers have held all buffers for snapshots, so that none newer can be served. Own "
                "exchanges go on with a copy of their own. Many slow readers, or strangers, cause this: raise "
                "`memory` to normal if it is low, set codec, pull_fraction or bandwidth_limit for slow links, and "
                "keep strangers from the port (told once; `publish_skipped` in the metrics counts)",
                self._node,
                now_s - self._skipped_since_s,
            )

    def note(self, now_s: float) -> None:
        """Write to the journal what was closed since the last line, if it is time for one."""
        if now_s >= self._next_event_s and self._guarded != self._written:
            self._next_event_s = now_s + _BETWEEN_EVENTS_S
            self._write()

    def close(self) -> None:
        """Write what is left, and let go of the node: its memory must not wait for the garbage collector."""
        if self._guarded != self._written:
            self._write()
        self._event = _ignore

    def _write(self) -> None:
        self._written = dict(self._guarded)
        self._event("guard", **{cause.value: count for cause, count in self._written.items() if count})


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
