"""What a cluster has room for: how many nodes fit onto its machines, and in words what is missing.

Must not know: Ray, sockets. Runs in: any thread; pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dpwa.errors import ConfigError

__all__ = ["MAX_NODES_ASKED", "Machine", "Need", "card_problems", "fitting", "what_is_missing"]

MAX_NODES_ASKED = 1024
"""Most nodes of one start; above that, what was asked for is a mistake."""

_LISTED = 8
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Machine:
    """One machine, as its scheduler counts it.

    Attributes:
        name: for people.
        has: how much there is of each resource, such as `CPU` and `GPU`.
        free: how much of it nobody has reserved.
    """

    name: str
    has: Mapping[str, float]
    free: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Need:
    """What is needed.

    Attributes:
        count: nodes.
        cpus: of each node.
        gpus: of each node.
    """

    count: int
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.count <= MAX_NODES_ASKED:
            problems.append(f"nodes: expected 1 to {MAX_NODES_ASKED}, got {self.count}")
        for name, number in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not 0 <= number <= 4096:
                problems.append(f"{name} per node: expected 0 to 4096, got {number:g}")
            elif number > 1 and number != int(number):
                problems.append(f"{name} per node: above 1 expected a whole number, got {number:g}")
        if problems:
            raise ConfigError(problems)

    @property
    def bundle(self) -> dict[str, float]:
        """Of one node, by resource; never empty, because a place that needs nothing cannot be reserved."""
        found = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: number for name, number in found.items() if number} or {"CPU": 0.001}

    def __str__(self) -> str:
        parts = [f"{number:g} {name}{'' if number == 1 else 's'}" for name, number in self._counted]
        return " and ".join(parts) or "no CPU"

    @property
    def _counted(self) -> list[tuple[str, float]]:
        return [(name, number) for name, number in (("CPU", self.cpus), ("GPU", self.gpus)) if number]


def fitting(has: Mapping[str, float], need: Need) -> int:
    """How many nodes fit into that."""
    return min(
        (int(has.get(name, 0.0) / number + _ROUNDING) for name, number in need.bundle.items()), default=need.count
    )


def what_is_missing(machines: Sequence[Machine], need: Need) -> str:
    """Why so many nodes have no place, in words; empty if they have one.

    Args:
        machines: of the cluster.
        need: what is to be placed.
    """
    if sum(fitting(machine.free, need) for machine in machines) >= need.count:
        return ""
    whole = sum(fitting(machine.has, need) for machine in machines)
    free = {machine.name: fitting(machine.free, need) for machine in machines}
    room = ", ".join(f"{name}: {places}" for name, places in list(free.items())[:_LISTED])
    more = f" and {len(free) - _LISTED} more" if len(free) > _LISTED else ""
    asked = f"{need.count} {'node' if need.count == 1 else 'nodes'} with {need}{' each' if need.count > 1 else ''}"
    if whole < need.count:
        cause = f"even empty it would have for {whole} only"
    else:
        cause = f"others use the rest: empty, it would have for {whole}"
    return (
        f"{asked} need room, and Ray has it for {sum(free.values())} now (by machine: {room or 'none'}{more}); {cause}"
    )


def card_problems(cards: Mapping[str, Mapping[str, object]], version: str) -> list[str]:
    """What is wrong with the places that nodes were given, each named by its machine; those that are alike once.

    Args:
        cards: by node, what its place says of itself: `host`, `version`, `python`, `folder` and `has_folder`.
        version: of dpwa here.
    """
    problems: dict[str, list[str]] = {}
    for node, card in cards.items():
        host, there = card["host"], str(card["version"])
        if not there:
            problem = f"{host} has no dpwa in {card['python']}; install dpwa {version} there"
        elif there != version:
            problem = f"{host} has dpwa {there}, and here is {version}; install the same on all machines"
        elif not card["has_folder"]:
            problem = (
                f"{host} has no folder {card['folder']}, in which the command is to run; put the script there, at the "
                "same path on all machines"
            )
        else:
            continue
        problems.setdefault(problem, []).append(node)
    return [f"{problem} (for {', '.join(nodes[:_LISTED])})" for problem, nodes in problems.items()]
