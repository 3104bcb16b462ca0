"""What a cluster file can say of the averaging method.

Must not know: nodes, models, how methods work. Runs in: any thread; options never change.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpwa.config.sections import Options

__all__ = ["DPSGDOptions", "ElasticOptions", "NoLoCoOptions", "OuterOptions", "SGPOptions", "SpartaOptions"]


class SGPOptions(Options):
    """What the method sgp can be told."""

    debias: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether a training step counts by 1 / weight; false saves a pass over the model.",
    )
    least_weight: float = Field(
        0.5, gt=0, le=1, description="The weight that a node counts as having at least; 0.5: no step more than doubles."
    )


class ElasticOptions(Options):
    """What the method elastic can be told."""

    alpha: float = Field(0.25, gt=0, le=0.5, description="Share of the difference that each side goes; 0.5 meets.")


class DPSGDOptions(Options):
    """What the method dpsgd can be told."""

    every: int = Field(1, ge=1, le=1_000_000, description="Training steps in a round.")
    deadline_ms: int = Field(
        1000, ge=1, le=600_000, description="Milliseconds that a step may wait for the neighbours of its round."
    )


class NoLoCoOptions(Options):
    """What the method noloco can be told."""

    every: int = Field(50, ge=1, le=1_000_000, description="H: local steps between two outer steps.")
    beta: float = Field(0.7, gt=0, le=2, description="How much of the mean progress the anchor goes.")
    gamma: float = Field(0.7, ge=0, lt=2, description="How much the anchors of a pair pull at each other.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Share of the last outer step in the next.")
    window: int = Field(2, ge=0, le=1_000_000, description="Outer steps that a partner may be ahead or behind.")


class SpartaOptions(Options):
    """What the method sparta can be told."""

    base: Literal["pull", "adpsgd"] = Field("pull", description="The method that exchanges the slices.")
    fraction: float = Field(0.005, gt=0, le=1, description="Share of the parameters in an exchange.")


class OuterOptions(Options):
    """Outer momentum on top of the method, in the way of DiLoCo."""

    every: int | None = Field(
        None, ge=1, le=1_000_000, description="H: steps between two outer steps; null is no outer momentum."
    )
    learning_rate: float = Field(0.7, gt=0, le=2, description="How much of the way the anchor goes.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last outer step in the next.")
    nesterov: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether the outer step looks ahead by one momentum.",
    )
