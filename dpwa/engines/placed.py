"""The cluster of nodes that were given places: what of a cluster file is found out then, and what a move changes.

A node whose machine is lost gets a place on another one, and so another address. Where nodes may join, its peers forget
the old address and take the new one; the first nodes are those to join through. A method or graph that needs the same
nodes from the first step to the last has no such way.

Must not know: what gives the places. Runs in: any thread; pure, but for the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dpwa.config import hosts, yaml_file
from dpwa.errors import ConfigError

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["Addresses", "given_settings", "may_move", "moved", "placed_config"]

Addresses: TypeAlias = "Mapping[str, tuple[str, int]]"

_SEEDS = 4


def given_settings(source: Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a cluster file without nodes.

    Raises:
        ConfigError: it cannot be read, or says where nodes are.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    values = dict(yaml_file.read(source).values if isinstance(source, Path) else source or {})
    given = [key for key in ("nodes", "join") if values.get(key)]
    if given:
        raise ConfigError(
            f"{name}{' and '.join(given)}: Ray says where the nodes are; leave that out, and say how many: --nodes N"
        )
    return values


def placed_config(
    source: Path | Mapping[str, Any] | None, addresses: Addresses, *, keys: str | None = None
) -> ClusterConfig:
    """The cluster of these nodes.

    Args:
        source: a file, or its keys and values, without nodes.
        addresses: host and port of each node, in the order of their ranks.
        keys: a folder of keys; None: what the source says.

    Raises:
        ConfigError: the settings cannot be used.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    found: dict[str, Any] = {"nodes": [{"name": name, "host": at[0], "port": at[1]} for name, at in addresses.items()]}
    if keys is not None:
        found["keys"] = keys

    def made() -> ClusterConfig:
        if isinstance(source, Path):
            return ClusterConfig.load(source, found)
        return ClusterConfig.from_mapping({**(source or {}), **found})

    config = made()
    if len(addresses) > 1 and _follows(config):
        found["join"] = [hosts.address_text(*at) for at in list(addresses.values())[:_SEEDS]]
        config = made()
    return config


def _follows(config: ClusterConfig) -> bool:
    from dpwa.config.topology import TopologyOptions  # noqa: PLC0415 - pydantic

    method = config.method_class
    return method is not None and method.follows_members and config.topology == TopologyOptions()


def may_move(config: ClusterConfig) -> bool:
    """Whether the others find a node at another address than that of the file."""
    return config.is_open


def moved(config: ClusterConfig, addresses: Addresses) -> ClusterConfig:
    """The same cluster, with its nodes at these addresses now."""
    nodes = [
        node.model_copy(update=dict(zip(("host", "port"), addresses[node.name], strict=True))) for node in config.nodes
    ]
    return config.model_copy(update={"nodes": tuple(nodes)})
