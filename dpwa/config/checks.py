"""Checks of a configuration beyond single values: how values go together, and whether the world has what they name.

They work on a ClusterConfig whose values are right one by one.

Must not know: lines and columns. Runs in: any thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dpwa.config import hosts
from dpwa.config.faults import fault_problems
from dpwa.config.network_checks import node_problems, one_way_problems, unreachable
from dpwa.config.problems import problems_of
from dpwa.config.topology import TopologyOptions
from dpwa.custom_code import importable
from dpwa.errors import ConfigError
from dpwa.interpolation.registry import RULES, find_rule, make_rule
from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.registry import METHODS, declared_options, find_method
from dpwa.options import Options, Problem, out_of_order

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig
    from dpwa.config.sections import NodeConfig

__all__ = ["custom_options", "import_plugins", "problems_between", "problems_of_the_world"]

_RESOLVE_TIMEOUT_S = 5.0
_REMEDY = "write blend: delta, or leave this key out"
_REMEDY_BLEND = "write blend: delta, or choose another rule"


# --- Between values ---------------------------------------------------------------------------------------------------


def problems_between(config: ClusterConfig, wrong: Collection[str] = ()) -> Iterator[Problem]:
    """What is wrong between values. No other file is read, no host looked up, no module imported.

    Args:
        config: typed values.
        wrong: keys with wrong values, in whose place the config has stand-ins that conflict with nothing.
    """
    yield from node_problems(config)
    yield from out_of_order(config, "factor_min", "factor_max")
    yield from _absolute_problems(config)
    yield from _state_problems(config)
    yield from _method_problems(config)
    yield from _guard_problems(config)
    if config.join and "join" not in wrong:
        yield from _join_problems(config, wrong)
    if config.topology != TopologyOptions() and "nodes" not in wrong:
        from dpwa.config.topology_checks import topology_problems  # noqa: PLC0415 - imports numpy, which few files need

        yield from topology_problems(config)
    if not {"nodes", "method"}.intersection(wrong):
        yield from one_way_problems(config)
    if "nodes" not in wrong:
        yield from fault_problems(config.faults, [node.name for node in config.nodes])


def _absolute_problems(config: ClusterConfig) -> Iterator[Problem]:
    """A problem for each key that needs differences between models, which `blend: absolute` does not make."""
    if config.blend != "absolute":
        return
    if config.pull_fraction < 1:
        yield Problem(
            ("pull_fraction",),
            f"a part of a model cannot be blended with blend: absolute, got {config.pull_fraction:g}; {_REMEDY}",
        )
    if config.bandwidth_limit is not None:
        yield Problem(
            ("bandwidth_limit",),
            f"a limit makes exchanges pull parts, which cannot be blended with blend: absolute; {_REMEDY}",
        )
    if getattr(RULES.get(config.interpolation), "uses_distance", False):
        text = f"{config.interpolation} measures differences, which blend: absolute does not make; {_REMEDY_BLEND}"
        yield Problem(("interpolation",), text)


def _state_problems(config: ClusterConfig) -> Iterator[Problem]:
    """An optimizer's state that would never travel, because exchanges bring parts of the model only."""
    fraction = min(config.pull_fraction, getattr(config.method_options, "fraction", 1.0))
    if config.optimizer_state == "blend" and fraction < 1:
        yield Problem(
            ("optimizer_state",),
            f"the optimizer's state travels with whole models only, and here an exchange brings {fraction:g} of the "
            "parameters; write optimizer_state: keep, or let exchanges bring whole models",
        )


def _method_problems(config: ClusterConfig) -> Iterator[Problem]:
    """Keys that only make sense where a peer's newest model is pulled, or where slices are exchanged."""
    method, word = config.method_class, config.method
    if method is None or method.kind is ExchangeKind.PULL:
        return
    if config.blend == "absolute":
        yield Problem(("blend",), f"absolute is a way of the method pull; with method {word} leave this key out")
    if config.pull_fraction < 1 and not method.exchanges_slices:
        others = " or ".join(name for name, other in METHODS.items() if other.exchanges_slices)
        text = f"method {word} exchanges whole models; leave this key out, or use {others}"
        yield Problem(("pull_fraction",), text)


def _guard_problems(config: ClusterConfig) -> Iterator[Problem]:
    method = config.method_class
    if config.guard != "median" or method is None:
        return
    if method.kind is not ExchangeKind.PULL:
        text = f"median changes what is taken, which breaks the sum that method {config.method} conserves; use clip"
        yield Problem(("guard",), text)
    elif config.pull_fraction < 1 or getattr(config.method_options, "fraction", 1.0) < 1:
        yield Problem(("guard",), "median compares whole models, and here exchanges bring parts of them; use clip")
    elif config.bandwidth_limit is not None:
        yield Problem(("guard",), "median compares whole models, and a bandwidth_limit brings parts of them; use clip")


def _join_problems(config: ClusterConfig, wrong: Collection[str]) -> Iterator[Problem]:
    """What needs a fixed number of nodes, or fixed neighbours, where nodes come and go."""
    method = config.method_class
    if method is not None and not method.follows_members:
        able = ", ".join(name for name, other in METHODS.items() if other.follows_members)
        yield Problem(
            ("method",),
            f"method {config.method} needs the same nodes from the first step to the last, and with `join` they come "
            f"and go; use one of {able}, or leave `join` out",
        )
    if "topology" not in wrong and config.topology != TopologyOptions():
        yield Problem(
            ("topology",),
            "a topology gives each node of the file its neighbours, and with `join` there are others; leave this key "
            "out (then everybody may exchange with everybody), or leave `join` out",
        )
    for index, (host, _) in enumerate(config.seeds):
        if hosts.is_loopback(host):
            continue
        if not (config.insecure or config.keys):
            yield Problem(
                ("join", index),
                f'"{host}" is reached over a network, and without keys whoever reaches a port can read and poison the '
                f"model; write `keys: keys` and run `dpwa keys init` on this file, or write insecure: true where you "
                f"trust the whole network",
            )
        if "nodes" not in wrong:
            yield from unreachable(config, host)


# --- Against the world ------------------------------------------------------------------------------------------------


def problems_of_the_world(config: ClusterConfig, folders: Sequence[Path], wrong: Collection[str] = ()) -> list[Problem]:
    """Hosts that cannot be resolved, files of matrices that cannot be used, and custom code that cannot be imported.

    Args:
        config: typed values.
        folders: where custom modules may be, besides Python's path.
        wrong: as for `problems_between`.
    """
    problems = [*_host_problems(config.nodes)]
    if "nodes" not in wrong:
        problems += _matrix_problems(config)
    return problems + _module_problems(config, folders, wrong)


def _host_problems(nodes: Sequence[NodeConfig]) -> Iterator[Problem]:
    """Hosts that the system's resolver does not know."""
    places: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.serve and hosts.needs_resolving(node.host):
            places.setdefault(node.host, []).append(index)
    for host, reason in hosts.unresolvable(places, timeout_s=_RESOLVE_TIMEOUT_S).items():
        text = f'the host "{host}" has no address known to this machine ({reason}); correct it, or write its IP address'
        for index in places[host]:
            yield Problem(("nodes", index, "host"), text)


def _matrix_problems(config: ClusterConfig) -> list[Problem]:
    """What is wrong with the files of matrices that the topology names, and with the topology that they make."""
    if not config.topology.given_matrices:
        return []
    from dpwa.config.topology_checks import file_problems  # noqa: PLC0415 - imports numpy, which few files need

    return file_problems(config)


def _module_problems(config: ClusterConfig, folders: Sequence[Path], wrong: Collection[str]) -> list[Problem]:
    """What keeps plugins, a rule or a method from being used; the options of built-in ones have been checked."""
    place = "plugins"
    problems: list[Problem] = []
    with importable(folders):
        try:
            import_plugins(config.plugins)
            place = "interpolation"
            if "plugins" not in wrong:  # which may be where the rule is
                rule = find_rule(config.interpolation)
                place = "custom_rule"
                if config.interpolation not in RULES and "custom_rule" not in wrong:
                    make_rule(rule, config.custom_rule)
        except ConfigError as error:
            problems += [Problem((place,), text) for text in error.problems]
        try:
            method = find_method(config.method)
        except ConfigError as error:
            return [*problems, *(Problem(("method",), text) for text in error.problems)]
    if config.method in METHODS or "custom_method" in wrong:
        return problems
    return problems + custom_options(config, method)[1]


def custom_options(config: ClusterConfig, method: type[Method]) -> tuple[Options | None, list[Problem]]:
    """The options of a custom method that declares some, and what is wrong with them; others check theirs themselves.

    Args:
        config: typed values.
        method: the class of its method.
    """
    declared = declared_options(method)
    if declared is None:
        return None, []
    try:
        return declared.model_validate(config.custom_method), []
    except ValidationError as error:
        found = problems_of(error, declared.model_json_schema())
        return None, [replace(problem, place=("custom_method", *problem.place)) for problem in found]


def import_plugins(names: Sequence[str]) -> None:
    """Import modules that register custom rules.

    Raises:
        ConfigError: some cannot be imported; every one is named.
    """
    problems = [problem for problem in map(_import_problem, names) if problem is not None]
    if problems:
        raise ConfigError(problems)


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except (ImportError, SyntaxError, ValueError, TypeError) as error:  # the last two: no name of a module
        return (
            f'the plugin "{name}" cannot be imported ({type(error).__name__}: {error}); expected the name of a module, '
            f"as in an import statement, that is installed, beside the config file or in the current folder"
        )
    return None
