"""Breaks the nodes of a run at random: kills, stops, restarts and cuts them off, and undoes what can be undone.

At least one node is always left alone. Each fault is written into the run folder with what the system showed of it.

Must not know: how a run is started, what is printed. Runs in: the main thread, which calls `turn` several times a
second.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpwa.launch.victims import Victim, running_node
from dpwa.observe.run_record import CHAOS_FILE, RunRecord
from dpwa.transport.faults import SteeredPartition

__all__ = ["Breaker"]

_STOPPED_S = (1.0, 6.0)
_PARTED_S = (3.0, 10.0)


@dataclass
class _Broken:
    """A fault that goes on.

    Attributes:
        number: in the record.
        kind: see `Fault` in `dpwa.observe.lives`.
        began_s: monotonic.
        ends_s: monotonic time to undo it; None: it ends when the node is back.
        victim: the process; None for a partition.
        groups: of a partition.
        has_evidence: it is on record that it took effect.
    """

    number: int
    kind: str
    began_s: float
    ends_s: float | None
    victim: Victim | None = None
    groups: Sequence[Sequence[str]] = field(default_factory=list)
    has_evidence: bool = True


class Breaker:
    """Makes faults in one run.

    Args:
        run_dir: the run folder.
        nodes: names of the nodes.
        mtbf_s: mean time between the beginnings of two faults.
        is_steered: the nodes heed a partition in the run folder.
        seed: of the random numbers.
        tell: called with a line about each fault.
    """

    def __init__(
        self,
        run_dir: Path,
        nodes: Sequence[str],
        *,
        mtbf_s: float,
        is_steered: bool,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self._run_dir = run_dir
        self._nodes = list(nodes)
        self._mtbf_s = mtbf_s
        self._is_steered = is_steered
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._tell = tell
        self._record = RunRecord(run_dir, CHAOS_FILE)
        self._partition = SteeredPartition(run_dir)
        self._broken: list[_Broken] = []
        self._due_s = time.monotonic() + self._rng.expovariate(1 / mtbf_s)
        self._numbers = _numbers_after(time.time_ns())
        self.made = 0

    def begin(self) -> None:
        """Count the time to the first fault from now."""
        self._due_s = time.monotonic() + self._rng.expovariate(1 / self._mtbf_s)

    def alive(self) -> dict[str, Victim]:
        """The processes of the nodes that run now, by name."""
        found = {node: running_node(self._run_dir, node) for node in self._nodes}
        return {node: victim for node, victim in found.items() if victim is not None}

    def turn(self, *, may_begin: bool) -> None:
        """Undo what is over, and begin what is due.

        Args:
            may_begin: a new fault may begin.
        """
        now_s = time.monotonic()
        alive = self.alive()
        for broken in list(self._broken):
            self._look_after(broken, alive, now_s)
        if may_begin and now_s >= self._due_s:
            self._due_s = now_s + self._rng.expovariate(1 / self._mtbf_s)
            self._break(alive, now_s)

    def undo(self) -> None:
        """Undo all that can be undone: stopped nodes continue, partitions heal."""
        undone = [broken for broken in self._broken if broken.kind in ("stop", "partition")]
        told = [self._undo(broken) for broken in undone]
        for line in told:  # afterwards: whoever reads may be gone, and then this raises
            self._tell(line)

    def in_words(self) -> str:
        """Who is down now, and for how long."""
        now_s = time.monotonic()
        return ", ".join(
            f"{_who(broken)} {_DONE[broken.kind]}"
            + (
                f" for {now_s - broken.began_s:.0f} s"
                if broken.ends_s is None
                else f", {broken.ends_s - now_s:.0f} s left"
            )
            for broken in self._broken
        )

    # --- One fault ----------------------------------------------------------------------------------------------------

    def _break(self, alive: dict[str, Victim], now_s: float) -> None:
        hit = {broken.victim.node for broken in self._broken if broken.victim is not None}
        free = [victim for node, victim in sorted(alive.items()) if node not in hit]
        if len(free) < 2:
            return  # one is always left alone
        victim = self._rng.choice(free)
        kinds = ["kill", "stop"]
        if victim.restarts:
            kinds.append("restart")
        if self._is_steered and not any(broken.kind == "partition" for broken in self._broken):
            kinds.append("partition")
        kind = self._rng.choice(kinds)
        if kind == "partition":
            self._part([each.node for each in free], now_s)
        elif kind == "stop":
            self._stop(victim, now_s)
        else:
            self._end(kind, victim, now_s)

    def _part(self, names: list[str], now_s: float) -> None:
        self._rng.shuffle(names)
        cut = self._rng.randint(1, len(names) - 1)
        groups = [sorted(names[:cut]), sorted(set(self._nodes) - set(names[:cut]))]
        lasts_s = self._rng.uniform(*_PARTED_S)
        until_s = time.time() + lasts_s
        self._partition.write(groups, until_s)
        broken = self._began("partition", now_s, now_s + lasts_s, groups=groups, until_s=until_s)
        self._tell(f"cut off {_who(broken)} for {lasts_s:.1f} s")

    def _stop(self, victim: Victim, now_s: float) -> None:
        lasts_s = self._rng.uniform(*_STOPPED_S)
        if not victim.send(signal.SIGSTOP):
            return
        self._began("stop", now_s, now_s + lasts_s, victim=victim, evidence=victim.wait_for_state("T", "t"))
        self._tell(f"stopped {victim.node} (process {victim.pid}) for {lasts_s:.1f} s")

    def _end(self, kind: str, victim: Victim, now_s: float) -> None:
        is_kill = kind == "kill"
        if not victim.send(signal.SIGKILL if is_kill else signal.SIGTERM):
            return
        evidence = victim.wait_for_state("", "Z", "X") if is_kill else ""
        self._began(kind, now_s, None, victim=victim, evidence=evidence)
        self._tell(f"{'killed' if is_kill else 'told to end:'} {victim.node} (process {victim.pid})")

    def _began(
        self,
        kind: str,
        now_s: float,
        ends_s: float | None,
        *,
        victim: Victim | None = None,
        groups: Sequence[Sequence[str]] = (),
        until_s: float | None = None,
        evidence: str = "",
    ) -> _Broken:
        broken = _Broken(next(self._numbers), kind, now_s, ends_s, victim, groups, bool(evidence))
        self._broken.append(broken)
        self.made += 1
        about: dict[str, object] = {"groups": groups, "until": until_s}
        if victim is not None:
            about = {"node": victim.node, "pid": victim.pid}
        # Written with the time of the line: the fault began at most 2 s before, and nothing else happened meanwhile.
        self._record.write("fault", fault=broken.number, kind=kind, evidence=evidence, **about)
        return broken

    def _look_after(self, broken: _Broken, alive: dict[str, Victim], now_s: float) -> None:
        victim = broken.victim
        if victim is not None and not broken.has_evidence and not victim.is_alive:
            broken.has_evidence = True
            self._record.write("evidence", fault=broken.number, evidence="gone")
        if broken.ends_s is not None:
            if now_s >= broken.ends_s or (victim is not None and not victim.is_alive):
                self._tell(self._undo(broken))
        elif victim is not None and victim.node in alive and alive[victim.node].pid != victim.pid:
            self._over(broken)
            self._tell(f"{victim.node} is back (process {alive[victim.node].pid})")

    def _undo(self, broken: _Broken) -> str:
        """Undo a fault; what to say of that."""
        if broken.victim is None:
            self._partition.remove()
        else:
            broken.victim.send(signal.SIGCONT)
        self._over(broken)
        return f"healed: {_who(broken)}" if broken.victim is None else f"continued {broken.victim.node}"

    def _over(self, broken: _Broken) -> None:
        self._broken.remove(broken)
        self._record.write("undone", fault=broken.number)


_DONE = {"kill": "killed", "restart": "told to end", "stop": "stopped", "partition": "cut off"}


def _who(broken: _Broken) -> str:
    """Whom a fault hits; of a partition the smaller side."""
    return broken.victim.node if broken.victim is not None else " ".join(sorted(broken.groups, key=len)[0])


def _numbers_after(first: int) -> Iterator[int]:
    """Numbers that no earlier chaos in the same folder has used."""
    while True:
        first += 1
        yield first
