"""Means with 95 % confidence intervals over a few seeds.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t

__all__ = ["FEWEST_FOR_INTERVAL", "Estimate", "estimate"]

FEWEST_FOR_INTERVAL = 3
"""Two values make an interval of 12.7 standard errors to either side, which says nothing that the two do not say."""


@dataclass(frozen=True)
class Estimate:
    """A number that was measured once per seed.

    Attributes:
        mean: over the seeds.
        half_width: of the 95 % confidence interval around the mean; None for fewer than `FEWEST_FOR_INTERVAL` values.
        values: one per seed.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; those that are not finite become None, because JSON cannot hold them."""
        return {
            "mean": _finite(self.mean),
            "half_width_95": None if self.half_width is None else _finite(self.half_width),
            "values": [_finite(value) for value in self.values],
        }


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval: mean ± t(0.975, n - 1) * s / sqrt(n), where s is the sample standard deviation.

    Args:
        values: one per seed, in any unit.

    Returns:
        None if there are no values. With fewer than three there is a mean without an interval.
    """
    count = len(values)
    if count == 0:
        return None
    mean = math.fsum(values) / count
    if count < FEWEST_FOR_INTERVAL:
        return Estimate(mean, None, tuple(values))
    if not all(math.isfinite(value) for value in values):
        return Estimate(mean, math.nan, tuple(values))
    half_width = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, half_width, tuple(values))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
