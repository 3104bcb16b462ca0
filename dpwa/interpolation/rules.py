"""The rules for the factor, what each of them declares, and their options.

A rule is a small class with a method `factor(own, peer)` that looks at two states and answers the share of the peer,
0 (keep mine) to 1 (take the peer's). `registry` finds a rule by its name, `interpolator` puts guards around it.

Must not know: models, tensors, time, files. Runs in: any thread; only `Consensus` keeps state between calls: it belongs
to one node and is called by one thread at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from pydantic import Field

from dpwa.errors import ConfigError, number_problems
from dpwa.interpolation.consensus import ConsensusControl
from dpwa.options import OTHER_NAMES, Options, Problem
from dpwa.schedule import LinearSchedule, Schedule, ShareOverTime, value_at
from dpwa.snapshot.state import State

__all__ = [
    "BuiltInRule",
    "Clock",
    "Consensus",
    "Constant",
    "DistanceInterpolation",
    "Interpolation",
    "Linear",
    "Loss",
    "LossDivergence",
    "Staleness",
]


class Interpolation(Protocol):
    """A rule for the factor."""

    def factor(self, own: State, peer: State) -> float:
        """The share of the peer in the blend, 0 (keep mine) to 1 (take the peer's)."""
        ...


class DistanceInterpolation(Protocol):
    """A rule that also gets the distance between the two models; it has the class attribute `uses_distance = True`."""

    uses_distance: bool

    def factor(self, own: State, peer: State, distance: float | None = None) -> float:
        """The share of the peer in the blend, 0 (keep mine) to 1 (take the peer's).

        Args:
            own: this node's state.
            peer: the peer's state.
            distance: ||x_peer - x_own|| / ||x_own|| over the parameters that were pulled; None where it is unknown.
        """
        ...


class BuiltInRule(ABC):
    """What dpwa's own rules declare; the config, `dpwa check`, the lab and the tables of the docs read it.

    A custom rule needs nothing of this.
    """

    name: ClassVar[str]
    """Its word in the cluster file."""
    summary: ClassVar[str]
    """The factor, in one line."""
    description: ClassVar[str]
    """What `dpwa check` prints; `{options.key}` is the value of an option."""
    options: ClassVar[type[Options]]
    """Its section in the cluster file, and the keyword arguments of its constructor. Where the largest factor is an
    option, it is called `value`."""

    @abstractmethod
    def factor(self, own: State, peer: State) -> float:
        """The share of the peer in the blend, 0 (keep mine) to 1 (take the peer's)."""


class NoOptions(Options):
    """Options of a rule that has none."""


class ConstantOptions(Options):
    """Options of the rule constant."""

    value: ShareOverTime = Field(
        0.5,
        description="The factor of every exchange, or a schedule of it.",
        json_schema_extra={OTHER_NAMES: ["factor"]},
    )

    def arguments(self) -> dict[str, Any]:
        """See `Options.arguments`; a schedule stays one."""
        return {"value": self.value}

    @property
    def words(self) -> str:
        """What the factor does."""
        return self.value.words if isinstance(self.value, Schedule) else f"constant {self.value:g}"


class LinearOptions(Options):
    """Options of the rule linear. The defaults are the values of the 2017 dpwa's sample."""

    start: float = Field(0.5, ge=0, le=1, description="The factor at clock 0.")
    end: float = Field(0.05, ge=0, le=1, description="The factor from the target on.")
    target: float = Field(5000.0, gt=0, description="Clock, in updates, at which the end is reached.")

    @property
    def value(self) -> float:
        """The largest factor."""
        return max(self.start, self.end)

    @property
    def words(self) -> str:
        """What the factor does."""
        return LinearSchedule(start=self.start, end=self.end, over=self.target).words


class LossDivergenceOptions(Options):
    """Options of the rule loss_divergence. The default is the value of the 2017 dpwa's sample."""

    target_divergence_loss: float = Field(
        0.2, gt=0, description="Loss of this node below which the factor shrinks, and the nodes go their own ways."
    )


class StalenessOptions(Options):
    """Options of the rule staleness."""

    value: float = Field(0.5, ge=0, le=1, description="The factor for a peer that is not behind.")
    half_life: float = Field(10.0, gt=0, description="Updates that a peer must be behind to weigh half as much.")


class ConsensusOptions(Options):
    """Options of the rule consensus."""

    target: float = Field(
        0.05, gt=0, description="Distance to keep between models, relative to the norm of this node's model."
    )
    late_target: float | None = Field(
        None, gt=0, description="Distance to keep late in training; null: the same throughout."
    )
    late_clock: float | None = Field(
        None, gt=0, description="Clock at which the target begins to move; it arrives at twice that clock."
    )
    gain: float = Field(0.5, gt=0, le=1, description="How strongly a distance off the target moves the factor.")
    value: float = Field(0.5, gt=0, le=1, description="The largest factor, and the first.")

    def between(self) -> Iterator[Problem]:
        """See `Options.between`."""
        for given, missing in (("late_target", "late_clock"), ("late_clock", "late_target")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                yield Problem((given,), f"expected {missing} with it; write both, or neither")

    @property
    def late(self) -> str:
        """The change of the target, in words; empty for none."""
        if self.late_target is None or self.late_clock is None:
            return ""
        begin, end = self.late_clock, 2 * self.late_clock
        return f", and of {self.late_target:g} from clock {end:g} on (the change begins at {begin:g})"


class Constant(BuiltInRule):
    """Always the same share of the peer, or one that follows a schedule.

    Args:
        value: the factor, 0 to 1, or a schedule of it by this node's clock.

    Raises:
        ConfigError: the value is neither.
    """

    name = "constant"
    summary = "value"
    description = "{options.words}"
    options = ConstantOptions

    def __init__(self, value: float | Schedule = 0.5) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not isinstance(value, Schedule) and not (is_number and 0 <= value <= 1):
            raise ConfigError(f"value of interpolation constant: expected a number from 0 to 1, got {value!r}")
        self.value = value if isinstance(value, Schedule) else float(value)

    def factor(self, own: State, peer: State) -> float:  # noqa: ARG002 - the peer does not matter to this rule
        """The configured value; of a schedule that at this node's clock."""
        return value_at(self.value, own.clock)


class Linear(BuiltInRule):
    """From start to end in a straight line while this node's clock goes from 0 to the target; then it stays.

    A rule of the 2017 dpwa's first commit. `Constant` with a `LinearSchedule` computes the same.

    Args:
        start: the factor at clock 0, 0 to 1.
        end: the factor from the target on, 0 to 1.
        target: clock in updates, above 0.

    Raises:
        ConfigError: an option is out of its limits.
    """

    name = "linear"
    summary = "start + (end - start) * min(clock / target, 1)"
    description = "{options.words}"
    options = LinearOptions

    def __init__(self, start: float = 0.5, end: float = 0.05, target: float = 5000.0) -> None:
        problems = number_problems("start of interpolation linear", start, least=0, most=1)
        problems += number_problems("end of interpolation linear", end, least=0, most=1)
        problems += number_problems("target of interpolation linear", target, above=0)
        if problems:
            raise ConfigError(problems)
        self._schedule = LinearSchedule(start=start, end=end, over=target)

    def factor(self, own: State, peer: State) -> float:  # noqa: ARG002 - the peer does not matter to this rule
        """The factor at this node's clock."""
        return self._schedule.at(own.clock)


class Clock(BuiltInRule):
    """An older model, one with more updates in it, weighs more: peer_clock / (clock + peer_clock)."""

    name = "clock"
    summary = "peer_clock / (clock + peer_clock)"
    description = "the older model weighs more, peer_clock / (clock + peer_clock)"
    options = NoOptions

    def factor(self, own: State, peer: State) -> float:
        """The peer's part of the two clocks together."""
        return _part(peer.clock, own.clock)


class Loss(BuiltInRule):
    """The model with the lower loss weighs more: loss / (loss + peer_loss).

    Losses below zero count as zero, because the formula has no meaning for them. With a loss unknown: 0.5.
    """

    name = "loss"
    summary = "loss / (loss + peer_loss)"
    description = "the lower loss weighs more, loss / (loss + peer_loss)"
    options = NoOptions

    def factor(self, own: State, peer: State) -> float:
        """This node's part of the two losses together."""
        if own.loss is None or peer.loss is None:
            return 0.5
        return _part(max(own.loss, 0.0), max(peer.loss, 0.0))


class LossDivergence(BuiltInRule):
    """The lower loss weighs more, and the less the lower this node's own is: late in training the nodes diverge.

    With l the loss of this node, p that of the peer and t the target: l^2 / (l^2 + p^2) * min(l / t, 1). A rule of the
    2017 dpwa's first commit, where they are called `loss` and `peer_loss`; its sample file used it.

    Losses below zero count as zero. An unknown loss of the peer counts as equal to this node's; with this node's
    own loss unknown: 0.5.

    Args:
        target_divergence_loss: t, above 0.

    Raises:
        ConfigError: the option is out of its limits.
    """

    name = "loss_divergence"
    summary = "loss^2 / (loss^2 + peer_loss^2) * min(loss / target_divergence_loss, 1)"
    description = (
        "the lower loss weighs more, loss^2 / (loss^2 + peer_loss^2); shrinks while this node's loss is below "
        "{options.target_divergence_loss:g}"
    )
    options = LossDivergenceOptions

    def __init__(self, target_divergence_loss: float = 0.2) -> None:
        name = "target_divergence_loss of interpolation loss_divergence"
        problems = number_problems(name, target_divergence_loss, above=0)
        if problems:
            raise ConfigError(problems)
        self.target_divergence_loss = float(target_divergence_loss)

    def factor(self, own: State, peer: State) -> float:
        """This node's part of the two squares, times what is left of its loss."""
        if own.loss is None:
            return 0.5
        own_loss = max(own.loss, 0.0)
        peer_loss = own_loss if peer.loss is None else max(peer.loss, 0.0)
        largest = max(own_loss, peer_loss)
        if largest == 0:
            return 0.0
        own_share, peer_share = own_loss / largest, peer_loss / largest  # so that no square overflows
        part = own_share * own_share / (own_share * own_share + peer_share * peer_share)
        return part * min(own_loss / self.target_divergence_loss, 1.0)


class Staleness(BuiltInRule):
    """A peer that is behind weighs less, half as much for each `half_life` updates: value * 2^(-age / half_life).

    The age is clock - peer_clock, and 0 for a peer that is ahead. The idea is that of a learning rate that shrinks
    with a gradient's age (Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016), with
    an exponential decay.

    Args:
        value: the factor for a peer that is not behind, 0 to 1.
        half_life: age in updates at which the factor is half of that, above 0.

    Raises:
        ConfigError: an option is out of its limits.
    """

    name = "staleness"
    summary = "value * 2^(-age / half_life)"
    description = "{options.value:g}, halved for each {options.half_life:g} updates that the peer is behind"
    options = StalenessOptions

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


class Consensus(BuiltInRule):
    """Averages as much as it takes to keep the models at a target distance from each other: see `ConsensusControl`.

    The rule has a memory, so every node needs one of its own. Of the states only this node's clock matters: the target
    moves by it late in training.

    Args: those of `ConsensusControl`.

    Raises:
        ConfigError: an option is out of its limits, or one of late_target and late_clock misses the other.
    """

    name = "consensus"
    summary = "turned by a controller, up to value"
    description = (
        "up to {options.value:g}, controlled to keep models at a distance of {options.target:g} of their norm"
        "{options.late}"
    )
    options = ConsensusOptions
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
