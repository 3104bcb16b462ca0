"""`dpwa keys`: the keys of a cluster as files, for the owner of the cluster.

Like `cli.py`: arguments in, messages out; each command imports what it needs when it runs.

Runs in: the main thread.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpwa.errors import ConfigError

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["keys"]

_cluster_file = click.argument("cluster_file", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))


@click.group()
def keys() -> None:
    """Make the keys with which nodes encrypt their links and know each other."""


@keys.command("init")
@_cluster_file
@click.option("--signer", is_flag=True, help="Also make a key that signs those of nodes which are invited later.")
def keys_init(cluster_file: Path, *, signer: bool) -> None:
    """Make a key for each node of the file that has none, in the folder that its `keys` names."""
    from dpwa.transport.invitations import SIGNING_FILE, make_signer  # noqa: PLC0415
    from dpwa.transport.key_files import ALLOWED_FILE  # noqa: PLC0415 - see the module docstring
    from dpwa.transport.key_folder import make_keys  # noqa: PLC0415

    config, folder = _with_keys(cluster_file)
    new = make_keys(folder, [node.name for node in config.nodes])
    for name in new:
        click.echo(f"wrote {folder / name}.key: a secret, which belongs on the machine of {name} alone")
    if signer:
        made = make_signer(folder)
        told = "wrote" if made.is_new else "kept"
        click.echo(f"{told} {folder / SIGNING_FILE}: a secret, which stays with you: no node needs it")
        if made.others:
            click.echo(
                f"another signer is in {ALLOWED_FILE}: take it out when its certificates need not count any more"
            )
    told = "wrote" if new or signer else "every node has a key; kept"
    click.echo(f"{told} {folder / ALLOWED_FILE}: no secret; copy it to every machine, with the cluster file")


@keys.command("invite")
@_cluster_file
@click.argument("node")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="For how long the certificate counts."
)
@click.option(
    "--new-key", is_flag=True, help="For a node that has been invited: a new key, which replaces the old one."
)
def keys_invite(cluster_file: Path, node: str, *, days: int, new_key: bool) -> None:
    """Let NODE join without a change on other machines: make a key for it, and a certificate that is signed for that.

    Again, for a node that has been invited: a certificate for the key that it has, with a later end.
    """
    from dpwa.transport.invitations import invite  # noqa: PLC0415
    from dpwa.transport.key_files import ALLOWED_FILE  # noqa: PLC0415 - see the module docstring

    _, folder = _with_keys(cluster_file)
    certificate, is_new = invite(folder, node, days=days, now_s=time.time(), new_key=new_key)
    if is_new:
        click.echo(f"wrote {folder / node}.key: a secret, which belongs on the machine of {node} alone")
    click.echo(f"wrote {folder / node}.cert: {node} may join until {certificate.end}; no secret")
    what = f"{node}.key, {node}.cert, {ALLOWED_FILE} and its cluster file" if is_new else f"{node}.cert"
    click.echo(f"copy {what} to the machine of {node}; nothing changes on the others")


@keys.command("revoke")
@_cluster_file
@click.argument("node")
def keys_revoke(cluster_file: Path, node: str) -> None:
    """Let NODE in no more, whatever key or certificate it has."""
    from dpwa.transport.invitations import revoke  # noqa: PLC0415
    from dpwa.transport.key_files import ALLOWED_FILE  # noqa: PLC0415 - see the module docstring

    _, folder = _with_keys(cluster_file)
    revoke(folder, node)
    click.echo(
        f"{node} is revoked in {folder / ALLOWED_FILE}: copy that to every machine; nodes read it within a second"
    )


@keys.command("rotate")
@_cluster_file
@click.argument("node")
@click.option("--finish", is_flag=True, help="NODE runs with its new key: the old one no longer counts.")
def keys_rotate(cluster_file: Path, node: str, *, finish: bool) -> None:
    """Give NODE a new key, and let the old one count until --finish."""
    from dpwa.transport.key_files import ALLOWED_FILE  # noqa: PLC0415 - see the module docstring
    from dpwa.transport.key_folder import rotate_key  # noqa: PLC0415

    _, folder = _with_keys(cluster_file)
    rotate_key(folder, node, finish=finish)
    if finish:
        click.echo(f"the old key of {node} no longer counts; copy {folder / ALLOWED_FILE} to every machine")
        return
    click.echo(f"wrote {folder / node}.key, and both keys into {folder / ALLOWED_FILE}. Next:")
    click.echo(f"1. copy {ALLOWED_FILE} to every machine; running nodes read it within a second")
    click.echo(f"2. copy {node}.key to the machine of {node}, and restart that node")
    click.echo(f"3. dpwa keys rotate {cluster_file} {node} --finish")


def _with_keys(cluster_file: Path) -> tuple[ClusterConfig, Path]:
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - see the module docstring

    config = ClusterConfig.load(cluster_file)
    if config.keys is None:
        raise ConfigError(f"{cluster_file}: names no folder for the keys; write `keys: keys` into it first")
    return config, Path(config.keys)
