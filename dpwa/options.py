"""What the mappings of cluster and study files share, and what is wrong between their values.

Each mapping is a class with typed fields. Values are checked one by one first; `between` is asked once all of a
mapping's values are right, and so works on typed values. Methods and rules declare their options as such classes.

Must not know: any key, files, lines and columns. Runs in: any thread; options never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["BETWEEN", "OTHER_NAMES", "OTHER_VALUES", "Options", "Place", "Problem", "out_of_order", "refuse"]

Place: TypeAlias = tuple["str | int", ...]
"""Where a value is: the keys and indices that lead to it from the top."""

BETWEEN = "dpwa_between"
"""Type of the pydantic error that carries problems, and what was made in spite of them; see `refuse`."""

OTHER_NAMES = "x-other-names"
"""In the `json_schema_extra` of a field: what else people call this key, in small letters with underscores. Messages
about an unknown key of such a name suggest this one."""

OTHER_VALUES = "x-other-values"
"""In the `json_schema_extra` of a field: what else people call its values; a mapping from such a word to the value."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong at one place.

    Attributes:
        place: keys and indices from the top, or from the mapping that reports it.
        text: what was expected, what came, what to do.
        at_key: the key itself is wrong, not its value.
    """

    place: Place
    text: str
    at_key: bool = False


class Options(BaseModel):
    """A mapping of a file: unknown keys are refused, nothing is converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def between(self) -> Iterable[Problem]:
        """What is wrong between values that are right one by one; places are relative to this mapping."""
        return ()

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the constructor of the method or rule whose options these are."""
        return self.model_dump()

    @model_validator(mode="after")
    def _go_together(self) -> Options:
        refuse(self.between(), self)
        return self


def refuse(problems: Iterable[Problem], made: object = None) -> None:
    """For a validator of pydantic: refuse a value for these problems; does nothing if there are none.

    Args:
        problems: what is wrong, at places relative to the value.
        made: the value, where a caller may want to look for further problems.

    Raises:
        PydanticCustomError: there are problems.
    """
    found = tuple(problems)
    if found:
        text = "; ".join(problem.text for problem in found)
        raise PydanticCustomError(BETWEEN, "{text}", {"text": text, "problems": found, "made": made})


def out_of_order(options: Options, *keys: str) -> Iterator[Problem]:
    """A problem for each of the keys whose number is below that of the key before it."""
    for low_key, high_key in pairwise(keys):
        low, high = getattr(options, low_key), getattr(options, high_key)
        if low > high:
            wrong = high_key if high_key in options.model_fields_set else low_key
            yield Problem((wrong,), f"expected {low_key} <= {high_key}, got {low:g} and {high:g}")
