"""`dpwa init` and `dpwa run`: a cluster file to begin with, and one node of it in the foreground.

Like `cli.py`: arguments in, messages out; each command imports what it needs when it runs.

Runs in: the main thread.
"""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["init", "run_node"]

_NODES = 4
_MOST_NODES = 4096


@click.command()
@click.argument("count", metavar="[COUNT]", type=click.IntRange(1, _MOST_NODES), required=False)
@click.option("--nodes", metavar="N", type=click.IntRange(1, _MOST_NODES), help="The same as COUNT.")
@click.option(
    "--hosts", metavar="A,B", help="Names or addresses of the machines, which share the nodes.  [default: this one]"
)
def init(count: int | None, nodes: int | None, hosts: str | None) -> None:
    """Print a cluster file for COUNT nodes (default: 4, or one for each host), on this machine or on others.

    dpwa init 4 > cluster.yaml
    """
    from dpwa.config.cluster import FIRST_PORT  # noqa: PLC0415 - see the module docstring
    from dpwa.config.starter import starter_file  # noqa: PLC0415

    if count is not None and nodes is not None and count != nodes:
        raise click.UsageError(f"COUNT and --nodes are the same: got {count} and {nodes}; leave one out")
    names = [] if hosts is None else [name.strip() for name in hosts.split(",")]
    number = count or nodes or len(names) or _NODES
    click.echo(starter_file(number, FIRST_PORT, names), nl=False)


@click.command("run")
@click.argument("cluster_file", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
@click.option(
    "--node",
    "name",
    metavar="NAME",
    envvar="DPWA_NODE",
    help="Which node this is.  [default: DPWA_NODE, or the only one of this host]",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder for this run.  [default: a new one in runs/]")
@click.option(
    "--on-failure",
    envvar="DPWA_ON_FAILURE",
    type=click.Choice(["continue", "restart"]),
    default="continue",
    show_default=True,
    help="What becomes of nodes that fail. restart: whatever watches this process starts it again, so peers wait "
    "longer, and a node that has finished in its run folder ends at once.",
)
@click.option(
    "--wait",
    "patience_s",
    metavar="SECONDS",
    type=click.FloatRange(0, 86400),
    default=0.0,
    help="Wait until the names of all hosts have addresses: those of containers have none before they start.",
)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
def run_node(
    *,
    cluster_file: Path,
    name: str | None,
    run_dir: Path | None,
    on_failure: str,
    patience_s: float,
    command: tuple[str, ...],
) -> None:
    """Be one node of the file: COMMAND takes this process's place, with its signals, output and exit code.

    For a container, a systemd unit or a terminal of its own. `dpwa launch --node` does more: it watches the node,
    starts it again, keeps its output, and says at the end what it did.
    """
    from dpwa.launch.foreground import become_node  # noqa: PLC0415 - see the module docstring
    from dpwa.launch.processes import OnFailure  # noqa: PLC0415

    policy = OnFailure(on_failure)
    become_node(cluster_file, command, name=name, run_dir=run_dir, on_failure=policy, patience_s=patience_s)
