"""Checks of where the nodes are: addresses that clash, that need keys, or that others cannot reach, and one-way nodes.

A one-way node (`serve: false`) asks others and is asked by nobody. What needs the others to ask it cannot be.

Must not know: lines and columns; looks no host up. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dpwa.config import hosts
from dpwa.config.topology import TopologyOptions
from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.registry import METHODS
from dpwa.options import Problem

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["node_problems", "one_way_problems", "unreachable", "why_not_one_way"]


def node_problems(config: ClusterConfig) -> Iterator[Problem]:
    """Names and addresses of two nodes, and nodes that are reached over a network without keys."""
    names: dict[str, int] = {}
    addresses: dict[tuple[str, int], int] = {}
    for index, node in enumerate(config.nodes):
        first = names.setdefault(node.name, index)
        if first != index:
            text = f'nodes[{first}] is called "{node.name}" too; every node needs its own name'
            yield Problem(("nodes", index, "name"), text)
        if not node.serve:
            if node.bind is not None:
                text = "a node with serve: false listens nowhere; remove one of the two"
                yield Problem(("nodes", index, "bind"), text, at_key=True)
            continue
        first = addresses.setdefault(node.address_key, index)
        if first != index:
            text = f"nodes[{first}] has port {node.port} of this host too; give each its own"
            yield Problem(("nodes", index, "port"), text)
        if not (config.insecure or config.keys) and not node.is_private:
            is_host = not hosts.is_loopback(node.host)
            yield Problem(
                ("nodes", index, "host" if is_host else "bind"),
                f'"{node.host if is_host else node.bind}" is reached over a network, and without keys whoever reaches '
                f"the port can read and poison the model; write `keys: keys` and run `dpwa keys init` on this file, or "
                f"write insecure: true where you trust the whole network",
            )


def unreachable(config: ClusterConfig, seed: str) -> Iterator[Problem]:
    """Nodes at addresses that members on other machines cannot reach.

    Args:
        config: of a cluster that nodes may join.
        seed: host of a member on another machine.
    """
    for index, node in enumerate(config.nodes):
        if node.serve and hosts.is_loopback(node.host):
            yield Problem(
                ("nodes", index, "host"),
                f"members such as {seed} are on other machines, and cannot reach {node.name} at {node.host}; write the "
                "address at which they can, or serve: false if there is none",
            )


def one_way_problems(config: ClusterConfig) -> Iterator[Problem]:
    """What breaks where some nodes cannot be asked.

    The topology is looked at in `topology_checks`, and a custom method when it is made.
    """
    silent = [index for index, node in enumerate(config.nodes) if not node.serve]
    if not silent:
        return
    if len(silent) == len(config.nodes) and not config.is_open:
        yield Problem(("nodes", silent[0], "serve"), "no node of this file can be asked; one at least must serve")
        return
    method = config.method_class
    text = None if method is None else why_not_one_way(method, config.method, config.nodes[silent[0]].name)
    if text is not None:
        yield Problem(("nodes", silent[0], "serve"), text)
    elif method is not None and method.kind is ExchangeKind.GATHER and config.topology == TopologyOptions():
        yield Problem(
            ("nodes", silent[0], "serve"),
            f"method {config.method} gathers the models of all neighbours, and nobody can ask "
            f"{config.nodes[silent[0]].name}; write a topology with no edge out of it, or use {_able(config.method)}",
        )


def why_not_one_way(method: type[Method], word: str, name: str) -> str | None:
    """Why a method cannot have a node that is never asked; None if it can.

    Args:
        method: the class.
        word: the method, as the file has it.
        name: of the node.
    """
    if method.kind is ExchangeKind.PUSH:
        how = "pushes models, and what a node pushes is fetched from it"
    elif method.kind is ExchangeKind.PAIR:
        how = "exchanges in pairs, and each of two fetches the other's model"
    else:
        return None
    return f"method {word} {how}: {name} could give nothing and break the sum that is kept; use {_able(word)}"


def _able(word: str) -> str:
    return " or ".join(name for name, method in METHODS.items() if method.kind is ExchangeKind.PULL and name != word)
