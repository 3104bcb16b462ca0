"""From the name of a rule to the rule: dpwa's own, those that a custom module registers, and "module:Class".

A new rule is one class, in a file of its own or beside the others, and its place in the tuple below: config,
`dpwa check`, the lab and the tables in the docs read what the class declares. A custom rule needs no change here: see
`register` and docs/interpolation.md.

Must not know: models, files. Runs in: any thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TypeVar, cast

from dpwa.custom_code import is_own, load_class
from dpwa.errors import ConfigError
from dpwa.interpolation.rules import (
    BuiltInRule,
    Clock,
    Consensus,
    Constant,
    Interpolation,
    Linear,
    Loss,
    LossDivergence,
    Staleness,
)

__all__ = ["RULES", "find_rule", "make_rule", "register", "resolve"]

Rule = TypeVar("Rule", bound=type[Interpolation])

RULES: Mapping[str, type[BuiltInRule]] = {
    rule.name: rule for rule in (Constant, Linear, Clock, Loss, LossDivergence, Staleness, Consensus)
}

_known: dict[str, type[Interpolation]] = dict(RULES)


def register(name: str) -> Callable[[Rule], Rule]:
    """Class decorator: makes a rule known as `interpolation: NAME`.

    Args:
        name: word for the config; without a colon, because `module:Class` names a class directly.

    Raises:
        ConfigError: the name has a colon, or another class already has this name.
    """
    if is_own(name) or not name:
        raise ConfigError(f'registering an interpolation: expected a word without a colon as its name, got "{name}"')

    def add(rule: Rule) -> Rule:
        known = _known.get(name)
        # The same class again is a module that was loaded twice, which is harmless.
        if known is not None and (known.__module__, known.__qualname__) != (rule.__module__, rule.__qualname__):
            raise ConfigError(
                f'registering {rule.__module__}.{rule.__qualname__} as interpolation "{name}": the name belongs to '
                f"{known.__module__}.{known.__qualname__} already; choose another name"
            )
        _known[name] = rule
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
    rule = load_class(name, "interpolation") if is_own(name) else _known.get(name)
    if rule is None:
        near = get_close_matches(name, _known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(_known))}."
        raise ConfigError(
            f'there is no interpolation "{name}", {hint} A custom rule is written "module:Class", '
            f"or its module is listed under plugins"
        )
    if not callable(getattr(rule, "factor", None)):
        raise ConfigError(f'interpolation "{name}": expected a class with a method factor(own, peer), found none')
    return cast("type[Interpolation]", rule)


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


def _check_options(rule: type[Interpolation], options: Mapping[str, object]) -> None:
    """Refuse options that the constructor does not take, and name those that it needs."""
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
