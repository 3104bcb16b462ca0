"""Which node of which cluster a process is: from the arguments, `dpwa launch`, torchrun and the like, or alone.

Must not know: models, tensors. Runs in: the trainer's thread.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from dpwa import ClusterConfig, ConfigError
from dpwa.engines.boards import MAX_CARD_BYTES, Board, FolderBoard, PmiBoard, StoreBoard, file_name
from dpwa.engines.environment import Start, start_of
from dpwa.engines.gathering import GATHER_TIMEOUT_S, Gathered, gather, own_host, values_in
from dpwa.engines.parts import cluster_of_part, part_folder, with_keys_of_run

from .engine_store import open_store, shared_run_dir
from .islands import Members

__all__ = ["ConfigLike", "Identity", "given_config", "identity_of", "in_folder", "island_size", "take_place"]

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
        is_by_rank: its rank among the processes of an engine says which node it is.
        members: the processes that are this node together; None: this one alone.
    """

    config: ClusterConfig
    name: str
    run_dir: Path | None
    peers_restart: bool = False
    launch_id: str = ""
    is_by_rank: bool = False
    members: Members | None = None


@dataclass(frozen=True)
class _Found:
    """What was found out once: the others do not wait for a second adapter of one process.

    Attributes:
        source: the settings, as the script or the environment named them.
        identity: the node, with these settings.
        gathered: where the processes are, if they have told each other.
    """

    source: ConfigLike
    identity: Identity
    gathered: Gathered | None


_found: dict[tuple[Start, int], _Found] = {}
"""By start, and by the first process of the node."""

_run_dirs: dict[Start, Path] = {}
"""What the processes of a start without a name have agreed on."""


def identity_of(
    name: str | None, config: ConfigLike, *, members: Members | None = None, is_sharded: bool = False
) -> Identity:
    """The node that arguments and environment name.

    Args:
        name: of the node; None: what `dpwa launch` set in DPWA_NODE, or by its rank where torchrun, srun or mpiexec
            have started it.
        config: the cluster; None: what `dpwa launch` set in DPWA_CONFIG.
        members: the island that this process belongs to; None: none.
        is_sharded: other processes hold a part of its model, so that its rank says nothing of nodes.

    Raises:
        ConfigError: the cluster cannot be used, or has no such node.
    """
    chosen = name or os.environ.get("DPWA_NODE") or None
    start = None if chosen is not None or is_sharded else start_of(os.environ)
    # An island of all processes that were started is one node, and they know of no other.
    if start is not None and (members is None or members.size < start.size):
        return _of_start(start, config, members)
    given = given_config(config)
    if given is None:
        if name is not None:
            _logger.warning(
                "node %s trains alone: it has a name but no cluster; pass config=..., set DPWA_CONFIG, or use "
                "`dpwa launch`",
                name,
            )
        alone = ClusterConfig.alone(chosen or "alone")
        return Identity(alone, alone.nodes[0].name, _run_dir(alone, is_given=False), members=members)
    restart = os.environ.get("DPWA_ON_FAILURE") == "restart"
    launch_id = os.environ.get("DPWA_LAUNCH_ID", "")
    node = _node_name(given, chosen)
    return Identity(_of_part(given, members), node, _run_dir(given, is_given=True), restart, launch_id, members=members)


def in_folder(identity: Identity, run_dir: Path | None) -> tuple[ClusterConfig, Path | None]:
    """Cluster and run folder of one of the processes that are a node together.

    Args:
        identity: of the node.
        run_dir: the run folder, as the first process knows it.
    """
    if run_dir is None or identity.members is None:
        return identity.config, run_dir
    part = identity.members.part
    return with_keys_of_run(identity.config, run_dir, part), part_folder(run_dir, part)


def _of_part(config: ClusterConfig, members: Members | None) -> ClusterConfig:
    """The cluster of those processes that hold the same part of the model as this one."""
    if members is None or not members.have_parts:
        return config
    return cluster_of_part(config, members.part, members.size)


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


def island_size(config: ConfigLike) -> int | None:
    """How many processes the cluster file makes one node; None if it does not say.

    Raises:
        ConfigError: it cannot be read.
    """
    if isinstance(config, ClusterConfig):
        return config.island.size
    section = _values_of(config if config is not None else os.environ.get("DPWA_CONFIG") or None).get("island")
    size = section.get("size") if isinstance(section, Mapping) else None
    return size if isinstance(size, int) and size > 1 else None  # what else is wrong with it is said with the rest


def _of_start(start: Start, config: ConfigLike, members: Members | None) -> Identity:
    """The node of one of several processes that an engine has started: the file's nodes by rank, or those started."""
    first = start.rank if members is None else members.ranks[0]
    source = config if config is not None else os.environ.get("DPWA_CONFIG") or None
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    known = _found.get((start, first))
    if known is None or known.source != source:
        if members is not None and members.ranks[members.rank] != start.rank:
            raise ConfigError(
                f"{start.engine} calls this process {start.rank}, and torch.distributed calls it "
                f"{members.ranks[members.rank]}; give init_process_group the rank of {start.engine}"
            )
        if start.others and known is None:
            _logger.warning(
                "started by %s, as process %d of %d; the variables of %s are set, too, and do not count",
                start.engine,
                start.rank,
                start.size,
                ", ".join(start.others),
            )
        known = _found[start, first] = _look_up(start, source, members, None if known is None else known.gathered)
    return replace(known.identity, members=members)


def _look_up(start: Start, source: ConfigLike, members: Members | None, gathered: Gathered | None) -> _Found:
    """Find out which node this process is.

    Args:
        start: of this process.
        source: the settings.
        members: the island that this process belongs to; None: none.
        gathered: what the processes have told each other before, for other settings; None: nothing yet.
    """
    values = _values_of(source)
    if values.get("nodes"):
        identity = _listed(start, source, len(values["nodes"]), members)
    else:
        if gathered is None:
            first, part = (start.rank, 0) if members is None else (members.ranks[0], members.part)
            gathered = _gathered(start, values, first, part)
        config = _with_found(source, values, gathered.settings)
        identity = Identity(
            config, gathered.name, gathered.run_dir, launch_id=gathered.launch_id, is_by_rank=True, members=members
        )
    return _Found(copy.deepcopy(source) if isinstance(source, Mapping) else source, identity, gathered)


def _listed(start: Start, source: ConfigLike, nodes: int, members: Members | None) -> Identity:
    """A node of a cluster file, by rank."""
    listed = given_config(source)
    size = 1 if members is None else members.size
    if listed is None or len(listed.nodes) * size != start.size:
        islands = "" if size == 1 else f", {size} of which share a model,"
        raise ConfigError(
            f"{start.engine} has started {start.size} processes{islands} and the cluster file has {nodes} nodes; start "
            "as many as it has, or leave `nodes` out of it: the processes find each other"
        )
    neighbours = range(start.rank // size * size, (start.rank // size + 1) * size)
    if members is not None and members.ranks != tuple(neighbours):
        raise ConfigError(
            f"the processes {list(members.ranks)} share a model; with `nodes` in the cluster file, expected "
            f"{size} neighbours such as {list(neighbours)}; leave `nodes` out of it"
        )
    node = listed.nodes[start.rank // size]
    return Identity(_of_part(listed, members), node.name, _agreed_run_dir(start, listed.run), is_by_rank=True)


def _gathered(start: Start, values: Mapping[str, Any], first: int, part: int) -> Gathered:
    """Have the processes find each other."""
    run_dir = _run_dir_of(start, str(values.get("run", "dpwa")))
    towards = None
    board = _given_board(start)
    if board is None and start.engine == "torchrun":
        towards = os.environ["MASTER_ADDR"], 9
        store, run_dir = open_store(start, run_dir, GATHER_TIMEOUT_S)
        board = StoreBoard(store, start)
    elif board is None:
        board = FolderBoard(Path.cwd() / "runs" / ".rendezvous", start, _logger.warning)
    host = own_host(start, os.environ.get("DPWA_HOST"), towards)
    return gather(start, board, values, first=first, part=part, run_dir=run_dir, host=host)


def _given_board(start: Start) -> Board | None:
    """The board that the user names, or MPICH has; None where there is neither."""
    folder = os.environ.get("DPWA_RENDEZVOUS")
    if folder:
        return FolderBoard(Path(folder), start, _logger.warning)
    return PmiBoard(int(os.environ["PMI_FD"]), start) if start.engine == "MPICH" else None


def _with_found(source: ConfigLike, values: Mapping[str, Any], found: Mapping[str, Any]) -> ClusterConfig:
    """The cluster of settings and of the nodes that were found; keys of the settings' own come before those of the run.

    Raises:
        ConfigError: the settings cannot be used.
    """
    has_own_keys = values.get("keys") or values.get("insecure")
    needed = {key: value for key, value in found.items() if not (key == "keys" and has_own_keys)}
    if isinstance(source, str):
        return ClusterConfig.load(Path(source), needed)
    return ClusterConfig.from_mapping({**values, **needed})


def _values_of(source: ConfigLike) -> Mapping[str, Any]:
    """The keys and values of a cluster file, as they are."""
    if source is None:
        return {}
    if isinstance(source, ClusterConfig):
        return {"nodes": source.nodes}
    return source if isinstance(source, Mapping) else values_in(Path(source))


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


def _run_dir_of(start: Start, run: str) -> Path:
    """The run folder of a start: the same when the engine starts a job again, as far as jobs have names."""
    chosen = os.environ.get("DPWA_RUN_DIR")
    if chosen:
        return Path(chosen).absolute()
    return Path.cwd() / "runs" / file_name(f"{run}-{start.job or time.strftime('%Y%m%d-%H%M%S')}")


def _agreed_run_dir(start: Start, run: str) -> Path:
    """The run folder where a cluster file names the nodes: the first process's, if each would choose by its own clock.

    Raises:
        ConfigError: the engine gives them no way to agree.
    """
    run_dir = _run_dir_of(start, run)
    if start.job or os.environ.get("DPWA_RUN_DIR"):
        return run_dir
    if start not in _run_dirs:
        board = _given_board(start)
        if board is not None:
            _run_dirs[start] = Path(os.fsdecode(board.exchange(_told(run_dir), GATHER_TIMEOUT_S)[0]))
        elif start.engine == "torchrun":
            _run_dirs[start] = shared_run_dir(start, run_dir, GATHER_TIMEOUT_S)
        else:
            raise ConfigError(
                f"{start.engine} has no name for this job, and so its {start.size} processes would each choose a run "
                "folder by its own clock; set DPWA_RUN_DIR to one folder for all of them"
            )
    return _run_dirs[start]


def _told(run_dir: Path) -> bytes:
    told = os.fsencode(run_dir)
    if len(told) > MAX_CARD_BYTES:
        raise ConfigError(f"run folder {run_dir}: its path is too long to be told to the others; set DPWA_RUN_DIR")
    return told


def _run_dir(config: ClusterConfig, *, is_given: bool) -> Path | None:
    chosen = os.environ.get("DPWA_RUN_DIR")
    if chosen:
        return Path(chosen).absolute()
    if not is_given:
        return None
    # Without a launcher every node started by hand gets a folder of its own; it stays the same when the script changes
    # its working folder.
    return Path.cwd() / "runs" / f"{config.run}-{time.strftime('%Y%m%d-%H%M%S')}"
