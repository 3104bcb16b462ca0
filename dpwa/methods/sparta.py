"""SPARTA: each exchange carries a small slice of the parameters, and in time every parameter has its turn.

Beton et al., "Improving the efficiency of distributed training using sparse parameter averaging", 2025,
openreview stFPf3gzq1. The slices are pulled or exchanged in pairs; the promise is that of the method that does so.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dpwa.methods.adpsgd import ADPSGD
from dpwa.methods.base import Method
from dpwa.methods.pull import Pull
from dpwa.options import Options
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["Sparta", "SpartaInPairs", "SpartaOptions"]


class SpartaOptions(Options):
    """Options of the method sparta."""

    base: Literal["pull", "adpsgd"] = Field("pull", description="The method that exchanges the slices.")
    fraction: float = Field(0.005, gt=0, le=1, description="Share of the parameters in an exchange.")

    def arguments(self) -> dict[str, Any]:
        """See `Options.arguments`; `base` has chosen the class."""
        return {"fraction": self.fraction}


class Sparta(Pull):
    """Slices are pulled.

    Args:
        links, count, probability: see `Method`.
        fraction: share of the parameters in an exchange, above 0 to 1.
    """

    name = "sparta"
    summary = "pull a small share of the parameters each time"
    description = "like {options.base} {often}, with {options.fraction:g} of the parameters at a time"
    options = SpartaOptions

    @classmethod
    def variant(cls, options: Options | None) -> type[Method]:
        """See `Method.variant`."""
        return SpartaInPairs if isinstance(options, SpartaOptions) and options.base == "adpsgd" else cls

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, fraction: float = 0.005) -> None:
        super().__init__(links, count, probability)
        self.fraction = fraction


class SpartaInPairs(ADPSGD):
    """Pairs exchange slices, as in AD-PSGD.

    Args: those of `Sparta`.
    """

    name = Sparta.name
    summary = Sparta.summary
    description = Sparta.description
    options = SpartaOptions

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, fraction: float = 0.005) -> None:
        super().__init__(links, count, probability)
        self.fraction = fraction
