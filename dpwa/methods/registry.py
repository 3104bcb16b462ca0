"""From the name of a method to the method of one node.

A new method is one file, and the place of its class in the tuple below: config, `dpwa check`, the lab and the tables in
the docs read what the class declares.

Must not know: sockets, threads, files; nothing imported here imports numpy, see `Method`. Runs in: any thread to look
a class up; the trainer's thread to make a method, once per node.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

from dpwa.custom_code import is_own, load_class
from dpwa.errors import ConfigError
from dpwa.methods.adpsgd import ADPSGD
from dpwa.methods.base import Method
from dpwa.methods.dpsgd import DPSGD
from dpwa.methods.elastic import Elastic
from dpwa.methods.gosgd import GoSGD
from dpwa.methods.noloco import NoLoCo
from dpwa.methods.pull import Pull
from dpwa.methods.sgp import SGP
from dpwa.methods.sparta import Sparta
from dpwa.options import Options
from dpwa.schedule import Schedule, value_at
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["METHODS", "declared_options", "find_method", "make_method"]

METHODS: Mapping[str, type[Method]] = {
    method.name: method for method in (Pull, GoSGD, SGP, ADPSGD, DPSGD, NoLoCo, Elastic, Sparta)
}


def find_method(name: str) -> type[Method]:
    """The class that a config names; imports its module if the name is "module:Class".

    Raises:
        ConfigError: there is none.
    """
    if is_own(name):
        return cast("type[Method]", load_class(name, "method", Method))
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(METHODS))}."
    raise ConfigError(f'there is no method "{name}", {hint} A custom method is written "module:Class"')


def declared_options(method: type[Method]) -> type[Options] | None:
    """The options that a class declares for its constructor.

    None where it declares none, and where a custom subclass has a constructor of its own but no options of its own.
    """
    owner = next(one for one in method.__mro__ if "options" in vars(one) or "__init__" in vars(one))
    return method.options if "options" in vars(owner) else None


def make_method(
    method: type[Method],
    arguments: Mapping[str, Any],
    *,
    links: Neighbourhood,
    count: int,
    probability: float | Schedule,
    fraction: float,
) -> Method:
    """The method of one node.

    Args:
        method: its class.
        arguments: its options, as keyword arguments of its constructor.
        links: whom the node may exchange with.
        count: nodes in the cluster.
        probability: of an exchange in a step; a schedule by the clock of the node's model.
        fraction: largest share of the parameters in an exchange.

    Raises:
        ConfigError: it refuses its options.
    """
    try:
        made = method(links, count, value_at(probability, 0.0), **arguments)
    except (TypeError, ValueError) as error:
        is_built_in = METHODS.get(method.name) is method
        name = method.name if is_built_in else f"{method.__module__}:{method.__qualname__}"
        raise ConfigError(f'method "{name}" refused its options {dict(arguments)}: {error}') from error
    if isinstance(probability, Schedule):
        made.probability = probability
    made.fraction = min(made.fraction, fraction)
    return made
