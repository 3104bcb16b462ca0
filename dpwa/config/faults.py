"""What a cluster file can say under `faults:`, what must hold in it, and what it means in words.

Faults are for experiments: what becomes of training when links and nodes are bad. docs/faults.md describes each.

Must not know: nodes that run, numpy, how a fault is made. Runs in: any thread; options never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from dpwa.config.data_rate import bytes_per_s
from dpwa.config.problems import OWN_TEXT, Problem, shown
from dpwa.config.sections import DataRate, Options

__all__ = ["FaultOptions", "KillOptions", "NoiseOptions", "PartitionOptions", "fault_problems", "faults_in_words"]

_LONGEST_MS = 600_000
_EXPECTED_DELAY = f"expected milliseconds from 0 to {_LONGEST_MS}: a number, or two in order, such as [5, 50]"
_EXPECTED_SLOW = "expected milliseconds for each slow node, such as {w2: 100}"
_NUMBER_SCHEMA = {"type": "number", "minimum": 0, "maximum": _LONGEST_MS}


def _is_duration(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LONGEST_MS  # type: ignore[operator]


def _checked_delay(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    ends = value if isinstance(value, (list, tuple)) else (value, value)
    if len(ends) == 2 and all(map(_is_duration, ends)) and ends[0] <= ends[1]:
        return float(ends[0]), float(ends[1])
    raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": _EXPECTED_DELAY})


def _checked_slow(value: object) -> dict[str, float]:
    if isinstance(value, Mapping):
        return dict(value)  # names and numbers are checked by `fault_problems`, which names the place of each
    raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": _EXPECTED_SLOW})


_Delay = Annotated[
    tuple[float, float] | None,
    BeforeValidator(_checked_delay),
    WithJsonSchema({"anyOf": [_NUMBER_SCHEMA, {"type": "array", "items": _NUMBER_SCHEMA}, {"type": "null"}]}),
]
_Slow = Annotated[
    Any,
    PlainValidator(_checked_slow),
    WithJsonSchema({"type": "object", "additionalProperties": _NUMBER_SCHEMA}),
]
_Group = Annotated[tuple[str, ...], Field(strict=False)]


class NoiseOptions(Options):
    """Gaussian noise on what is received."""

    scale: float = Field(0.0, ge=0, le=1000, description="Standard deviation of the noise; 0 is none.")
    relative: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether the scale counts in the root mean square of each piece that is received.",
    )


class KillOptions(Options):
    """A node that kills itself."""

    node: str = Field(description="Name of the node.")
    step: int = Field(ge=1, description="Its own step in which it does so, once per run.")


class PartitionOptions(Options):
    """Groups of nodes that cannot reach each other for a while."""

    groups: Annotated[tuple[_Group, ...], Field(strict=False)] = Field(
        description="Names of the nodes of each group; a node in none reaches all."
    )
    from_step: int = Field(ge=0, description="The asking node's own step with which it begins.")
    to_step: int = Field(ge=0, description="The last such step.")

    def separates(self, asker: str, peer: str, step: int) -> bool:
        """Whether an ask fails.

        Args:
            asker: the node that asks.
            peer: whom.
            step: of the asker.
        """
        if not self.from_step <= step <= self.to_step:
            return False
        own = {name for group in self.groups if asker in group for name in group}
        return bool(own) and peer not in own and any(peer in group for group in self.groups)


class FaultOptions(Options):
    """Faults to inject, for experiments; without any, nothing is done and nothing is slower."""

    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the faults; each node has own random numbers.")
    drop: float = Field(0.0, ge=0, le=1, description="Probability that a message or its answer is lost.")
    duplicate: float = Field(0.0, ge=0, le=1, description="Probability that a message is delivered twice.")
    reorder: float = Field(
        0.0, ge=0, le=1, description="Probability that a proposal is delivered after the next one to that peer."
    )
    delay_ms: _Delay = Field(
        None, description="Milliseconds by which messages are late: a number, or two for a uniform choice between them."
    )
    bandwidth: DataRate = Field(None, description='Rate at which each pull receives at most, such as "10 MB/s".')
    noise: NoiseOptions = Field(NoiseOptions(), description="Gaussian noise on the parameters that are received.")
    slow: _Slow = Field({}, description="Milliseconds of pause in every step of a node, by its name.")
    kill: Annotated[tuple[KillOptions, ...], Field(strict=False)] = Field(
        (), description="Nodes that kill themselves in a step, once per run."
    )
    partition: Annotated[tuple[PartitionOptions, ...], Field(strict=False)] = Field(
        (), description="Groups of nodes that cannot reach each other for a while."
    )

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Bytes per second that a pull receives at most, or None."""
        return None if self.bandwidth is None else bytes_per_s(self.bandwidth)

    @property
    def delay_s(self) -> tuple[float, float] | None:
        """The shortest and longest delay in seconds, or None."""
        return None if self.delay_ms is None else (self.delay_ms[0] / 1000, self.delay_ms[1] / 1000)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults that are wanted."""
        wanted = {
            "drop": self.drop > 0,
            "duplicate": self.duplicate > 0,
            "reorder": self.reorder > 0,
            "delay": self.delay_ms is not None and self.delay_ms[1] > 0,
            "bandwidth": self.bandwidth is not None,
            "noise": self.noise.scale > 0,
            "slow": any(self.slow.values()),
            "kill": bool(self.kill),
            "partition": bool(self.partition),
        }
        return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


# --- What must hold between values ------------------------------------------------------------------------------------


def fault_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong under `faults:` beyond single values. Values of a wrong type are passed over.

    Args:
        values: keys and values of a cluster file, which may be unchecked.
    """
    faults, nodes = values.get("faults"), values.get("nodes")
    if not isinstance(faults, Mapping):
        return
    names = [
        node["name"]
        for node in (nodes if isinstance(nodes, (list, tuple)) else ())
        if isinstance(node, Mapping) and isinstance(node.get("name"), str)
    ]
    slow = faults.get("slow")
    if isinstance(slow, Mapping):
        for name, pause_ms in slow.items():
            yield from _unknown(name, names, ("faults", "slow", name), at_key=True)
            if not _is_duration(pause_ms):
                text = f"expected milliseconds from 0 to {_LONGEST_MS}, got {shown(pause_ms)}"
                yield Problem(("faults", "slow", name), text)
    yield from _kill_problems(_entries(faults, "kill"), names)
    for index, partition in _entries(faults, "partition"):
        yield from _partition_problems(partition, names, ("faults", "partition", index))


def _entries(faults: Mapping[str, Any], key: str) -> list[tuple[int, Mapping[str, Any]]]:
    entries = faults.get(key)
    if not isinstance(entries, (list, tuple)):
        return []
    return [(index, entry) for index, entry in enumerate(entries) if isinstance(entry, Mapping)]


def _kill_problems(kills: list[tuple[int, Mapping[str, Any]]], names: Sequence[str]) -> Iterator[Problem]:
    seen: dict[tuple[object, object], int] = {}
    for index, kill in kills:
        place, node, step = ("faults", "kill", index), kill.get("node"), kill.get("step")
        if not isinstance(node, str):
            continue
        yield from _unknown(node, names, (*place, "node"))
        first = seen.setdefault((node, step), index)
        if first != index and type(step) is int:
            yield Problem(place, f"faults.kill[{first}] kills {node} in step {step} too; a node dies once in a step")


def _partition_problems(
    partition: Mapping[str, Any], names: Sequence[str], place: tuple[str | int, ...]
) -> Iterator[Problem]:
    groups, first, last = partition.get("groups"), partition.get("from_step"), partition.get("to_step")
    if isinstance(groups, (list, tuple)):
        place_of_groups = (*place, "groups")
        if len(groups) < 2:
            yield Problem(place_of_groups, f"expected at least 2 groups, such as [[w1, w2], [w3]], got {len(groups)}")
        seen: dict[str, int] = {}
        for index, group in enumerate(groups):
            if not isinstance(group, (list, tuple)):
                continue
            if not group:
                yield Problem((*place_of_groups, index), "expected the names of nodes, got an empty group")
            for position, name in enumerate(group):
                if not isinstance(name, str):
                    continue
                here = (*place_of_groups, index, position)
                yield from _unknown(name, names, here)
                if name in seen:
                    yield Problem(here, f'"{name}" is in groups[{seen[name]}] already; a node belongs to one group')
                seen.setdefault(name, index)
    if type(first) is int and type(last) is int and first > last:
        yield Problem((*place, "to_step"), f"expected from_step <= to_step, got {first} and {last}")


def _unknown(
    name: object, names: Sequence[str], place: tuple[str | int, ...], *, at_key: bool = False
) -> Iterator[Problem]:
    """A problem for a name that no node has; none when the names of the nodes are not known themselves."""
    if not names or name in names:
        return
    near = get_close_matches(str(name), names, n=1)
    hint = f'did you mean "{near[0]}"?' if near else "write the name of one under nodes"
    yield Problem(place, f"expected the name of a node, got {shown(name)}; {hint}", at_key=at_key)


# --- In words ---------------------------------------------------------------------------------------------------------


def faults_in_words(options: FaultOptions) -> str:
    """What will be injected, for `dpwa check`; empty for nothing."""
    return "; ".join(_words(options)) if options.kinds else ""


def _words(options: FaultOptions) -> Iterator[str]:
    for share, what in (
        (options.drop, "of all messages are lost"),
        (options.duplicate, "arrive twice"),
        (options.reorder, "of all proposals arrive after the next one"),
    ):
        if share > 0:
            yield f"{100 * share:g} % {what}"
    if options.delay_ms is not None and options.delay_ms[1] > 0:
        shortest, longest = options.delay_ms
        yield f"messages are late by {shortest:g} ms" + (f" to {longest:g} ms" if shortest < longest else "")
    if options.bandwidth is not None:
        yield f"a pull receives at most {options.bandwidth}"
    if options.noise.scale > 0:
        of_what = "times the root mean square of what comes" if options.noise.relative else "in absolute terms"
        yield f"received parameters get Gaussian noise of {options.noise.scale:g} {of_what}"
    for name, pause_ms in options.slow.items():
        if pause_ms > 0:
            yield f"each step of {name} takes {pause_ms:g} ms longer"
    for kill in options.kill:
        yield f"{kill.node} is killed in its step {kill.step}, once in a run that has a run folder"
    for partition in options.partition:
        groups = " | ".join(" ".join(group) for group in partition.groups)
        yield f"from step {partition.from_step} to {partition.to_step} these groups are cut off: {groups}"
