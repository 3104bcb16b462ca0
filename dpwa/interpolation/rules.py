"""The rules for the factor, and what they look at.

A rule is a small class with a method `factor(own, peer)` that looks at two states and answers the share of the peer,
0 (keep mine) to 1 (take the peer's). `interpolation` has their names and the guards around them.

Must not know: models, tensors, sockets, threads, time, files, the config. Runs in: any thread; only `Consensus` keeps
state between calls: it belongs to one node and is called by one thread at a time.
"""

from __future__ import annotations

import math
from typing import Protocol

from dpwa.errors import ConfigError, number_problems
from dpwa.interpolation.consensus import ConsensusControl
from dpwa.snapshot.state import State

__all__ = ["Clock", "Consensus", "Constant", "DistanceInterpolation", "Interpolation", "Loss", "Staleness"]


class Interpolation(Protocol):
    """A rule for the factor."""

    def factor(self, own: State, peer: State) -> float:
        """The share of the peer in the blend, 0 (keep mine) to 1 (take the peer's)."""
        ...


class DistanceInterpolation(Protocol):
    """A rule that is also told how far the two models are apart; it has the class attribute `uses_distance = True`."""

    uses_distance: bool

    def factor(self, own: State, peer: State, distance: float | None = None) -> float:
        """The share of the peer in the blend, 0 (keep mine) to 1 (take the peer's).

        Args:
            own: this node's state.
            peer: the peer's state.
            distance: ||x_peer - x_own|| / ||x_own|| over the parameters that were pulled; None where it is unknown.
        """
        ...


class Constant:
    """Always the same share of the peer."""

    def __init__(self, value: float = 0.5) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"value of interpolation constant: expected a number from 0 to 1, got {value!r}")
        self.value = float(value)

    def factor(self, own: State, peer: State) -> float:  # noqa: ARG002 - the states do not matter to this rule
        """The configured value."""
        return self.value


class Clock:
    """An older model, one with more updates in it, weighs more: peer_clock / (clock + peer_clock)."""

    def factor(self, own: State, peer: State) -> float:
        """The peer's part of the two clocks together."""
        return _part(peer.clock, own.clock)


class Loss:
    """The model with the lower loss weighs more: loss / (loss + peer_loss).

    Losses below zero count as zero, because the formula has no meaning for them. With a loss unknown: 0.5.
    """

    def factor(self, own: State, peer: State) -> float:
        """The own part of the two losses together."""
        if own.loss is None or peer.loss is None:
            return 0.5
        return _part(max(own.loss, 0.0), max(peer.loss, 0.0))


class Staleness:
    """A peer that is behind weighs less, half as much for each `half_life` updates: value * 2^(-age / half_life).

    The age is own clock - peer clock, and 0 for a peer that is ahead. The idea is that of a learning rate that shrinks
    with a gradient's age (Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016), with
    an exponential decay.

    Args:
        value: the factor for a peer that is not behind, 0 to 1.
        half_life: age in updates at which the factor is half of that, above 0.

    Raises:
        ConfigError: an option is out of its limits.
    """

    def __init__(self, value: float = 0.5, half_life: float = 10.0) -> None:
        problems = number_problems("value of interpolation staleness", value, least=0, most=1)
        problems += number_problems("half_life of interpolation staleness", half_life, above=0)
        if problems:
            raise ConfigError(problems)
        self.value = float(value)
        self.half_life = float(half_life)

    def factor(self, own: State, peer: State) -> float:
        """The configured value, halved once for each half-life of the peer's age."""
        return self.value * math.pow(2.0, -max(own.clock - peer.clock, 0.0) / self.half_life)


class Consensus:
    """Averages as much as it takes to keep the models at a target distance from each other: see `ConsensusControl`.

    The rule has a memory, so every node needs its own. The states matter only through the own clock, by which the
    target moves late in training.

    Args: those of `ConsensusControl`.

    Raises:
        ConfigError: an option is out of its limits, or one of late_target and late_clock misses the other.
    """

    uses_distance = True

    def __init__(
        self,
        target: float = 0.05,
        late_target: float | None = None,
        late_clock: float | None = None,
        gain: float = 0.5,
        value: float = 0.5,
    ) -> None:
        self.control = ConsensusControl(
            target=target, late_target=late_target, late_clock=late_clock, gain=gain, value=value
        )

    def factor(self, own: State, peer: State, distance: float | None = None) -> float:  # noqa: ARG002 - see the class
        """The controller's factor after this distance, or the present one if the distance is unknown."""
        return self.control.update(distance, own.clock)


def _part(one: float, other: float) -> float:
    """The first number's part of both, for two numbers that are not negative; 0.5 when both are zero."""
    total = one + other
    if total == 0:
        return 0.5
    if math.isinf(total):  # two huge numbers: their halves still have a finite sum
        return (one / 2) / (one / 2 + other / 2)
    return one / total
