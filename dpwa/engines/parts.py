"""The clusters of a sharded model: one for each part, of the processes that hold that part.

Where a file names the nodes, a node's port is that of its first process, and the next ports are those of the others.
The first processes have the run's folder, the others one within it:

    RUN/parts/1    the run folder of the second processes of all nodes

Must not know: models, torch. Runs in: the trainer's thread, before training.
"""

from __future__ import annotations

from pathlib import Path

from dpwa.config import hosts
from dpwa.config.cluster import ClusterConfig
from dpwa.config.sections import NodeConfig
from dpwa.errors import ConfigError
from dpwa.transport.run_keys import run_keys_folder

__all__ = ["cluster_of_part", "part_folder", "with_keys_of_run"]

_LAST_PORT = 65535


def part_folder(run_dir: Path, part: int) -> Path:
    """The run folder of the processes that exchange one part of a model, from 0."""
    return run_dir / "parts" / str(part) if part else run_dir


def cluster_of_part(config: ClusterConfig, part: int, parts: int) -> ClusterConfig:
    """The cluster of the processes that exchange one part of a model, where a file names the nodes.

    Args:
        config: with the ports of the first processes.
        part: from 0.
        parts: how many there are.

    Raises:
        ConfigError: the ports of two nodes of a host are too close to each other for that.
    """
    owners: dict[tuple[str, int], str] = {}
    for node in config.nodes:
        for port in range(node.port, node.port + parts):
            owner = owners.setdefault((node.address_key[0], port), node.name)
            if owner != node.name or port > _LAST_PORT:
                reason = f"and {port} is {owner}'s" if owner != node.name else f"and {_LAST_PORT} is the last one"
                raise ConfigError(
                    f"node {node.name}: its model is sharded over {parts} processes, which need the ports {node.port} "
                    f"to {node.port + parts - 1}, {reason}; expected nodes of one host whose ports are at least "
                    f"{parts} apart"
                )
    join = tuple(hosts.address_text(host, port + part) for host, port in config.seeds)
    return config.model_copy(update={"nodes": tuple(_moved(node, part) for node in config.nodes), "join": join})


def _moved(node: NodeConfig, part: int) -> NodeConfig:
    host, port = node.listens_at
    bind = None if node.bind is None else hosts.address_text(host, port + part)
    return node.model_copy(update={"port": node.port + part, "bind": bind})


def with_keys_of_run(config: ClusterConfig, run_dir: Path, part: int) -> ClusterConfig:
    """The cluster of a part with the keys that one `dpwa launch` has put into the run's folder, if it has."""
    if config.keys is not None or run_keys_folder(part_folder(run_dir, part)) is not None:
        return config
    folder = run_keys_folder(run_dir)
    return config if folder is None else config.model_copy(update={"keys": str(folder)})
