"""Numbers from 0 to 1 that follow the clock: how likely an exchange is, or how much of the peer it takes.

A key that takes a `ShareOverTime` holds a plain number, which stays as it is, or a mapping with the word of a schedule:

    pull_probability: {schedule: cosine, start: 1, end: 0.1, over: 10000}

With t the clock of a node's model, in updates, and s = min(t / over, 1):

    linear    start + (end - start) * s
    cosine    start + (end - start) * (1 - cos(pi * s)) / 2
    late      before, while t < begin; then value

The clock and not the time, because the time says nothing about the training. The clock and not a node's own steps,
because it is blended like the model: a slow node follows the schedule of the others, and so does one that joins late.

Must not know: which keys take a schedule, files. Runs in: any thread; a schedule never changes, and its value depends
on nothing but the clock.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError, WithJsonSchema, WrapValidator

from dpwa.options import Options, Problem, refuse

__all__ = [
    "CosineSchedule",
    "LateSchedule",
    "LinearSchedule",
    "Schedule",
    "ShareOverTime",
    "highest",
    "in_words",
    "value_at",
]


class Schedule(Options, ABC):
    """A number from 0 to 1 as a function of the clock."""

    schedule: str
    """Its word in the cluster file."""

    @abstractmethod
    def at(self, clock: float) -> float:
        """The number at a clock, in updates. A clock that is negative or NaN counts as 0."""

    @property
    @abstractmethod
    def highest(self) -> float:
        """The largest number that it ever gives."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it does, to stand behind "with probability" and the like."""


class _Gradual(Schedule):
    """From one number to another, where it stays.

    Attributes:
        start: the number at clock 0, from 0 to 1.
        end: the number from the clock `over` on, from 0 to 1.
        over: updates from the one to the other, above 0.
    """

    start: float = Field(ge=0, le=1, description="The value at clock 0.")
    end: float = Field(ge=0, le=1, description="The value in the end.")
    over: float = Field(gt=0, description="Clock, in updates, at which the end is reached.")

    @abstractmethod
    def _part(self, share: float) -> float:
        """How much of the way from start to end is behind, by the share of the updates, both from 0 to 1."""

    def at(self, clock: float) -> float:
        """See `Schedule.at`."""
        share = min(clock / self.over, 1.0) if clock > 0 else 0.0
        if share == 1.0:
            return self.end
        value = self.start + (self.end - self.start) * self._part(share)
        return min(max(value, min(self.start, self.end)), self.highest)  # whatever the rounding

    @property
    def highest(self) -> float:
        """See `Schedule.highest`."""
        return max(self.start, self.end)

    @property
    def words(self) -> str:
        """See `Schedule.words`."""
        way = "rising" if self.end > self.start else "falling" if self.end < self.start else "staying"
        return f"{self.start:g}, {way} {self._shape} to {self.end:g} at update {_counted(self.over)}"

    @property
    @abstractmethod
    def _shape(self) -> str:
        """The way between the two, in words."""


class LinearSchedule(_Gradual):
    """In a straight line: start + (end - start) * min(clock / over, 1)."""

    schedule: Literal["linear"] = "linear"

    def _part(self, share: float) -> float:
        return share

    @property
    def _shape(self) -> str:
        return "in a straight line"


class CosineSchedule(_Gradual):
    """Along half a cosine: start + (end - start) * (1 - cos(pi * min(clock / over, 1))) / 2."""

    schedule: Literal["cosine"] = "cosine"

    def _part(self, share: float) -> float:
        return (1.0 - math.cos(math.pi * share)) / 2.0

    @property
    def _shape(self) -> str:
        return "along half a cosine"


class LateSchedule(Schedule):
    """One number before a clock, and another from there on.

    Attributes:
        before: the number before, from 0 to 1.
        begin: clock at which it changes, in updates, above 0.
        value: the number from there on, from 0 to 1.
    """

    schedule: Literal["late"] = "late"
    before: float = Field(0.0, ge=0, le=1, description="The value before.")
    begin: float = Field(gt=0, description="Clock, in updates, from which on the value holds.")
    value: float = Field(ge=0, le=1, description="The value from there on.")

    def at(self, clock: float) -> float:
        """See `Schedule.at`."""
        return self.value if clock >= self.begin else self.before

    @property
    def highest(self) -> float:
        """See `Schedule.highest`."""
        return max(self.before, self.value)

    @property
    def words(self) -> str:
        """See `Schedule.words`."""
        return f"{self.before:g}, and {self.value:g} from update {_counted(self.begin)} on"


def value_at(share: float | Schedule, clock: float) -> float:
    """The number at a clock; a plain number is the same at every clock."""
    return share.at(clock) if isinstance(share, Schedule) else share


def highest(share: float | Schedule) -> float:
    """The largest number that it ever is."""
    return share.highest if isinstance(share, Schedule) else share


def in_words(share: float | Schedule) -> str:
    """The number, or what its schedule does."""
    return share.words if isinstance(share, Schedule) else f"{share:g}"


# --- In a file --------------------------------------------------------------------------------------------------------

_KINDS: Mapping[str, type[Schedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule, "late": LateSchedule}
_EXAMPLE = "{schedule: linear, start: 1, end: 0.1, over: 10000}"
_COUNTS = ("over", "begin")
_NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)])


def _checked(value: object, _handler: object) -> float | Schedule:
    """The number or the schedule that a file holds; what is wrong with a schedule is told in its own words."""
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, Mapping):
        return _NUMBER.validate_python(value)
    word = value.get("schedule")
    if not (isinstance(word, str) and word in _KINDS):
        refuse([_unknown(value)])
    kind = _KINDS[str(word)]
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        refuse(_problems(error, kind))
        raise


def _unknown(value: Mapping[str, Any]) -> Problem:
    """What is wrong with a mapping that names no schedule."""
    if "schedule" not in value:
        return Problem(
            (), f"expected a number from 0 to 1 or a schedule, such as {_EXAMPLE}: the key schedule is missing"
        )
    word = value["schedule"]
    if word == "constant":
        return Problem(("schedule",), "a constant is no schedule: write the number by itself, without the braces")
    near = get_close_matches(str(word), _KINDS, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"for example {_EXAMPLE}"
    return Problem(("schedule",), f"expected one of {', '.join(_KINDS)}, got {_shown(word)}; {hint}")


def _problems(error: ValidationError, kind: type[Schedule]) -> Iterator[Problem]:
    """What pydantic found wrong with the options of a schedule."""
    keys = [key for key in kind.model_fields if key != "schedule"]
    word = kind.model_fields["schedule"].default
    for item in error.errors(include_url=False):
        key = str(item["loc"][0])
        expected = "a number of updates above 0" if key in _COUNTS else "a number from 0 to 1"
        if item["type"] == "extra_forbidden":
            near = get_close_matches(key, keys, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"schedule {word} takes {', '.join(keys)}"
            yield Problem((key,), f"unknown key, {hint}", at_key=True)
        elif item["type"] == "missing":
            yield Problem((key,), f"missing; schedule {word} needs it: expected {expected}")
        else:
            yield Problem((key,), f"expected {expected}, got {_shown(item['input'])}")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def _counted(updates: float) -> str:
    """A number of updates as people write it: 10,000."""
    return f"{updates:,.0f}" if updates == int(updates) else f"{updates:,g}"


def _json_schema(kind: type[Schedule]) -> dict[str, Any]:
    """Of a schedule in a file, where nothing but its word says which one it is."""
    schema = kind.model_json_schema()
    return {**schema, "required": ["schedule", *schema["required"]]}


ShareOverTime: TypeAlias = Annotated[
    float | LinearSchedule | CosineSchedule | LateSchedule,
    WrapValidator(_checked),
    WithJsonSchema({"anyOf": [_NUMBER.json_schema(), *map(_json_schema, _KINDS.values())]}),
]
"""The type of a key: a number from 0 to 1, or a schedule of such numbers."""
