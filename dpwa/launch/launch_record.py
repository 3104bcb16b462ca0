"""What a later launch needs to go on with a run: its command, and to know that its nodes have ended.

    RUN/launch.json              command, folder and options of the launch that made the folder
    RUN/nodes/NAME/launch.lock   held by the launcher for as long as it runs that node; the kernel lets go of it

Must not know: how nodes are started, checkpoints. Runs in: the launcher's main thread.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpwa.errors import ConfigError
from dpwa.observe.journal import node_folder

__all__ = ["LaunchRecord", "NodeLocks", "keep_record", "read_record"]

RECORD_FILE = "launch.json"
_LOCK_FILE = "launch.lock"


@dataclass(frozen=True)
class LaunchRecord:
    """A launch, as it was asked for.

    Attributes:
        argv: the command and its arguments.
        folder: in which it was started.
        cluster_file: absolute; "" for none.
        names: nodes that it started.
        on_failure: see `dpwa launch`, also for the others.
        max_restarts: with `restart`.
        first_port: instead of the ports of the file; None: those of the file.
        hosts_file: absolute; "" for a launch on this host.
        ray: what Ray was asked for; None for a launch without it.
    """

    argv: tuple[str, ...]
    folder: str
    cluster_file: str
    names: tuple[str, ...]
    on_failure: str
    max_restarts: int
    first_port: int | None = None
    hosts_file: str = ""
    ray: Mapping[str, Any] | None = None


def keep_record(run_dir: Path, record: LaunchRecord) -> None:
    """Leave a record in a run folder; that of a launch of nodes that this one does not have stays.

    Raises:
        ConfigError: it cannot be written.
    """
    path = run_dir / RECORD_FILE
    with suppress(ConfigError):
        if not set(read_record(run_dir).names) <= set(record.names):
            return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"run folder {run_dir}: cannot be written: {error}; name another with --run-dir") from error


def read_record(run_dir: Path) -> LaunchRecord:
    """The record in a run folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = run_dir / RECORD_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        record = LaunchRecord(**{**fields, "argv": tuple(fields["argv"]), "names": tuple(fields["names"])})
    except FileNotFoundError as error:
        raise ConfigError(
            f"{run_dir}: expected the folder of a run that `dpwa launch` has made, with a file {RECORD_FILE}; to go on "
            "without it, write the cluster file and the command as well: dpwa launch CLUSTER.yaml --run-dir RUN_DIR "
            "-- COMMAND"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); write the cluster file and the command instead"
        ) from error
    texts = (*record.argv, record.folder, record.cluster_file, *record.names, record.on_failure, record.hosts_file)
    if not record.argv or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: expected a command and names; write the cluster file and the command instead")
    return record


class NodeLocks:
    """Holds the nodes of a run folder for this launcher.

    A lock ends with its process, however that ends. A forked child has none.

    Args:
        run_dir: the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._held: dict[str, int] = {}

    def take(self, names: Sequence[str]) -> None:
        """Hold these nodes; call `release` afterwards in any case.

        Raises:
            ConfigError: a launch that has not ended runs some of them.
        """
        taken: list[str] = []
        for name in names:
            path = node_folder(self._run_dir, name) / _LOCK_FILE
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise ConfigError(
                    f"run folder {self._run_dir}: cannot be written: {error}; name another with --run-dir"
                ) from error
            self._held[name] = descriptor
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            except (BlockingIOError, PermissionError):
                holder = os.read(descriptor, 20).decode(errors="replace").strip()
                taken.append(f"{name} (process {holder or 'unknown'})")
            except OSError:  # a file system without locks
                continue
        if taken:
            raise ConfigError(
                f"run folder {self._run_dir}: it is taken: a launch that has not ended runs {', '.join(taken)}; end "
                "that first, or name another folder with --run-dir"
            )

    def release(self, name: str) -> None:
        """A node has ended for good: another launch may start it."""
        descriptor = self._held.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def keep_over_exec(self) -> None:
        """The program that replaces this one holds the locks, for as long as it runs."""
        for descriptor in self._held.values():
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - its only way

    def others_run(self) -> bool:
        """Whether another launch runs a node of the folder now."""
        for path in (self._run_dir / "nodes").glob(f"*/{_LOCK_FILE}"):
            if path.parent.name in self._held:
                continue  # to open and close it would end this launch's own lock
            with suppress(OSError), open(path, "r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    return True
        return False

    def release_all(self) -> None:
        """No node is held any more."""
        for name in list(self._held):
            self.release(name)
