"""A rule for the factor with the guards around it, so that no rule and no peer can produce a factor that does harm.

Must not know: models, tensors, time, files. Runs in: any thread; `Interpolator` keeps no state between calls,
`LossSmoother` belongs to the thread that made it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from dpwa.custom_code import blamed
from dpwa.errors import ConfigError
from dpwa.interpolation.rules import DistanceInterpolation, Interpolation
from dpwa.snapshot.state import State

__all__ = ["Interpolator", "LossSmoother"]


@dataclass(frozen=True)
class Interpolator:
    """A rule with the guards around it. Whatever the rule and the peer say, the factor is safe to use.

    In this order:

    1. A peer whose loss is NaN or infinite, or whose clock is negative or not finite, gets 0: it has diverged or lies.
    2. If this node's loss is NaN or infinite, a peer with a finite loss gets `factor_max`: this model is lost. Any
       other peer gets 0, because nothing says that its model is better.
    3. The rule is asked. An answer that is no finite number becomes 0.
    4. While this node's loss is below `divergence_threshold`, the factor shrinks by loss / divergence_threshold.
    5. The factor is kept within `factor_min` and `factor_max`.

    Attributes:
        rule: the rule inside.
        divergence_threshold: loss of this node below which the factor shrinks; 0: never.
        factor_min: smallest factor for a healthy peer, 0 to 1.
        factor_max: largest factor, factor_min to 1.
    """

    rule: Interpolation
    divergence_threshold: float = 0.0
    factor_min: float = 0.0
    factor_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.factor_min <= self.factor_max <= 1:
            raise ConfigError(
                f"bounds of the factor: expected 0 <= factor_min <= factor_max <= 1, "
                f"got factor_min {self.factor_min} and factor_max {self.factor_max}"
            )
        if not (math.isfinite(self.divergence_threshold) and self.divergence_threshold >= 0):
            raise ConfigError(
                f"divergence_threshold: expected a finite number of at least 0, got {self.divergence_threshold}"
            )

    @property
    def uses_distance(self) -> bool:
        """Whether the rule wants the distance between the models, which is worth measuring only then."""
        return bool(getattr(self.rule, "uses_distance", False))

    def factor(self, own: State, peer: State, distance: float | None = None) -> float:
        """The share of the peer: 0, or a number within [factor_min, factor_max].

        Args:
            own: this node's state.
            peer: the peer's state.
            distance: ||x_peer - x_own|| / ||x_own||; a rule that uses it gets None instead of a negative number,
                NaN or infinity.

        Raises:
            ConfigError: a custom rule raised something, or answered what is no number at all.
        """
        if not (math.isfinite(peer.clock) and peer.clock >= 0) or peer.has_diverged:
            return 0.0
        if own.has_diverged:
            return 0.0 if peer.loss is None else self.factor_max
        if distance is not None and not (math.isfinite(distance) and distance >= 0):
            distance = None
        factor = self._ask_rule(own, peer, distance)
        if not math.isfinite(factor):
            return 0.0
        threshold = self.divergence_threshold
        if own.loss is not None and threshold > 0 and own.loss < threshold:
            factor *= max(own.loss, 0.0) / threshold
        return min(max(factor, self.factor_min), self.factor_max)

    def _ask_rule(self, own: State, peer: State, distance: float | None) -> float:
        """The rule's answer as a float; NaN where the numbers of the two states broke its arithmetic."""
        rule = type(self.rule)
        with blamed(
            rule,
            lambda error: (
                f"interpolation {rule.__qualname__} of module {rule.__module__}: computing the factor for {own} and "
                f"peer {peer} failed: {error}; a rule must answer a number, also while a loss is None"
            ),
        ):
            try:
                if self.uses_distance:
                    answer = cast("DistanceInterpolation", self.rule).factor(own, peer, distance)
                else:
                    answer = self.rule.factor(own, peer)
                if isinstance(answer, complex):  # for example the square root of a negative loss
                    return math.nan
                return float(answer)
            except (ArithmeticError, ValueError):
                # A peer chooses the numbers it sends. A rule that divides by them or takes their logarithm must not be
                # a way to stop this node.
                return math.nan


class LossSmoother:
    """Exponential moving average of a noisy loss, so that one easy batch does not look like a better model."""

    def __init__(self, weight: float) -> None:
        """Start with no history.

        Args:
            weight: share of the past in each new mean, 0 (off) up to but not including 1.

        Raises:
            ConfigError: the weight is outside [0, 1).
        """
        if not 0 <= weight < 1:
            raise ConfigError(f"loss_smoothing: expected a number from 0 up to but not including 1, got {weight}")
        self._weight = weight
        self._mean: float | None = None

    def update(self, loss: float) -> float:
        """Take the loss of one more step and return the smoothed loss.

        A loss that is not finite is returned as it is, so that divergence is seen at once, and is not remembered.
        """
        if not math.isfinite(loss):
            return loss
        if self._mean is None:
            self._mean = loss
        else:
            self._mean = self._weight * self._mean + (1 - self._weight) * loss
        return self._mean
