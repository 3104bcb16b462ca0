"""`dpwa launch --resume`: the nodes of a run start again in its folder, with the command that it was launched with.

What each node goes on from is the node's own business: its checkpoints, or those of its script.

Must not know: processes, checkpoints. Runs in: the main thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpwa.errors import ConfigError
from dpwa.launch.launch_record import LaunchRecord, read_record
from dpwa.launch.local import launch
from dpwa.launch.on_hosts import launch_on_hosts
from dpwa.launch.on_ray import RayOptions, launch_on_ray
from dpwa.launch.processes import OnFailure
from dpwa.launch.run_dir import CONFIG_NAME
from dpwa.launch.terminal import tell

__all__ = ["resume"]


def resume(
    run_dir: Path,
    *,
    cluster_file: Path | None = None,
    argv: Sequence[str] = (),
    names: Sequence[str] = (),
    on_failure: OnFailure | None = None,
    max_restarts: int | None = None,
    first_port: int | None = None,
) -> int:
    """Launches the nodes of a run again, in its folder: with the command of then, from the folder of then.

    Args:
        run_dir: the run folder.
        cluster_file: the YAML file; None: that of then.
        argv: the command and its arguments; empty: that of then.
        names: nodes to start; empty: those of then.
        on_failure: see `launch`; None: as then, also for the others.
        max_restarts: see `launch`.
        first_port: see `launch`.

    Returns:
        As `launch`.

    Raises:
        ConfigError: as `launch`; or this is not the folder of a run.
        DpwaError: as `launch`.
    """
    run_dir = run_dir.absolute()
    record = read_record(run_dir)
    port = record.first_port if first_port is None else first_port
    if record.ray is not None:
        return _resume_on_ray(run_dir, record, cluster_file, argv, on_failure, max_restarts)
    if record.hosts_file:
        # Its copy in the run folder has nodes and keys that the file need not have.
        with _in_folder(record.folder):
            return launch_on_hosts(
                Path(record.cluster_file) if cluster_file is None else cluster_file.absolute(),
                argv or record.argv,
                Path(record.hosts_file),
                names=names or record.names,
                on_failure=on_failure or OnFailure(record.on_failure),
                max_restarts=record.max_restarts if max_restarts is None else max_restarts,
                run_dir=run_dir,
                first_port=port,
            )
    file = _file_of_then(run_dir, record) if cluster_file is None else cluster_file.absolute()
    with _in_folder(record.folder):
        return launch(
            file,
            argv or record.argv,
            names=names or record.names,
            on_failure=on_failure or OnFailure(record.on_failure),
            max_restarts=record.max_restarts if max_restarts is None else max_restarts,
            run_dir=run_dir,
            first_port=port,
        )


def _resume_on_ray(
    run_dir: Path,
    record: LaunchRecord,
    cluster_file: Path | None,
    argv: Sequence[str],
    on_failure: OnFailure | None,
    max_restarts: int | None,
) -> int:
    """As many nodes as then, wherever Ray has room for them now."""
    try:
        options = RayOptions(**(record.ray or {}))
    except TypeError as error:
        raise ConfigError(f"{run_dir}: its record of a launch on Ray is damaged ({error}); launch it anew") from error
    file = Path(record.cluster_file) if record.cluster_file else None
    with _in_folder(record.folder):
        return launch_on_ray(
            file if cluster_file is None else cluster_file.absolute(),
            argv or record.argv,
            options,
            on_failure=on_failure or OnFailure(record.on_failure),
            max_restarts=record.max_restarts if max_restarts is None else max_restarts,
            run_dir=run_dir,
        )


def _file_of_then(run_dir: Path, record: LaunchRecord) -> Path:
    """The cluster file that the run was launched with; its copy in the run folder if it has changed since."""
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    file, copy = Path(record.cluster_file), run_dir / CONFIG_NAME
    if not copy.exists():
        return file
    if file.exists():
        # Custom rules and methods may lie beside it.
        config = ClusterConfig.load(file)
        if record.first_port is not None:
            config = config.with_ports_from(record.first_port)
        if config.to_yaml() == copy.read_text(encoding="utf-8"):
            return file
    tell(f"dpwa: {file} is not what this run was launched with; the run folder's copy is used, {copy}")
    return copy


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Be in a folder: a command's relative paths mean what they meant when it was given.

    Raises:
        ConfigError: it is gone.
    """
    before = os.getcwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(f"the folder in which this run was launched cannot be entered: {error}") from error
    try:
        yield
    finally:
        os.chdir(before)
