"""A controller that keeps the distance between models near a target by turning the factor of the blends.

Up to a critical distance between the models, decentralized training is as good as averaging everything at every step
(Kong et al., "Consensus Control for Decentralized Deep Learning", ICML 2021, section 3), so more averaging than that is
wasted; late in training a larger distance can even be better (DSGD-AC, arXiv 2602.02899, 2026). What is controlled here
is the relative distance of the pair that meets, ||x_peer - x_own|| / ||x_own||; over random pairs its square is on
average 2 n / (n - 1) times the mean square distance of the n models to their mean, relative to the norm.

Why this controller. Between exchanges local steps push the models apart, and an exchange with factor f takes about the
part 2 f off the squared distance. So in logarithms a change of f moves the distance by -1/2 of it, with a lag of
1 / (2 f) exchanges: the less is averaged, the slower everything reacts. A proportional-integral controller on
log(distance / target) with an integral of 2 f times the proportional part cancels exactly this lag, and the error
then decays like (1 - gain * f) per exchange, without overshoot, for every gain up to 1.

Must not know: models, states, rules, threads. Runs in: any thread, one call at a time.
"""

from __future__ import annotations

import math

from dpwa.errors import ConfigError, number_problems

__all__ = ["ConsensusControl"]

_FLOOR = math.log(0.01)  # smallest factor, relative to `value`; with less, the models would all but part for good
_LARGEST_ERROR = math.log(4)  # what one distance may ask for; a model from far away is an outlier, not a trend
_SMOOTHING = 0.5  # share of the past in the mean of the errors; peers differ, and a distance is one sample of them


class ConsensusControl:
    """Turns measured distances into a factor.

    Args:
        target: relative distance to keep, above 0.
        late_target: relative distance to keep late in training; None: the same throughout.
        late_clock: clock at which the target begins to move, in updates; it arrives at twice that clock.
        gain: how strongly an error moves the factor, above 0 and up to 1.
        value: the largest factor and the one to begin with, above 0 and up to 1; the smallest is a hundredth of it.

    Raises:
        ConfigError: an option is out of its limits, or one of late_target and late_clock misses the other.
    """

    def __init__(
        self,
        *,
        target: float = 0.05,
        late_target: float | None = None,
        late_clock: float | None = None,
        gain: float = 0.5,
        value: float = 0.5,
    ) -> None:
        problems = number_problems("target", target, above=0)
        if late_target is not None:
            problems += number_problems("late_target", late_target, above=0)
        if late_clock is not None:
            problems += number_problems("late_clock", late_clock, above=0)
        if (late_target is None) != (late_clock is None):
            problems.append("late_target and late_clock: expected both or neither, got one of them")
        problems += number_problems("gain", gain, above=0, most=1)
        problems += number_problems("value", value, above=0, most=1)
        if problems:
            raise ConfigError(problems)
        self._target = float(target)
        self._late = None if late_target is None or late_clock is None else (float(late_target), float(late_clock))
        self._gain = float(gain)
        self._value = float(value)
        self._integral = 0.0  # logarithm of the factor's part of `value`, kept from _FLOOR to 0
        self._error = 0.0  # smoothed logarithm of distance / target
        self._factor = self._value

    @property
    def factor(self) -> float:
        """The present factor, from a hundredth of `value` to `value`."""
        return self._factor

    def target_at(self, clock: float) -> float:
        """The distance to keep at a clock.

        Args:
            clock: of this node's model, in updates.
        """
        if self._late is None:
            return self._target
        late_target, late_clock = self._late
        if not clock > late_clock:  # also for NaN
            return self._target
        share = min((clock - late_clock) / late_clock, 1.0)
        return (1 - share) * self._target + share * late_target

    def update(self, distance: float | None, clock: float) -> float:
        """Take one measured distance and return the factor for the exchange that it was measured in.

        Args:
            distance: ||x_peer - x_own|| / ||x_own||. None, NaN, infinity (as with a norm of 0) or a negative
                number is no measurement: the present factor stays.
            clock: of this node's model, in updates.
        """
        if distance is None or not (math.isfinite(distance) and distance >= 0):
            return self._factor
        target = self.target_at(clock)
        error = _kept(math.log(distance / target), _LARGEST_ERROR) if distance / target > 0 else -_LARGEST_ERROR
        self._error = _SMOOTHING * self._error + (1 - _SMOOTHING) * error
        # Both parts are bounded, so nothing winds up while a target is out of reach: the first distance on the other
        # side of it turns the factor back.
        integral = self._integral + 2 * self._factor * self._gain * self._error
        self._integral = min(max(integral, _FLOOR), 0.0)
        total = min(max(self._integral + self._gain * self._error, _FLOOR), 0.0)
        self._factor = self._value * math.exp(total)
        return self._factor


def _kept(number: float, limit: float) -> float:
    return min(max(number, -limit), limit)
