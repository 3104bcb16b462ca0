"""Means with their 95 % intervals over a few seeds.

Must not know: what is measured. Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Estimate", "estimate", "student_quantile"]


@dataclass(frozen=True)
class Estimate:
    """A number that was measured once per seed.

    Attributes:
        mean: over the seeds.
        half_width: of the 95 % interval around the mean; None where there is one value only.
        values: one per seed.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; those that are not finite become None, as JSON has no word for them."""
        return {
            "mean": _finite(self.mean),
            "half_width_95": None if self.half_width is None else _finite(self.half_width),
            "values": [_finite(value) for value in self.values],
        }


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval: mean ± t(0.975, n - 1) * s / sqrt(n), with s the standard deviation of the sample.

    Args:
        values: one per seed, in any unit.

    Returns:
        None if there are no values.
    """
    count = len(values)
    if count == 0:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, tuple(values))
    if not all(math.isfinite(value) for value in values):
        return Estimate(mean, math.nan, tuple(values))
    half_width = student_quantile(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, half_width, tuple(values))


def student_quantile(probability: float, degrees: int) -> float:
    """The number below which a variable of Student's t distribution stays with a given probability.

    Args:
        probability: more than 0.5 and less than 1.
        degrees: of freedom, at least 1.

    Raises:
        ValueError: an argument out of its range.
    """
    if not 0.5 < probability < 1 or degrees < 1:
        raise ValueError(f"expected 0.5 < probability < 1 and degrees >= 1, got {probability} and {degrees}")
    within = 2 * probability - 1
    low, high = 0.0, 1.0
    while _within(high, degrees) < within:
        high *= 2
    for _ in range(80):  # halvings: more than a float has bits
        middle = (low + high) / 2
        if _within(middle, degrees) < within:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """Probability of -t..t: finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    is_odd = degrees % 2 == 1
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for power in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
