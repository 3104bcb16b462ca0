"""`dpwa launch`: the nodes of a cluster file that belong to this host, from the file to the exit code.

Must not know: what the nodes compute, click. Runs in: the main thread, because signal handlers live there.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpwa.config import hosts
from dpwa.engines.environment import LOCAL_RANK
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.commands import command_problems, local_ranks, thread_limits, with_python_that_has_dpwa
from dpwa.launch.launch_record import LaunchRecord, NodeLocks, keep_record
from dpwa.launch.output import prefix_chars
from dpwa.launch.ports import port_problem
from dpwa.launch.processes import NodeCommand, OnFailure
from dpwa.launch.report import report
from dpwa.launch.run_dir import CONFIG_NAME, copy_name, make_run_dir
from dpwa.launch.supervision import run_shown
from dpwa.launch.terminal import size_variables, tell
from dpwa.launch.this_host import local_node_names
from dpwa.observe.journal import OUTPUT_FILE, node_folder, output_max_bytes
from dpwa.observe.run_record import LAUNCH_FILE, RunRecord
from dpwa.transport.leftovers import remove_unowned
from dpwa.transport.run_keys import run_keys, run_keys_folder

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["launch", "node_commands", "port_problems"]


def launch(
    cluster_file: Path,
    argv: Sequence[str],
    *,
    names: Sequence[str] = (),
    on_failure: OnFailure = OnFailure.CONTINUE,
    max_restarts: int = 5,
    run_dir: Path | None = None,
    first_port: int | None = None,
) -> int:
    """Starts the command once per node of this host, shows what the nodes print, and waits for the last one.

    Args:
        cluster_file: the YAML file.
        argv: the command and its arguments.
        names: nodes to start; empty for all that belong to this host.
        on_failure: what to do when a node fails.
        max_restarts: how often in a row a node is started again.
        run_dir: the run folder; None makes a new one under `runs`.
        first_port: the nodes get this port and the next ones, instead of those of the file.

    Returns:
        The exit code: 0 if every node ended well, 1 if not, 128 + N after signal N.

    Raises:
        ConfigError: something can be seen to be wrong before anything is started.
        DpwaError: there are not enough processes or files for a launch.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import, and the demo has it already

    config = ClusterConfig.load(cluster_file)
    if first_port is not None:
        config = config.with_ports_from(first_port)
    chosen = _chosen_names(config, names, cluster_file)
    if run_dir is not None and run_dir.exists():
        _refuse_taken(run_dir, chosen)
    problems = [*command_problems(argv), *port_problems(config, chosen, cluster_file)]
    if problems:
        raise ConfigError(problems)
    argv = with_python_that_has_dpwa(argv)
    run_dir = make_run_dir(config, run_dir)
    is_whole = len(chosen) == len(config.nodes) and not config.is_newcomer
    keep_record(
        run_dir,
        LaunchRecord(
            tuple(argv),
            str(Path.cwd()),
            str(cluster_file.absolute()),
            tuple(chosen),
            on_failure.value,
            max_restarts,
            first_port,
        ),
    )
    tell(f"dpwa: {len(chosen)} of {len(config.nodes)} nodes start here: {', '.join(chosen)}; run folder {run_dir}")
    # On other ports the nodes read the run folder's file; custom rules and methods still lie beside the given one.
    copy = run_dir / copy_name(config, run_dir, config.to_yaml())
    config_path, modules = (cluster_file, None) if first_port is None else (copy, cluster_file.parent)
    commands = node_commands(
        config, chosen, argv, run_dir, on_failure=on_failure, config_path=config_path, modules=modules
    )
    if is_whole:  # nobody has trained on without the others: those with checkpoints go on together
        launch_id = {"DPWA_LAUNCH_ID": secrets.token_hex(8)}
        commands = [replace(command, first_life=launch_id) for command in commands]
    locks, record = NodeLocks(run_dir), RunRecord(run_dir, LAUNCH_FILE)
    try:
        locks.take(chosen)
        with _keys_of_run(config, chosen, run_dir, locks):
            run = run_shown(commands, on_failure, max_restarts, locks.release, record.write)
            ends, signal_number = asyncio.run(run)
    except OSError as error:
        raise DpwaError(f"launching {', '.join(chosen)}: the operating system refused: {error}") from error
    finally:
        locks.release_all()
        remove_unowned()  # the shared memory of nodes that were killed; all of them have ended
    return report(ends, signal_number, run_dir, has_peers=not config.is_alone)


def _refuse_taken(run_dir: Path, names: Sequence[str]) -> None:
    """Before the ports are looked at, which are taken, too: that would not tell what is the matter."""
    locks = NodeLocks(run_dir)
    try:
        locks.take(names)
    finally:
        locks.release_all()


def node_commands(
    config: ClusterConfig,
    names: Sequence[str],
    argv: Sequence[str],
    run_dir: Path,
    *,
    on_failure: OnFailure = OnFailure.CONTINUE,
    config_path: Path | None = None,
    modules: Path | None = None,
) -> list[NodeCommand]:
    """What to start for each of these nodes.

    Args:
        config: the cluster.
        names: the nodes that run on this host.
        argv: the command, the same for all.
        run_dir: the run folder.
        on_failure: what becomes of a node that fails.
        config_path: the file that the user named, which custom rules may lie beside; None for the run folder's copy.
        modules: a folder in which Python is to look for modules, too.
    """
    common = dict(os.environ)
    common.pop("DPWA_LAUNCH_ID", None)  # of a launch that this one is started by
    common.update(thread_limits(common, len(names)))
    common.update(size_variables(prefix_chars(names), common))
    common.setdefault("PYTHONUNBUFFERED", "1")  # else a node's lines come in blocks, and the last ones never
    common["DPWA_CONFIG"] = str((config_path or run_dir / CONFIG_NAME).absolute())
    if modules is not None:
        common["PYTHONPATH"] = os.pathsep.join(filter(None, [common.get("PYTHONPATH"), str(modules.absolute())]))
    common["DPWA_RUN_DIR"] = str(run_dir.absolute())
    common["DPWA_ON_FAILURE"] = on_failure.value  # nodes wait longer for one that will be back
    common["DPWA_WORLD_SIZE"] = str(len(config.nodes))
    ranks = {node.name: rank for rank, node in enumerate(config.nodes)}
    places = local_ranks({node.name: hosts.address_key(node.host) for node in config.nodes})
    return [
        NodeCommand(
            name=config.node(name).name,
            argv=tuple(argv),
            environment={**common, "DPWA_NODE": name, "DPWA_RANK": str(ranks[name]), LOCAL_RANK: str(places[name])},
            output_path=(node_folder(run_dir, name) / OUTPUT_FILE).absolute(),
            output_max_bytes=output_max_bytes(config.journal_max_bytes),
        )
        for name in names
    ]


def _chosen_names(config: ClusterConfig, names: Sequence[str], cluster_file: Path) -> list[str]:
    if names:
        return list(dict.fromkeys(config.node(name).name for name in names))
    local = local_node_names(config)
    if not local:
        hosts = ", ".join(dict.fromkeys(node.host for node in config.nodes))
        raise ConfigError(
            f"{cluster_file}: no node of this file belongs to this host (its hosts: {hosts}); "
            f"run this on one of them, or name nodes to start here with --node NAME"
        )
    return local


def port_problems(config: ClusterConfig, names: Sequence[str], cluster_file: Path) -> list[str]:
    """Why these nodes cannot listen here."""
    nodes = [config.node(name) for name in names]
    found = [(node.name, port_problem(*node.listens_at)) for node in nodes if node.serve]
    return [f"{cluster_file}: node {name}: {problem}" for name, problem in found if problem is not None]


def _keys_of_run(
    config: ClusterConfig, names: Sequence[str], run_dir: Path, locks: NodeLocks
) -> AbstractContextManager[None]:
    """The keys of the run, while its nodes run: if all that belong to it are started here, or join in its folder."""
    if config.is_newcomer:
        has_keys = run_keys_folder(run_dir) is not None
    else:  # nodes that other launches start, or other machines, would have no way to know keys that are made here
        is_private = not config.is_open or all(node.is_private for node in config.nodes)
        has_keys = is_private and len(names) == len(config.nodes)
    if config.keys is not None or config.insecure or not has_keys:
        return nullcontext()
    return run_keys(run_dir, names, locks.others_run)
