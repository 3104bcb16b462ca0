"""How much of a peer goes into a blend: the names of the rules, custom rules, and the guards around every rule.

A rule is a small class with a method `factor(own, peer)` that looks at two states and answers the share of the peer,
0 (keep mine) to 1 (take the peer's). `Interpolator` puts the guards around a rule, so that no rule and no peer can
produce a factor that harms this node. A custom rule needs no change here: see `register` and docs/interpolation.md.

Must not know: models, tensors, sockets, threads, time, files. Runs in: any thread; nothing here keeps state between
calls but `LossSmoother`, which belongs to the thread that made it, and rules with a memory.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar, cast

from dpwa.custom_code import blamed
from dpwa.errors import ConfigError
from dpwa.interpolation.rules import Clock, Consensus, Constant, DistanceInterpolation, Interpolation, Loss, Staleness
from dpwa.snapshot.state import State

__all__ = [
    "Clock",
    "Consensus",
    "Constant",
    "DistanceInterpolation",
    "Interpolation",
    "Interpolator",
    "Loss",
    "LossSmoother",
    "Staleness",
    "find_rule",
    "make_rule",
    "register",
    "resolve",
]


Rule = TypeVar("Rule", bound=type[Interpolation])

_rules: dict[str, type[Interpolation]] = {
    "constant": Constant,
    "clock": Clock,
    "loss": Loss,
    "staleness": Staleness,
    "consensus": Consensus,
}


def register(name: str) -> Callable[[Rule], Rule]:
    """Class decorator: makes a rule known as `interpolation: NAME`.

    Args:
        name: word for the config; without a colon, because `module:Class` names a class directly.

    Raises:
        ConfigError: the name has a colon, or another class already has this name.
    """
    if ":" in name or not name:
        raise ConfigError(f'registering an interpolation: expected a word without a colon as its name, got "{name}"')

    def add(rule: Rule) -> Rule:
        known = _rules.get(name)
        # The same class again is a module that was loaded twice, which is harmless.
        if known is not None and (known.__module__, known.__qualname__) != (rule.__module__, rule.__qualname__):
            raise ConfigError(
                f'registering {rule.__module__}.{rule.__qualname__} as interpolation "{name}": the name belongs to '
                f"{known.__module__}.{known.__qualname__} already; choose another name"
            )
        _rules[name] = rule
        return rule

    return add


def resolve(name: str, options: Mapping[str, object]) -> Interpolation:
    """Make the rule that a config names.

    Args:
        name: a registered word ("constant", "clock" …, or one of a custom module), or "module:Class".
        options: keyword arguments of the rule's constructor.

    Raises:
        ConfigError: no such rule, its module cannot be imported, or its constructor does not take these options.
    """
    return make_rule(find_rule(name), options)


def find_rule(name: str) -> type[Interpolation]:
    """The class that a config names; imports its module if the name is "module:Class".

    Raises:
        ConfigError: no such rule, or its module cannot be imported.
    """
    rule = _rule_from_module(name) if ":" in name else _rules.get(name)
    if rule is None:
        near = get_close_matches(name, _rules, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(_rules))}."
        raise ConfigError(
            f'there is no interpolation "{name}", {hint} A custom rule is written "module:Class", '
            f"or its module is listed under plugins"
        )
    if not callable(getattr(rule, "factor", None)):
        raise ConfigError(f'interpolation "{name}": expected a class with a method factor(own, peer), found none')
    return rule


def make_rule(rule: type[Interpolation], options: Mapping[str, object]) -> Interpolation:
    """Construct a rule.

    Args:
        rule: its class.
        options: keyword arguments of its constructor.

    Raises:
        ConfigError: the constructor does not take these options; every wrong one is named.
    """
    _check_options(rule, options)
    try:
        return rule(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{rule.__qualname__} refused its options: {error}") from error


def _rule_from_module(name: str) -> type[Interpolation]:
    """The class behind "module:Class"."""
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ConfigError(
            f'interpolation "{name}": expected "module:Class", the names of a module and of a class in it'
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f'interpolation "{name}": the module {module_name} cannot be imported ({type(error).__name__}: {error}); '
            f"put it beside the config file or in the current folder, or install it"
        ) from error
    rule = getattr(module, class_name, None)
    if not inspect.isclass(rule):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        near = get_close_matches(class_name, classes, n=1)
        hint = f', did you mean "{module_name}:{near[0]}"?' if near else ""
        raise ConfigError(f'interpolation "{name}": the module {module_name} has no class {class_name}{hint}')
    return cast("type[Interpolation]", rule)  # `find_rule` checks that it has the method


def _check_options(rule: type[Interpolation], options: Mapping[str, object]) -> None:
    """Refuse options that the constructor does not take and name those that it misses."""
    parameters = inspect.signature(rule).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [parameter.name for parameter in named]
    problems = []
    for option in options:
        if option not in known and not takes_any:
            near = get_close_matches(option, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it takes: {', '.join(known) or 'none'}"
            problems.append(f'{rule.__qualname__} has no option "{option}", {hint}')
    problems += [
        f'{rule.__qualname__} needs the option "{parameter.name}", which has no default'
        for parameter in named
        if parameter.default is parameter.empty and parameter.name not in options
    ]
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class Interpolator:
    """A rule with the guards around it. Whatever the rule and the peer say, the factor is safe to use.

    In this order:

    1. A peer whose loss is NaN or infinite, or whose clock is negative or not finite, gets 0: it has diverged or lies.
    2. With an own loss of NaN or infinity, a peer with a finite loss gets `factor_max`: the own model is lost. Any
       other peer gets 0, because nothing says that its model is better.
    3. The rule is asked. An answer that is no finite number becomes 0.
    4. With an own loss below `divergence_threshold`, the factor shrinks by loss / divergence_threshold.
    5. The factor is kept within `factor_min` and `factor_max`.

    Attributes:
        rule: the rule inside.
        divergence_threshold: own loss below which the factor shrinks; 0 switches this off.
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
            distance: ||x_peer - x_own|| / ||x_own||; a rule that uses it is told None instead of a negative number,
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
