"""The keys of a study file, besides the settings of trials.

Runs in: any thread; nothing here ever changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from dpwa.config.problems import OWN_TEXT
from dpwa.config.sections import Name
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.lab.study.own_code import known_or_own
from dpwa.lab.study.settings import CommonSettings

__all__ = ["RowOptions", "StudyOptions"]

_MOST_SEEDS = 100


def _checked_seeds(value: Any) -> Any:
    if type(value) is int and 1 <= value <= _MOST_SEEDS:
        return tuple(range(value))
    is_list = isinstance(value, (list, tuple)) and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
    if is_list and 1 <= len(value) == len(set(value)) <= _MOST_SEEDS:
        return tuple(value)
    raise PydanticCustomError(
        OWN_TEXT, "expected a number of seeds from 1 to 100, or a list of different whole numbers of at least 0"
    )


StrategyName = Annotated[str, known_or_own(STRATEGIES, "module:Class")]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_checked_seeds), Field(strict=False)]
Values = Annotated[tuple[JsonValue, ...], Field(strict=False, min_length=1)]
Labels = Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
Number = Annotated[float, Field(ge=0)]


class RowOptions(CommonSettings):
    """One entry of `strategies`; a single word is the strategy."""

    name: str | None = Field(
        None, min_length=1, max_length=100, description="Label of the row; the strategy by default."
    )
    strategy: StrategyName = Field(description="How the processes train together; see `dpwa lab list --strategies`.")
    literature: float | None = Field(None, ge=0, description="What the literature reports for this row.")
    literature_recipe: Literal["same", "other"] | None = Field(
        None, description="Whether it trained as this row does; null: as the study says."
    )

    compare_with: str | None = Field(
        None,
        description="Label or entry of the row from which the report shows this one's difference; null: the study's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: object) -> object:
        return {"strategy": value} if isinstance(value, str) else value


class StudyOptions(CommonSettings):
    """A study file. Settings at the top hold for every row that uses them."""

    study: Name = Field(description="Name of the study and of its run folder.")
    title: str = Field("", description="Heading of the report.")
    question: str = Field("", description="What the study asks, for people.")
    strategies: tuple[RowOptions, ...] = Field(
        strict=False, min_length=1, max_length=200, description="The rows: strategies, each with its own settings."
    )
    grid: dict[str, Values] = Field(
        {}, description="Settings, such as cluster.pull_probability, with lists of values: one row for each."
    )
    seeds: Seeds = Field((0,), description="How many trials of each row, or a list of their seeds.")
    literature: dict[str, Number] = Field({}, description="What the literature reports, by the label of the row.")
    literature_unit: Literal["%", "s"] = Field("%", description="Unit of the literature's numbers.")
    literature_recipe: Literal["same", "other"] = Field(
        "same",
        description="Whether the literature trained as these rows do; other: its numbers are shown, not compared.",
    )
    compare_with: str = Field(
        "", description="Label or entry of the row from which the report shows the others' differences."
    )
    same_updates: tuple[Labels, ...] = Field(
        (),
        strict=False,
        description="Groups of rows that make the same updates: by how much they differ is the study's noise.",
    )
    takes: str = Field("", max_length=40, description="How long its trials take, for people and `dpwa lab list`.")
    target_accuracy: float | None = Field(
        None, gt=0, le=100, description="Accuracy in per cent; the report shows the time until it is reached."
    )
