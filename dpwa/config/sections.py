"""The smaller mappings of a cluster file: a node, the options of the rules of interpolation, flow control.

Here is also what all mappings of it share, and which single values are names, hosts and data rates. `methods.options`,
`topology.options` and `fault_options` have the mappings of their subjects.

Must not know: the file as a whole, how options work. Runs in: any thread; a section never changes.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from dpwa.config import hosts
from dpwa.config.data_rate import DATA_RATE_PATTERN, bytes_per_s, expected_rate, hint_for_rate
from dpwa.config.problems import OWN_TEXT

__all__ = [
    "ConsensusOptions",
    "ConstantOptions",
    "DataRate",
    "FlowControlOptions",
    "Host",
    "Name",
    "NoOptions",
    "NodeConfig",
    "Options",
    "StalenessOptions",
]


def _checked_host(text: str) -> str:
    expected = hosts.problem_with(text)
    if expected is not None:
        raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected})
    return text


_NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"  # also the name of a folder, hence no leading dot


def _checked_name(text: str) -> str:
    if not re.fullmatch(_NAME_PATTERN, text):
        raise PydanticCustomError(
            OWN_TEXT, "expected 1 to 64 letters, digits, '.', '_' or '-', and neither '.' nor '-' at the beginning"
        )
    return text


def _checked_rate(value: object) -> object:
    if value is None or (isinstance(value, str) and bytes_per_s(value) is not None):
        return value
    raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected_rate(), "hint": hint_for_rate(value)})


Name = Annotated[str, AfterValidator(_checked_name), Field(json_schema_extra={"pattern": f"^{_NAME_PATTERN}$"})]
Host = Annotated[str, AfterValidator(_checked_host)]
DataRate = Annotated[
    str | None, BeforeValidator(_checked_rate), Field(json_schema_extra={"pattern": f"^{DATA_RATE_PATTERN}$"})
]


class Options(BaseModel):
    """What the mappings of cluster and study files share: nothing unknown, nothing converted, nothing changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class NodeConfig(Options):
    """One node: its name and where its peers reach it."""

    name: Name = Field(description="Name of the node, unique in the cluster; also the name of its folder in a run.")
    host: Host = Field("localhost", description="Host name or IPv4 address at which the other nodes reach this one.")
    port: int = Field(ge=1, le=65535, description="TCP port on which the node serves its snapshots.")

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"


class ConstantOptions(Options):
    """What the rule constant can be told."""

    value: float = Field(0.5, ge=0, le=1, description="The factor of every exchange.")


class StalenessOptions(Options):
    """What the rule staleness can be told."""

    value: float = Field(0.5, ge=0, le=1, description="The factor for a peer that is not behind.")
    half_life: float = Field(10.0, gt=0, description="Updates that a peer must be behind to weigh half as much.")


class ConsensusOptions(Options):
    """What the rule consensus can be told."""

    target: float = Field(0.05, gt=0, description="Distance to keep between models, relative to the own model's norm.")
    late_target: float | None = Field(
        None, gt=0, description="Distance to keep late in training; null is the same all along."
    )
    late_clock: float | None = Field(
        None, gt=0, description="Clock at which the target begins to move; it arrives at twice that clock."
    )
    gain: float = Field(0.5, gt=0, le=1, description="How strongly a distance off the target moves the factor.")
    value: float = Field(0.5, gt=0, le=1, description="The largest factor, and the first.")


class NoOptions(Options):
    """Options of a rule that has none."""


class FlowControlOptions(Options):
    """How the answers of a peer decide how often it is asked."""

    score_min: int = Field(10, ge=1, description="Lowest score; above 0, so that no peer is ever forgotten.")
    score_max: int = Field(1000, ge=1, description="Highest score.")
    score_start: int = Field(500, ge=1, description="Score of a peer that has not been asked yet.")
    success: int = Field(10, ge=0, description="What one complete answer adds to the score.")
    failure: int = Field(100, ge=0, description="What one timeout or broken answer takes from the score.")
    probe_s: float = Field(
        1.0, gt=0, le=3600, description="Seconds after a failure before the peer is asked again; doubles each time."
    )
    probe_max_s: float = Field(30.0, gt=0, le=3600, description="Upper limit in seconds of that doubling.")
