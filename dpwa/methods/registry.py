"""From the name of a method to the method of one node.

Must not know: sockets, threads, files. Runs in: the trainer's thread, once per node.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from dpwa.errors import ConfigError
from dpwa.methods.adpsgd import ADPSGD
from dpwa.methods.base import Method
from dpwa.methods.dpsgd import DPSGD
from dpwa.methods.elastic import Elastic
from dpwa.methods.gosgd import GoSGD
from dpwa.methods.noloco import NoLoCo
from dpwa.methods.pull import Pull
from dpwa.methods.sgp import SGP
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["METHODS", "find_method", "make_method"]

METHODS: Mapping[str, type[Method]] = {
    "pull": Pull,
    "gosgd": GoSGD,
    "sgp": SGP,
    "adpsgd": ADPSGD,
    "dpsgd": DPSGD,
    "noloco": NoLoCo,
    "elastic": Elastic,
}


def find_method(name: str) -> type[Method]:
    """The class that a config names; imports its module if the name is "module:Class".

    Raises:
        ConfigError: there is none.
    """
    if ":" not in name:
        if name in METHODS:
            return METHODS[name]
        near = get_close_matches(name, [*METHODS, "sparta"], n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted([*METHODS, 'sparta']))}."
        raise ConfigError(f'there is no method "{name}", {hint} A custom method is written "module:Class"')
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f'method "{name}": the module {module_name!r} cannot be imported ({type(error).__name__}: {error}); '
            "put it beside the config file or in the current folder, or install it"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ConfigError(
            f'method "{name}": expected a class that inherits from dpwa.methods.base.Method, found {found!r}'
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f'method "{name}": the class does not define {missing}')
    return found


def make_method(
    name: str,
    options: Mapping[str, object],
    *,
    links: Neighbourhood,
    count: int,
    probability: float,
    fraction: float,
) -> Method:
    """The method of one node.

    Args:
        name: a word, or "module:Class".
        options: keyword arguments of its constructor.
        links: whom the node may exchange with.
        count: nodes in the cluster.
        probability: of an exchange in a step.
        fraction: share of the parameters in an exchange.

    Raises:
        ConfigError: there is no such method, or it refuses its options.
    """
    make: Callable[..., Method] = find_method(name)
    try:
        method = make(links, count, probability, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'method "{name}" refused its options {dict(options)}: {error}') from error
    method.fraction = fraction
    return method
