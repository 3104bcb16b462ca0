"""`dpwa run`: one node of a cluster file in the foreground, in place of the process that was asked for it.

Whatever watches that process (a container's engine, systemd, a shell) then watches the script itself: its signals, its
exit code, its output. Nothing of dpwa stands between them, so nothing starts it again either.

Must not know: what the node computes, click. Runs in: the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.launch_record import NodeLocks
from dpwa.launch.local import (
    OnFailure,
    command_problems,
    make_run_dir,
    node_commands,
    port_problems,
    tell,
    with_python_that_has_dpwa,
)
from dpwa.launch.this_host import local_node_names
from dpwa.transport.leftovers import remove_unowned

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["become_node"]


def become_node(
    cluster_file: Path,
    argv: Sequence[str],
    *,
    name: str | None = None,
    run_dir: Path | None = None,
    on_failure: OnFailure = OnFailure.CONTINUE,
) -> NoReturn:
    """Replaces this process by the command, with the environment that `dpwa launch` gives to a node.

    The lock on the node's folder goes over to it: no launch can start the same node there while it runs.

    Args:
        cluster_file: the YAML file.
        argv: the command and its arguments.
        name: the node; None: the only one of this host.
        run_dir: the run folder; None makes a new one under `runs`.
        on_failure: what becomes of nodes that fail: whatever watches them does that.

    Raises:
        ConfigError: something can be seen to be wrong before the command is started.
        DpwaError: the operating system does not run the command.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    config = ClusterConfig.load(cluster_file)
    node = config.node(name or _only_name(config, cluster_file)).name
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
        os.execvpe(argv[0], list(argv), dict(command.environment))  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise DpwaError(f"cannot start {argv[0]}: {error.strerror or error}") from error
    finally:
        locks.release_all()


def _only_name(config: ClusterConfig, cluster_file: Path) -> str:
    local = local_node_names(config)
    if len(local) == 1:
        return local[0]
    names = ", ".join(node.name for node in config.nodes[:8])
    raise ConfigError(
        f"{cluster_file}: which node is this? {len(local)} of its nodes belong to this host; write --node NAME, or set "
        f"DPWA_NODE, with one of {names}"
    )
