"""The lives of a run's nodes and the faults that hit them, made of journal records: what the invariants look at.

A record that is not understood is left out: journals of other versions have other events, and a kill may leave
anything behind.

Must not know: files, what must hold. Runs in: any thread; pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Fault", "Life", "Record", "Run", "faults_of", "lives_of", "number"]

Record = Mapping[str, Any]
"""One line of a file."""


@dataclass
class Life:
    """One life of a node, from a start to whatever ended it.

    Attributes:
        node: its name.
        incarnation: hexadecimal; empty if the journal's beginning is lost.
        began_s: Unix seconds.
        start: the fields of its first event.
        blends: its exchanges that had a snapshot, in order.
        snapshots: of each published snapshot, by its version: the event about it.
        faults: what `faults:` injected into it.
        metrics: its lines of metrics, in order.
        last_s: Unix seconds of its last line in any file.
        closed_s: Unix seconds in which it was closed as it should; None if it was not.
        has_finished: it has come to `finish`.
        has_losses: lines of its journal are lost.
        kept_from_s: if the beginning of its journal is lost, which keeps two generations: Unix seconds of the first
            line that is left. What other lives of the node before it did may be lost, too.
    """

    node: str
    incarnation: str
    began_s: float
    start: Record = field(default_factory=dict)
    blends: list[Record] = field(default_factory=list)
    snapshots: dict[int, Record] = field(default_factory=dict)
    faults: list[Record] = field(default_factory=list)
    metrics: list[Record] = field(default_factory=list)
    last_s: float = 0.0
    closed_s: float | None = None
    has_finished: bool = False
    has_losses: bool = False
    kept_from_s: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it has ended as it should."""
        return self.closed_s is not None

    def may_lack(self, moment_s: float) -> bool:
        """Whether the node's journal may have lost what it held of a moment."""
        return self.has_losses or (self.kept_from_s is not None and moment_s < self.kept_from_s)

    @property
    def pid(self) -> int | None:
        """The process that it was."""
        pid = self.start.get("pid")
        return pid if isinstance(pid, int) else None


@dataclass(frozen=True)
class Fault:
    """A fault that somebody made from outside.

    Attributes:
        kind: `kill` (SIGKILL), `stop` (SIGSTOP), `restart` (SIGTERM) or `partition`.
        began_s: Unix seconds.
        ended_s: Unix seconds in which it was over; infinite for what is never undone.
        node: whom it hit; empty for a partition.
        groups: who was cut off from whom.
        pid: the process that it hit.
        evidence: what the system showed at that moment; empty if nothing.
    """

    kind: str
    began_s: float
    ended_s: float
    node: str = ""
    groups: tuple[frozenset[str], ...] = ()
    pid: int | None = None
    evidence: str = ""

    def hits(self, node: str) -> bool:
        """Whether it makes this node, or its links, worse."""
        return node == self.node or any(node in group for group in self.groups)

    def separates(self, one: str, other: str) -> bool:
        """Whether it keeps these two nodes apart."""
        if self.kind != "partition":
            return self.node in (one, other)
        mine = [group for group in self.groups if one in group]
        return any(other not in group for group in mine) and any(other in group for group in self.groups)


@dataclass(frozen=True)
class Run:
    """All that a run folder tells.

    Attributes:
        lives: of each node, in order.
        faults: made from outside.
        launches: the records of `dpwa launch`.
        settings: the run's config, every key.
    """

    lives: Mapping[str, Sequence[Life]]
    faults: Sequence[Fault] = ()
    launches: Sequence[Record] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def all_lives(self) -> list[Life]:
        """Of all nodes."""
        return [life for lives in self.lives.values() for life in lives]

    def setting(self, *path: str, default: float) -> float:
        """A number of the config."""
        value: Any = self.settings
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        found = number(value)
        return default if found is None else found


def number(value: object) -> float | None:
    """The value if it is a number; None for all else, such as the words for what is not finite."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def lives_of(node: str, events: Iterable[Record], metrics: Iterable[Record]) -> list[Life]:
    """The lives of a node.

    Args:
        node: its name.
        events: the lines of its events, in order.
        metrics: those of its metrics.
    """
    lives: list[Life] = []
    for event in events:
        moment_s = number(event.get("t"))
        if moment_s is None:
            continue
        if event.get("event") == "start":
            incarnation = str(event.get("incarnation") or "")
            if lives and lives[-1].incarnation == incarnation:
                continue  # the line that each further file of a journal begins with
            kept_from_s = math.inf if event.get("continued") else None
            lives.append(Life(node, incarnation, moment_s, event, last_s=moment_s, kept_from_s=kept_from_s))
            continue
        if not lives:
            lives.append(Life(node, "", moment_s, kept_from_s=moment_s))
        _take(lives[-1], event, moment_s)
    for line in metrics:
        moment_s = number(line.get("t"))
        if moment_s is None or number(line.get("step")) is None or not lives:
            continue
        life = next((life for life in reversed(lives) if life.began_s <= moment_s), lives[0])
        life.metrics.append(line)
        life.last_s = max(life.last_s, moment_s)
    return lives


def _take(life: Life, event: Record, moment_s: float) -> None:
    life.last_s = max(life.last_s, moment_s)
    if life.kept_from_s == math.inf:
        life.kept_from_s = moment_s
    kind, version = event.get("event"), event.get("version")
    if kind == "exchange" and event.get("outcome") == "blended":
        life.blends.append(event)
    elif kind == "snapshot" and isinstance(version, int):
        life.snapshots[version] = event
    elif kind == "fault":
        life.faults.append(event)
    elif kind in ("finishing", "finish"):
        life.has_finished = True
    elif kind == "close":
        life.closed_s = moment_s
    elif kind == "journal_lost":
        life.has_losses = True


def faults_of(records: Iterable[Record]) -> list[Fault]:
    """The faults that `dpwa chaos` wrote down: a line when each began, and one when it was undone."""
    found: dict[object, Fault] = {}
    for record in records:
        moment_s, key = number(record.get("t")), record.get("fault")
        if moment_s is None:
            continue
        if record.get("event") == "fault":
            pid = record.get("pid")
            found[key] = Fault(
                str(record.get("kind")),
                moment_s,
                float("inf"),
                str(record.get("node") or ""),
                tuple(frozenset(map(str, group)) for group in record.get("groups") or ()),
                pid if isinstance(pid, int) else None,
                str(record.get("evidence") or ""),
            )
            until_s = number(record.get("until"))  # it ends by itself, also when nobody is left to write that down
            if until_s is not None:
                found[key] = replace(found[key], ended_s=until_s)
        elif record.get("event") == "evidence" and key in found:
            found[key] = replace(found[key], evidence=str(record.get("evidence") or ""))
        elif record.get("event") == "undone" and key in found:
            found[key] = replace(found[key], ended_s=moment_s)
    return list(found.values())
