"""`dpwa run`: one node of a cluster file in the foreground, in place of the process that was asked for it.

Whatever watches that process (a container's engine, systemd, a shell) then watches the script itself: its signals, its
exit code, its output. Nothing of dpwa stands between them, so nothing starts it again either.

Must not know: what the node computes, click. Runs in: the main thread.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dpwa.config import hosts, yaml_file
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.commands import command_problems, with_python_that_has_dpwa
from dpwa.launch.launch_record import NodeLocks
from dpwa.launch.local import node_commands, port_problems
from dpwa.launch.processes import OnFailure
from dpwa.launch.run_dir import make_run_dir
from dpwa.launch.terminal import tell
from dpwa.launch.this_host import local_node_names
from dpwa.observe.endings import ending_of
from dpwa.observe.journal import node_folder
from dpwa.transport.leftovers import remove_unowned

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["become_node"]

_LOOK_UP_TIMEOUT_S = 5.0
_BETWEEN_LOOKS_S = 1.0


def become_node(
    cluster_file: Path,
    argv: Sequence[str],
    *,
    name: str | None = None,
    run_dir: Path | None = None,
    on_failure: OnFailure = OnFailure.CONTINUE,
    patience_s: float = 0.0,
) -> NoReturn:
    """Replaces this process by the command, with the environment that `dpwa launch` gives to a node.

    The lock on the node's folder goes over to it: no launch can start the same node there while it runs.

    Args:
        cluster_file: the YAML file.
        argv: the command and its arguments.
        name: the node; None: the only one of this host.
        run_dir: the run folder; None makes a new one under `runs`.
        on_failure: what becomes of nodes that fail: whatever watches them does that. With `RESTART`, a node that has
            finished in this run folder is not started again: the process ends with exit code 0.
        patience_s: how long the names of the nodes' hosts are waited for.

    Raises:
        ConfigError: something can be seen to be wrong before the command is started.
        DpwaError: the operating system does not run the command.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    if patience_s:
        _wait_for_names(cluster_file, patience_s)
    config = ClusterConfig.load(cluster_file)
    node = config.node(name or _only_name(config, cluster_file)).name
    if on_failure is OnFailure.RESTART and run_dir is not None and ending_of(node_folder(run_dir, node)).has_finished:
        tell(f"dpwa: node {node} has finished its training in {run_dir}: it is not started again")
        sys.exit(0)
    problems = [*command_problems(argv), *port_problems(config, [node], cluster_file)]
    if problems:
        raise ConfigError(problems)
    argv = with_python_that_has_dpwa(argv)
    run_dir = make_run_dir(config, run_dir)
    (command,) = node_commands(config, [node], argv, run_dir, on_failure=on_failure, config_path=cluster_file)
    locks = NodeLocks(run_dir)
    try:
        locks.take([node])
        locks.keep_over_exec()
        remove_unowned()  # the shared memory of nodes that were killed
        tell(f"dpwa: this is node {node}, of {len(config.nodes)}; run folder {run_dir}")
        sys.stdout.flush()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it starts would, too
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(argv[0], list(argv), dict(command.environment))  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise DpwaError(f"cannot start {argv[0]}: {error.strerror or error}") from error
    finally:
        locks.release_all()


def _wait_for_names(cluster_file: Path, patience_s: float) -> None:
    """Wait until the nodes' hosts have addresses: a container's name has none before it is started."""
    nodes = yaml_file.read(cluster_file).values.get("nodes")
    named = [node.get("host") for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    names = [name for name in named if isinstance(name, str) and hosts.problem_with(name) is None]
    names = list(filter(hosts.needs_resolving, names))
    end_s = time.monotonic() + patience_s
    told: list[str] = []
    while missing := list(hosts.unresolvable(names, timeout_s=_LOOK_UP_TIMEOUT_S)):
        if missing != told:
            tell(f"dpwa: waiting for an address of {', '.join(missing)}")
            told = missing
        if time.monotonic() >= end_s:
            return  # the check of the file says the rest
        time.sleep(min(_BETWEEN_LOOKS_S, max(0.0, end_s - time.monotonic())))


def _only_name(config: ClusterConfig, cluster_file: Path) -> str:
    local = local_node_names(config)
    if len(local) == 1:
        return local[0]
    names = ", ".join(node.name for node in config.nodes[:8])
    raise ConfigError(
        f"{cluster_file}: which node is this? {len(local)} of its nodes belong to this host; write --node NAME, or set "
        f"DPWA_NODE, with one of {names}"
    )
