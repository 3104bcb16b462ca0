"""What must hold in every run, whatever was done to it: nine invariants, checked over its journals.

This file says what they are, and has those about what was blended, I1 to I3 and I5. Those about time, faults and
processes are in `continuity.py`. A check that saw nothing has not held: it says what it would have needed.

Must not know: files, processes. Runs in: any thread; pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dpwa.observe import continuity
from dpwa.observe.lives import Life, Record, Run, number
from dpwa.observe.observations import Finding, Observed

__all__ = ["INVARIANTS", "Check", "Invariant", "check_run"]

_ALL = 1.0 - 1e-9
"""A share from which on a snapshot was taken whole."""


@dataclass(frozen=True)
class Invariant:
    """One of the nine.

    Attributes:
        name: I1 to I9.
        statement: what must hold.
        unit: what is counted, in the plural.
        check: looks at a run.
    """

    name: str
    statement: str
    unit: str
    check: Callable[[Run], Observed]


@dataclass(frozen=True)
class Check:
    """What came of checking one invariant.

    Attributes:
        invariant: which.
        observations: how often it was looked at.
        findings: where it did not hold, in the order of time.
        remark: if it could not be looked at, what was missing; else what is worth knowing about it.
    """

    invariant: Invariant
    observations: int
    findings: tuple[Finding, ...]
    remark: str

    @property
    def verdict(self) -> str:
        """`held`, `violated` or `not checkable`."""
        if self.findings:
            return "violated"
        return "held" if self.observations else "not checkable"


def check_run(run: Run) -> tuple[Check, ...]:
    """Check all of them."""
    checks = []
    for invariant in INVARIANTS:
        seen = invariant.check(run)
        findings = tuple(sorted(seen.findings, key=lambda finding: finding.moment_s))
        remark = seen.remark if seen.count or findings else seen.missing
        checks.append(Check(invariant, seen.count, findings, remark))
    return tuple(checks)


# --- I1: whole snapshots ----------------------------------------------------------------------------------------------


def _whole_snapshots(run: Run) -> Observed:
    """Each blended snapshot is one that its node published, bit for bit."""
    seen = Observed("the journals of the peers do not hold the publication of what was blended")
    published = _by_incarnation(run)
    blends = [(life, blend) for life, blend in _blends(run) if isinstance(blend.get("checksum"), int)]
    for life, blend in blends:
        peer, version = str(blend.get("peer")), blend.get("version")
        theirs = published.get((peer, str(blend.get("incarnation"))))
        if theirs is None or not theirs.snapshots or not isinstance(version, int):
            continue
        snapshot = theirs.snapshots.get(version)
        if snapshot is not None:
            seen.count += 1
            if snapshot.get("checksum") != blend["checksum"]:
                text = f"version {version} has checksum {blend['checksum']}, published with {snapshot.get('checksum')}"
                seen.find(life.node, blend, text, peer)
        elif version > max(theirs.snapshots) and theirs.is_closed and not theirs.has_losses:
            seen.count += 1
            seen.find(life.node, blend, f"version {version} was never published", peer)
    if not blends:
        seen.missing = "no checksums in these journals: set `journal_checksums: true`"
    return seen


def _by_incarnation(run: Run) -> dict[tuple[str, str], Life]:
    return {(life.node, life.incarnation): life for life in run.all_lives() if life.incarnation}


def _blends(run: Run) -> Iterator[tuple[Life, Record]]:
    for life in run.all_lives():
        for blend in life.blends:
            yield life, blend


# --- I2: nothing older, nothing twice ---------------------------------------------------------------------------------


def _order(run: Run) -> Observed:
    """Of one life of a peer nothing older comes after something newer, and nothing twice."""
    seen = Observed("no blend names its version and its peer's life")
    for life in run.all_lives():
        newest: dict[str, _Taken] = {}
        applied: set[str] = set()
        for blend in life.blends:
            peer, version, incarnation = str(blend.get("peer")), blend.get("version"), blend.get("incarnation")
            exchange_id = blend.get("exchange_id")
            if isinstance(exchange_id, str) and blend.get("merged", 1) == 1:
                seen.count += 1
                if exchange_id in applied:
                    seen.find(life.node, blend, f"exchange {exchange_id} was applied twice", peer)
                applied.add(exchange_id)
            elif "kind" not in blend and isinstance(version, int) and isinstance(incarnation, str):
                seen.count += 1
                taken = newest.setdefault(peer, _Taken(incarnation))
                problem = taken.take(incarnation, version, number(blend.get("share")) or 0.0)
                if problem:
                    seen.find(life.node, blend, problem, peer)
    return seen


class _Taken:
    """What a node has of a peer."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._former: set[str] = set()
        self._version = 0
        self._is_whole = False

    def take(self, incarnation: str, version: int, share: float) -> str:
        """Note a snapshot; what is wrong with it, or nothing."""
        if incarnation in self._former:
            return f"version {version} is of a former life, {incarnation[:8]}"
        if incarnation != self._incarnation:
            self._former.add(self._incarnation)
            self._incarnation, self._version, self._is_whole = incarnation, 0, False
        newest, self._version = self._version, max(version, self._version)
        if version < newest:
            return f"version {version} came after version {newest}"
        if version == newest and self._is_whole:
            return f"version {version} was blended twice"
        self._is_whole = share >= _ALL
        return ""


# --- I3: only finite numbers, only of the same model ------------------------------------------------------------------

_NUMBERS = ("factor", "peer_clock", "share", "clock", "distance", "weight")


def _usable(run: Run) -> Observed:
    """What is blended is finite, and of a model with the same layout."""
    seen = Observed("no blend is in these journals")
    lives = _by_incarnation(run)
    for life, blend in _blends(run):
        seen.count += 1
        peer = str(blend.get("peer"))
        for name in _NUMBERS:
            if name in blend and not math.isfinite(_or_nan(blend[name])):
                seen.find(life.node, blend, f"{name} is {blend[name]}", peer)
        theirs = lives.get((peer, str(blend.get("incarnation"))))
        if theirs is None or not blend.get("factor"):
            continue
        own_layout, their_layout = life.start.get("layout"), theirs.start.get("layout")
        if own_layout and their_layout and own_layout != their_layout:
            seen.find(life.node, blend, f"layout {str(their_layout)[:8]} there, {str(own_layout)[:8]} here", peer)
        version = blend.get("version")
        snapshot = theirs.snapshots.get(version) if isinstance(version, int) else None
        if snapshot is not None and snapshot.get("not_finite"):
            seen.find(life.node, blend, f"version {version} was not finite in {snapshot['not_finite']}", peer)
    return seen


def _or_nan(value: object) -> float:
    found = number(value)
    return math.nan if found is None else found


# --- I5: the factor ---------------------------------------------------------------------------------------------------


def _factors(run: Run) -> Observed:
    """A factor is between 0, where nothing is blended, and the most that the config allows."""
    seen = Observed("no blend is in these journals")
    method = run.settings.get("method", "pull")
    if isinstance(method, str) and ":" in method:
        seen.missing = "a custom method may use any finite factor"
        return seen
    most = run.setting("factor_max", default=1.0) if method == "pull" else 1.0
    for life, blend in _blends(run):
        factor = _or_nan(blend.get("factor"))
        if factor == 0.0:
            continue  # the two models were kept apart
        seen.count += 1
        limit = 1.0 if blend.get("takes_over") else most
        if not 0.0 < factor <= limit:
            text = f"factor {blend.get('factor')}, expected above 0 and at most {limit:g}"
            seen.find(life.node, blend, text, str(blend.get("peer")))
    return seen


# --- All --------------------------------------------------------------------------------------------------------------

INVARIANTS: tuple[Invariant, ...] = (
    Invariant("I1", "what is blended was published, bit for bit", "blends", _whole_snapshots),
    Invariant("I2", "nothing older after something newer, nothing twice", "blends", _order),
    Invariant("I3", "only finite values of the same model are blended", "blends", _usable),
    Invariant("I4", "no survivor pauses for longer than 2 s or 10 steps", "metrics lines", continuity.pauses),
    Invariant("I5", "0 < factor <= what the config allows", "blends", _factors),
    Invariant("I6", "10 s after a fault has ended, all exchange again", "pairs of nodes", continuity.reunions),
    Invariant("I7", "descriptors, threads and memory stay flat", "lives of 2 minutes", continuity.growth),
    Invariant("I8", "nodes close within 5 s of being told, and say why", "ends", continuity.endings),
    Invariant("I9", "the faults happened", "faults", continuity.reality),
)
