"""What a method answers, checked: a method may be anybody's code, and the error for a mistake in it names the method.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Collection
from typing import TypeVar

from dpwa.custom_code import blamed
from dpwa.errors import ConfigError
from dpwa.methods.base import ExchangeKind, ExchangeResult, Method, Plan
from dpwa.snapshot.state import MAX_COUNTER, MAX_MASS, State

__all__ = ["factor_of", "mass_and_round", "plan_of", "plan_to_pass_on"]

_Answer = TypeVar("_Answer")


def plan_of(method: Method, rng: random.Random, peers: Collection[str]) -> Plan | None:
    """The exchange that a method begins now.

    Raises:
        ConfigError: a custom method raised something, or its plan cannot be carried out.
    """
    return _checked_plan(method, "plan", lambda: method.plan(rng), peers)


def plan_to_pass_on(method: Method, peers: Collection[str]) -> Plan | None:
    """The push by which a node that has finished passes on what it was given.

    Raises:
        ConfigError: see `plan_of`; also if it is no push.
    """
    plan = _checked_plan(method, "pass_on", method.pass_on, peers)
    if plan is not None and plan.kind is not ExchangeKind.PUSH:
        raise ConfigError(f"{_name(method)}: pass_on() answered {plan}: expected a push")
    return plan


def _checked_plan(method: Method, what: str, ask: Callable[[], Plan | None], peers: Collection[str]) -> Plan | None:
    plan = _asked(method, what, ask)
    problem = None if plan is None else _problem_of(plan, peers)
    if problem is not None:
        raise ConfigError(f"{_name(method)}: {what}() answered {plan}: {problem}")
    return plan


def factor_of(method: Method, result: ExchangeResult, own_state: State) -> float:
    """The factor by which a method applies what came.

    Raises:
        ConfigError: a custom method raised something, or the factor is no finite number.
    """
    answer = _asked(method, "blend", lambda: method.blend(result, own_state))
    try:
        factor = float(answer)
    except (TypeError, ValueError):
        factor = math.nan
    if not math.isfinite(factor):
        raise ConfigError(f"{_name(method)}: blend() answered {answer!r}: expected a finite number")
    return factor


def mass_and_round(method: Method) -> tuple[float, int]:
    """The mass and the round of a method's model, in the types that travel.

    Raises:
        ConfigError: a custom method raised something, or a number is not of its kind or out of its limits.
    """
    mass, round_ = _asked(method, "mass and round", lambda: (method.mass, method.round))
    try:
        mass, round_ = float(mass), operator.index(round_)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_name(method)}: mass {mass!r} and round {round_!r}: expected numbers: {error}") from error
    if not 0.0 <= mass <= MAX_MASS:
        raise ConfigError(f"{_name(method)}: mass: expected a number from 0 to {MAX_MASS:g}, got {mass}")
    if not 0 <= round_ <= MAX_COUNTER:
        raise ConfigError(f"{_name(method)}: round: expected an integer from 0 to 2^53, got {round_}")
    return mass, round_


def _asked(method: Method, what: str, ask: Callable[[], _Answer]) -> _Answer:
    with blamed(type(method), lambda error: f"{_name(method)}: {what} raised {error}"):
        return ask()


def _problem_of(plan: Plan, peers: Collection[str]) -> str | None:
    if not (plan.kind is None or isinstance(plan.kind, ExchangeKind)):
        return "expected an ExchangeKind or None as its kind"
    if not 0.0 < plan.fraction <= 1.0:
        return "expected a fraction above 0 up to 1"
    if not 0.0 <= plan.mass <= MAX_MASS:
        return f"expected a mass from 0 to {MAX_MASS:g}"
    if not (math.isfinite(plan.wait_s) and plan.wait_s >= 0.0):
        return "expected a wait_s of at least 0"
    if plan.peers is None:
        return None
    unknown = [peer for peer in plan.peers if peer not in peers]
    if unknown:
        return f"there is no peer {unknown[0]!r} in the cluster file; this node's peers are {', '.join(peers)}"
    if not all(math.isfinite(weight) and weight > 0.0 for weight in plan.peers.values()):
        return "expected weights above 0"
    return None


def _name(method: Method) -> str:
    return f'method "{type(method).__qualname__}" of module {type(method).__module__}'
