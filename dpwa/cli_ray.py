"""The options of `dpwa launch --engine ray`.

Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

__all__ = ["ray_options", "ray_options_of"]

_Command = TypeVar("_Command", bound=Callable[..., object])

_OPTIONS = (
    click.option("--engine", type=click.Choice(["ray"]), help="Have Ray say where the nodes run, on its cluster."),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine ray: the head of its cluster.  [default: auto, the one of this machine]",
    ),
    click.option("--nodes", "count", metavar="N", type=click.IntRange(1, 1024), help="With --engine ray: how many."),
    click.option(
        "--gpus-per-node",
        metavar="N",
        type=click.FloatRange(min=0),
        help="With --engine ray: GPUs that each node has for itself.  [default: 0]",
    ),
    click.option(
        "--cpus-per-node",
        metavar="N",
        type=click.FloatRange(min=0),
        help="With --engine ray: CPUs that Ray counts for each node, and its threads.  [default: 1]",
    ),
    click.option(
        "--wait",
        "wait_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        help="With --engine ray: how long Ray may take to have room for all.  [default: 30]",
    ),
)

_NAMES = {
    "address": "--address",
    "count": "--nodes",
    "gpus_per_node": "--gpus-per-node",
    "cpus_per_node": "--cpus-per-node",
    "wait_s": "--wait",
}


def ray_options(command: _Command) -> _Command:
    """Add the options to a command, which gets them as `engine` and more."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def ray_options_of(given: Mapping[str, Any], **others: object) -> dict[str, Any] | None:
    """What `RayOptions` is made of; None without --engine.

    Args:
        given: what the command got of these options.
        others: what it got of options that do not go with them, by name; empty or None where they were left out.

    Raises:
        click.UsageError: they do not go together.
    """
    if given["engine"] is None:
        alone = [word for name, word in _NAMES.items() if given[name] is not None]
        if alone:
            raise click.UsageError(f"{alone[0]} belongs to --engine ray; add that, or leave it out.")
        return None
    words = {"hosts_file": "--hosts", "names": "--node", "first_port": "--port-base", "resumed_dir": "--resume"}
    for name, value in others.items():
        if value:
            raise click.UsageError(f"{words[name]} does not go with --engine ray, which says where nodes are.")
    if given["count"] is None:
        raise click.UsageError("Missing option '--nodes': how many nodes Ray is to start.")
    found = {
        "nodes": given["count"],
        "address": given["address"],
        "cpus": given["cpus_per_node"],
        "gpus": given["gpus_per_node"],
        "wait_s": given["wait_s"],
    }
    return {name: value for name, value in found.items() if value is not None}
