"""Keys in a run folder, for as long as its nodes run.

    RUN/keys    see `key_folder`

On a machine with several users anybody can connect to a port, and pose as a node that has just died. So the nodes that
one `dpwa launch` starts get such keys from it; those that another engine has started each make their own.

Must not know: sockets, messages. Runs in: the launcher's thread; the trainer's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dpwa.errors import ConfigError
from dpwa.transport.allowed_list import AllowedList, write_list
from dpwa.transport.key_files import ALLOWED_FILE, secret_path
from dpwa.transport.key_folder import make_keys
from dpwa.transport.secret_files import write_secret

__all__ = ["own_keys", "own_keys_folder", "remove_own_keys", "run_keys", "run_keys_folder"]

_RUN_KEYS = "keys"


def run_keys_folder(run_dir: Path | None) -> Path | None:
    """Where the keys of a run are that one `dpwa launch` has started; None if it has none."""
    folder = None if run_dir is None else run_dir / _RUN_KEYS
    return folder if folder is not None and (folder / ALLOWED_FILE).exists() else None


@contextmanager
def run_keys(run_dir: Path, nodes: Sequence[str], is_used: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Keys for a run, in its folder, for as long as its nodes run; those that a killed launcher has left serve again.

    Args:
        run_dir: the run folder.
        nodes: their names.
        is_used: whether others work with the keys at the end: nodes of another launch, that have joined.

    Raises:
        ConfigError: they cannot be written.
    """
    folder = run_dir / _RUN_KEYS
    try:
        make_keys(folder, nodes)
    except ConfigError as error:
        raise ConfigError(f"run folder {run_dir}: {error}; name another with --run-dir") from error
    try:
        yield
    finally:
        if not is_used():
            shutil.rmtree(folder, ignore_errors=True)


def own_keys_folder(run_dir: Path) -> Path:
    """Where `own_keys` keeps the keys of a run."""
    return run_dir / _RUN_KEYS


def own_keys(run_dir: Path, node: str, secret: bytes, allowed: Mapping[str, bytes]) -> Path:
    """Keys for a run of which each node has made its own: one node's part of the run folder's keys.

    Nodes of one run folder do this side by side, with the same list; what a former life has left is replaced.

    Args:
        run_dir: the run folder.
        node: the node.
        secret: its secret key.
        allowed: every node's public key.

    Returns:
        The folder with the keys.

    Raises:
        ConfigError: they cannot be written.
    """
    folder = own_keys_folder(run_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret_path(folder, node).unlink(missing_ok=True)
        write_secret(secret_path(folder, node), secret + b"\n")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    write_list(folder, AllowedList({name: (key,) for name, key in allowed.items()}))
    return folder


def remove_own_keys(folder: Path, node: str, pid: int) -> None:
    """Remove a node's part of a run's keys, and the list with the last of them; nothing in a forked child.

    Args:
        folder: that `own_keys` has returned.
        node: the node.
        pid: of the process that has made them.
    """
    if os.getpid() != pid:
        return
    with suppress(OSError):
        secret_path(folder, node).unlink(missing_ok=True)
        if not any(folder.glob("*.key")):
            shutil.rmtree(folder, ignore_errors=True)
