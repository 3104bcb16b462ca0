"""Checks of a configuration beyond single values: how values go together, and whether the world has what they name.

They work on plain values that may be wrong in other ways as well, so that a person learns of all mistakes at once.

Must not know: the models of the config, lines and columns. Runs in: any thread.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpwa.config import hosts
from dpwa.config.faults import fault_problems
from dpwa.config.problems import Problem
from dpwa.errors import ConfigError
from dpwa.interpolation.interpolator import find_rule, make_rule

__all__ = ["host_problems", "import_plugins", "matrix_problems", "problems_between", "rule_problems"]

_RESOLVE_TIMEOUT_S = 5.0
_REMEDY = "write blend: delta, or leave this key out"
_REMEDY_BLEND = "write blend: delta, or choose another rule"
# Rules whose options have a model of their own.
_WHOLE_MODELS = ("gosgd", "sgp", "dpsgd", "noloco")
_METHODS_WITHOUT_PULL = (*_WHOLE_MODELS, "adpsgd", "elastic")
_WITH_OWN_SECTION = ("constant", "clock", "loss", "staleness", "consensus")


def problems_between(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between values. They may be unchecked, so everything of a wrong type is passed over.

    Args:
        values: keys and values of a cluster file.
        defaults: values of the keys that may be missing.
    """
    nodes = values.get("nodes")
    if isinstance(nodes, (list, tuple)):
        named = [(index, node) for index, node in enumerate(nodes) if isinstance(node, Mapping)]
        yield from _problems_between_nodes(named, insecure=values.get("insecure", False) is True)
    yield from _out_of_order(values, defaults, (), ("factor_min", "factor_max"))
    yield from _partial_and_absolute(values)
    yield from _beside_method(values)
    if values.get("topology") not in (None, defaults["topology"]):
        from dpwa.config.topology_checks import topology_problems  # noqa: PLC0415 - imports numpy, which few files need

        yield from topology_problems(values)
    yield from _consensus_problems(values)
    yield from fault_problems(values)
    flow_control = values.get("flow_control")
    if isinstance(flow_control, Mapping):
        place, usual = ("flow_control",), defaults["flow_control"]
        yield from _out_of_order(flow_control, usual, place, ("score_min", "score_start", "score_max"))
        yield from _out_of_order(flow_control, usual, place, ("probe_s", "probe_max_s"))


def _problems_between_nodes(nodes: list[tuple[int, Mapping[str, Any]]], *, insecure: bool) -> Iterator[Problem]:
    names: dict[str, int] = {}
    addresses: dict[tuple[str, int], int] = {}
    for index, node in nodes:
        name, host, port = node.get("name"), node.get("host", "localhost"), node.get("port")
        if isinstance(name, str) and names.setdefault(name, index) != index:
            yield Problem(
                ("nodes", index, "name"), f'nodes[{names[name]}] is called "{name}" too; every node needs its own name'
            )
        if not isinstance(host, str) or hosts.problem_with(host) is not None:
            continue
        if type(port) is int and addresses.setdefault((hosts.address_key(host), port), index) != index:
            first = addresses[hosts.address_key(host), port]
            yield Problem(
                ("nodes", index, "port"),
                f"nodes[{first}] has port {port} of this host too; give each its own",
            )
        if not insecure and not hosts.is_loopback(host):
            yield Problem(
                ("nodes", index, "host"),
                f'"{host}" is reached over a network, but there is no encryption yet: whoever reaches the port can '
                f"read and poison the model; where you trust the whole network, write insecure: true",
            )


def _beside_method(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that only make sense where a peer's newest model is pulled, or where a pair is."""
    method = values.get("method", "pull")
    if method not in _METHODS_WITHOUT_PULL:
        return
    if values.get("blend") == "absolute":
        yield Problem(("blend",), f"absolute is a way of the method pull; with method {method} leave this key out")
    fraction = values.get("pull_fraction")
    if method in _WHOLE_MODELS and isinstance(fraction, int | float) and 0 < fraction < 1:
        yield Problem(
            ("pull_fraction",), f"method {method} exchanges whole models; leave this key out, or use pull or adpsgd"
        )
    if values.get("bandwidth_limit") is not None:
        yield Problem(
            ("bandwidth_limit",),
            f"a limit is kept by pulling less, which method {method} does not; leave this key out, or use pull",
        )


def _partial_and_absolute(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each key that makes exchanges pull parts of a model, where the blend needs all of it."""
    if values.get("blend") != "absolute":
        return
    fraction = values.get("pull_fraction")
    if isinstance(fraction, (int, float)) and 0 < fraction < 1:
        yield Problem(
            ("pull_fraction",), f"a part of a model cannot be blended with blend: absolute, got {fraction:g}; {_REMEDY}"
        )
    if isinstance(values.get("bandwidth_limit"), str):
        yield Problem(
            ("bandwidth_limit",),
            f"a limit makes exchanges pull parts, which cannot be blended with blend: absolute; {_REMEDY}",
        )


def _consensus_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What the rule consensus misses: the other half of a late target, and differences to measure distances of."""
    options = values.get("consensus")
    if isinstance(options, Mapping):
        for given, missing in (("late_target", "late_clock"), ("late_clock", "late_target")):
            if options.get(given) is not None and options.get(missing) is None:
                yield Problem(("consensus", given), f"expected {missing} with it; write both, or neither")
    if values.get("interpolation") == "consensus" and values.get("blend") == "absolute":
        yield Problem(
            ("interpolation",), f"consensus measures differences, which blend: absolute does not make; {_REMEDY_BLEND}"
        )


def _out_of_order(
    values: Mapping[str, Any], defaults: Mapping[str, Any], place: tuple[str, ...], keys: tuple[str, ...]
) -> Iterator[Problem]:
    """A problem for each key whose number is below that of the key before it."""
    numbers = [values.get(key, defaults[key]) for key in keys]
    pairs = zip(keys, keys[1:], numbers, numbers[1:], strict=False)
    for low_key, high_key, low, high in pairs:
        if all(type(number) in (int, float) for number in (low, high)) and low > high:
            wrong = high_key if high_key in values else low_key
            yield Problem((*place, wrong), f"expected {low_key} <= {high_key}, got {low:g} and {high:g}")


def host_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Hosts that the system's resolver does not know."""
    nodes = values.get("nodes")
    if not isinstance(nodes, list):
        return []
    places: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        host = node.get("host") if isinstance(node, dict) else None
        if isinstance(host, str) and hosts.problem_with(host) is None and hosts.needs_resolving(host):
            places.setdefault(host, []).append(index)
    failures = hosts.unresolvable(places, timeout_s=_RESOLVE_TIMEOUT_S)
    return [
        Problem(
            ("nodes", index, "host"),
            f'the host "{host}" has no address known to this machine ({reason}); correct it, or write its IPv4 address',
        )
        for host, reason in failures.items()
        for index in places[host]
    ]


def matrix_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the files of matrices that the topology names."""
    topology = values.get("topology")
    if not isinstance(topology, Mapping) or not topology.keys() & {"matrix", "matrices"}:
        return []
    from dpwa.config.topology_checks import file_problems  # noqa: PLC0415 - imports numpy, which few files need

    return file_problems(values)


def rule_problems(values: Mapping[str, Any], folders: Sequence[Path]) -> list[Problem]:
    """What keeps the configured rule and method from being made. The options of dpwa's own are not looked at here.

    Args:
        values: keys and values of a cluster file.
        folders: where modules of custom rules may be, besides Python's path.
    """
    plugins = values.get("plugins", [])
    with _importable(folders):
        try:
            if isinstance(plugins, list):
                import_plugins([plugin for plugin in plugins if isinstance(plugin, str)])
        except ConfigError as error:
            return [Problem(("plugins",), problem) for problem in error.problems]
        return [*_interpolation_problems(values), *_method_problems(values)]


def _interpolation_problems(values: Mapping[str, Any]) -> list[Problem]:
    name, options = values.get("interpolation"), values.get("custom_rule", {})
    place = "interpolation"
    try:
        if isinstance(name, str):
            rule = find_rule(name)
            place = "custom_rule"
            if name not in _WITH_OWN_SECTION and isinstance(options, Mapping):
                make_rule(rule, options)
    except ConfigError as error:
        return [Problem((place,), problem) for problem in error.problems]
    return []


def _method_problems(values: Mapping[str, Any]) -> list[Problem]:
    name = values.get("method")
    if not isinstance(name, str) or name == "sparta":
        return []
    from dpwa.methods.registry import find_method  # noqa: PLC0415 - imports numpy, which a plain file does not need

    try:
        find_method(name)
    except ConfigError as error:
        return [Problem(("method",), problem) for problem in error.problems]
    return []


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


@contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    """Modules in the folders can be imported meanwhile.

    The folders come last, so that a file in them cannot take the place of an installed module.
    """
    added = [str(folder.resolve()) for folder in folders]
    sys.path += added
    importlib.invalidate_caches()  # a module written a moment ago is seen too
    try:
        yield
    finally:
        for folder in added:
            # From the end, where ours are: the same folder may stand further up in its own right.
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]
