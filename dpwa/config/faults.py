"""What a cluster file can say under `faults:`, what must hold in it, and what it means in words.

Faults are for experiments: what becomes of training when links and nodes are bad. docs/faults.md describes each.

Must not know: how a fault is made. Runs in: any thread; options never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from dpwa.config.data_rate import bytes_per_s
from dpwa.config.problems import OWN_TEXT
from dpwa.config.sections import DataRate
from dpwa.options import Options, Place, Problem

__all__ = [
    "FaultOptions",
    "KillOptions",
    "LieOptions",
    "NoiseOptions",
    "PartitionOptions",
    "fault_problems",
    "faults_in_words",
]

_LONGEST_MS = 600_000
_EXPECTED_DELAY = f"expected milliseconds from 0 to {_LONGEST_MS}: a number, or two in order, such as [5, 50]"
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


def _checked_pause(value: object) -> object:
    if _is_duration(value):
        return value
    raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": f"expected milliseconds from 0 to {_LONGEST_MS}"})


_Delay = Annotated[
    tuple[float, float] | None,
    BeforeValidator(_checked_delay),
    WithJsonSchema({"anyOf": [_NUMBER_SCHEMA, {"type": "array", "items": _NUMBER_SCHEMA}, {"type": "null"}]}),
]
_Pause = Annotated[float, BeforeValidator(_checked_pause), WithJsonSchema(_NUMBER_SCHEMA)]
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
    step: int = Field(ge=1, description="The step of the node in which it does so, once per run.")


class PartitionOptions(Options):
    """Groups of nodes that cannot reach each other for a while."""

    groups: Annotated[tuple[_Group, ...], Field(strict=False)] = Field(
        description="Names of the nodes of each group; a node in none reaches all."
    )
    from_step: int = Field(ge=0, description="The step of the asking node with which it begins.")
    to_step: int = Field(ge=0, description="The last such step.")

    def separates(self, asker: str, peer: str, step: int) -> bool:
        """Whether a request of `asker` to `peer` fails in this step of the asker."""
        if not self.from_step <= step <= self.to_step:
            return False
        own = {name for group in self.groups if asker in group for name in group}
        return bool(own) and peer not in own and any(peer in group for group in self.groups)


class LieOptions(Options):
    """A node that gives and says what is not so, to everybody who asks it."""

    node: str = Field(description="Name of the node.")
    model: float | Literal["replay"] | None = Field(
        None,
        description="A number that all parameters have, or replay: those that the asker got of this node first, again "
        "and again.",
    )
    clock: float | None = Field(None, ge=0, le=1e18, description="What it says of its clock.")
    loss: float | None = Field(None, description="What it says of its loss.")
    from_step: int = Field(0, ge=0, description="The step of the asking node with which it begins.")


class FaultOptions(Options):
    """Faults to inject, for experiments; without any, nothing is done and nothing is slower."""

    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="Seed of the faults; each node draws random numbers of its own."
    )
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
    slow: dict[str, _Pause] = Field({}, description="Milliseconds of pause in every step of a node, by its name.")
    kill: Annotated[tuple[KillOptions, ...], Field(strict=False)] = Field(
        (), description="Nodes that kill themselves in a step, once per run."
    )
    partition: Annotated[tuple[PartitionOptions, ...], Field(strict=False)] = Field(
        (), description="Groups of nodes that cannot reach each other for a while."
    )
    lies: Annotated[tuple[LieOptions, ...], Field(strict=False)] = Field(
        (), description="Nodes that give and say what is not so."
    )

    steered: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether `dpwa chaos` may cut nodes off while they run, by a file in the run folder.",
    )

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Most bytes per second that a pull receives; None: no limit."""
        return None if self.bandwidth is None else bytes_per_s(self.bandwidth)

    @property
    def delay_s(self) -> tuple[float, float] | None:
        """The shortest and longest delay in seconds; None: no delay."""
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
            "partition": bool(self.partition) or self.steered,
            "lies": bool(self.lies),
        }
        return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


# --- Between values ---------------------------------------------------------------------------------------------------


def fault_problems(faults: FaultOptions, names: Sequence[str]) -> Iterator[Problem]:
    """What is wrong under `faults:` beyond single values.

    Args:
        faults: the options.
        names: of the nodes.
    """
    for name in faults.slow:
        yield from _unknown(name, names, ("faults", "slow", name), at_key=True)
    seen: dict[tuple[str, int], int] = {}
    for index, kill in enumerate(faults.kill):
        yield from _unknown(kill.node, names, ("faults", "kill", index, "node"))
        first = seen.setdefault((kill.node, kill.step), index)
        if first != index:
            text = f"faults.kill[{first}] kills {kill.node} in step {kill.step} too; a node dies once in a step"
            yield Problem(("faults", "kill", index), text)
    for index, partition in enumerate(faults.partition):
        yield from _partition_problems(partition, names, ("faults", "partition", index))
    yield from _lie_problems(faults.lies, names)


def _lie_problems(lies: Sequence[LieOptions], names: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, lie in enumerate(lies):
        yield from _unknown(lie.node, names, ("faults", "lies", index, "node"))
        if lie.node in seen:
            yield Problem(("faults", "lies", index), f"{lie.node} lies already; put all its lies into one entry")
        seen.add(lie.node)
        if lie.model is None and lie.clock is None and lie.loss is None:
            yield Problem(("faults", "lies", index), "expected a lie: one or more of model, clock and loss")


def _partition_problems(partition: PartitionOptions, names: Sequence[str], place: Place) -> Iterator[Problem]:
    groups, first, last = partition.groups, partition.from_step, partition.to_step
    if len(groups) < 2:
        text = f"expected at least 2 groups, such as [[w1, w2], [w3]], got {len(groups)}"
        yield Problem((*place, "groups"), text)
    seen: dict[str, int] = {}
    for index, group in enumerate(groups):
        if not group:
            yield Problem((*place, "groups", index), "expected the names of nodes, got an empty group")
        for position, name in enumerate(group):
            here = (*place, "groups", index, position)
            yield from _unknown(name, names, here)
            if name in seen:
                yield Problem(here, f'"{name}" is in groups[{seen[name]}] already; a node belongs to one group')
            seen.setdefault(name, index)
    if first > last:
        yield Problem((*place, "to_step"), f"expected from_step <= to_step, got {first} and {last}")


def _unknown(name: str, names: Sequence[str], place: Place, *, at_key: bool = False) -> Iterator[Problem]:
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "write the name of one under nodes"
        yield Problem(place, f'expected the name of a node, got "{name}"; {hint}', at_key=at_key)


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
    yield from _partitions_in_words(options)
    for lie in options.lies:
        model = [] if lie.model is None else ["an old model" if lie.model == "replay" else f"a model of {lie.model:g}"]
        words = [
            f"a {name} of {value:g}" for name, value in (("clock", lie.clock), ("loss", lie.loss)) if value is not None
        ]
        yield f"from step {lie.from_step} {lie.node} gives {', '.join([*model, *words])}"


def _partitions_in_words(options: FaultOptions) -> Iterator[str]:
    for partition in options.partition:
        groups = " | ".join(" ".join(group) for group in partition.groups)
        yield f"from step {partition.from_step} to {partition.to_step} these groups are cut off: {groups}"
    if options.steered:
        yield "`dpwa chaos` may cut nodes off while they run"
