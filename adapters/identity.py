"""Which node of which cluster a process is: from the arguments, from `dpwa launch`, or alone.

Must not know: models, tensors. Runs in: the trainer's thread.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from dpwa import ClusterConfig, ConfigError

__all__ = ["ConfigLike", "Identity", "given_config", "identity_of", "take_place"]

ConfigLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | ClusterConfig | None"

_logger = logging.getLogger("dpwa")


class _Closable(Protocol):
    def close(self) -> None: ...


_holders: weakref.WeakValueDictionary[tuple[int, str], _Closable] = weakref.WeakValueDictionary()
"""By process and address: which adapter is that node now."""


@dataclass(frozen=True)
class Identity:
    """One node.

    Attributes:
        config: its cluster.
        name: of the node.
        run_dir: the run folder; None for a node alone, which records nothing.
        peers_restart: whether nodes that fail are started anew: `dpwa launch --on-failure restart`.
        launch_id: of the launch that has started all nodes of the cluster at once; empty in a later life.
    """

    config: ClusterConfig
    name: str
    run_dir: Path | None
    peers_restart: bool = False
    launch_id: str = ""


def identity_of(name: str | None, config: ConfigLike) -> Identity:
    """The node that arguments and environment name.

    Args:
        name: of the node; None: what `dpwa launch` set in DPWA_NODE.
        config: the cluster; None: what `dpwa launch` set in DPWA_CONFIG.

    Raises:
        ConfigError: the cluster cannot be used, or has no such node.
    """
    chosen = name or os.environ.get("DPWA_NODE") or None
    given = given_config(config)
    if given is None:
        if name is not None:
            _logger.warning(
                "node %s trains alone: it has a name but no cluster; pass config=..., set DPWA_CONFIG, or use "
                "`dpwa launch`",
                name,
            )
        alone = ClusterConfig.alone(chosen or "alone")
        return Identity(alone, alone.nodes[0].name, _run_dir(alone, is_given=False))
    restart = os.environ.get("DPWA_ON_FAILURE") == "restart"
    launch_id = os.environ.get("DPWA_LAUNCH_ID", "")
    return Identity(given, _node_name(given, chosen), _run_dir(given, is_given=True), restart, launch_id)


def given_config(config: ConfigLike) -> ClusterConfig | None:
    """The cluster that the script or the launcher names; None if neither does.

    Raises:
        ConfigError: it cannot be used.
    """
    if isinstance(config, ClusterConfig):
        return config
    if isinstance(config, Mapping):
        return ClusterConfig.from_mapping(config)
    path = config if config is not None else os.environ.get("DPWA_CONFIG") or None
    return ClusterConfig.load(Path(path)) if path is not None else None


def take_place(adapter: _Closable, identity: Identity) -> None:
    """Make an adapter the one of its node in this process; one that was it before is closed, and its port is free."""
    if identity.config.is_alone:
        return  # nothing is shared, and so nothing is in the way
    key = (os.getpid(), identity.config.node(identity.name).address)
    former = _holders.get(key)
    _holders[key] = adapter
    if former is not None and not getattr(former, "closed", True):
        _logger.warning("node %s: the adapter made before in this process is closed for this one", identity.name)
        former.close()


def _node_name(config: ClusterConfig, name: str | None) -> str:
    if name is not None:
        return config.node(name).name
    if len(config.nodes) == 1:
        return config.nodes[0].name
    names = ", ".join(node.name for node in config.nodes[:8])
    raise ConfigError(
        f"which node is this? Expected one of {names}, got no name; "
        "pass name=..., set DPWA_NODE, or start with `dpwa launch`"
    )


def _run_dir(config: ClusterConfig, *, is_given: bool) -> Path | None:
    chosen = os.environ.get("DPWA_RUN_DIR")
    if chosen:
        return Path(chosen).absolute()
    if not is_given:
        return None
    # Without a launcher every node started by hand gets a folder of its own; it stays the same when the script changes
    # its working folder.
    return Path.cwd() / "runs" / f"{config.run}-{time.strftime('%Y%m%d-%H%M%S')}"
