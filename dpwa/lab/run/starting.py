"""What starts the processes of a trial: command, environment, cluster file; and which packages are missing for it.

Runs in: the main thread.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dpwa.config.cluster import FIRST_PORT
from dpwa.config.topology import with_folder
from dpwa.lab.strategies.environments import ENVIRONMENTS
from dpwa.lab.study.kinds import Start
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.launch.ports import free_ports

__all__ = [
    "absent_packages",
    "command_of",
    "data_command",
    "environment_of",
    "evaluation_command",
    "held_to",
    "missing_for",
    "prepare",
    "threads_of",
]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MOST_RESTARTS = 3
_OF_A_NODE = (
    "DPWA_CONFIG",
    "DPWA_NODE",
    "DPWA_LOCAL_RANK",
    "DPWA_ON_FAILURE",
    "DPWA_RANK",
    "DPWA_RUN_DIR",
    "DPWA_WORLD_SIZE",
)


def threads_of(trial: Trial, machine_cores: int) -> int:
    """Threads of each process: the cores divided equally among those that compute, at least one."""
    if trial.start is Start.IN_MEMORY:
        return 1  # one thread gives the same sums in every run
    cores = min(machine_cores, trial.settings.cores or machine_cores)
    computing = len(trial.process_names) - trial.kind.has_server
    return max(1, cores // computing)


def missing_for(trial: Trial) -> str | None:
    """What to install for a trial, in words; None if nothing is missing."""
    if trial.start is Start.MPI and (importlib.util.find_spec("mpi4py") is None or _mpiexec() is None):
        return "install dpwa[mpi]"
    environment = ENVIRONMENTS.get(trial.kind.package)
    return environment.why_not() if environment is not None and environment.python() is None else None


def absent_packages(trials: Sequence[Trial]) -> list[str]:
    """The packages that no trial of these can do without and that are not installed, those of their data included."""
    needed = ["torch"] if trials else []
    of_data = {"digits": "sklearn", "mnist": "torchvision", "fashion_mnist": "torchvision", "cifar10": "torchvision"}
    needed += dict.fromkeys(of_data[data] for trial in trials if (data := trial.settings.data) in of_data)
    return [name for name in needed if importlib.util.find_spec(name) is None]


def prepare(trial: Trial, folder: TrialFolder, study_folder: Path) -> None:
    """Write what the processes read before they start.

    Args:
        trial: the trial.
        folder: its folder, which exists.
        study_folder: what paths in the study file are relative to.

    Raises:
        DpwaError: there are not enough free ports.
    """
    names = trial.process_names
    if trial.start is Start.LAUNCH:
        ports = free_ports(len(names))
    elif trial.start is Start.IN_MEMORY and trial.kind.is_method:
        ports = list(range(FIRST_PORT, FIRST_PORT + len(names)))  # nobody listens there
    else:
        return
    values = _cluster_values(trial, study_folder, ports)
    folder.cluster_yaml.write_text(yaml.safe_dump(values, sort_keys=False, width=120), encoding="utf-8")


def _cluster_values(trial: Trial, study_folder: Path, ports: Sequence[int]) -> dict[str, Any]:
    names = trial.process_names
    nodes = [{"name": name, "port": port} for name, port in zip(names, ports, strict=True)]
    # A row is the method that it is named after: nothing honest is cut unless the row says so.
    values: dict[str, Any] = {"run": trial.study, "nodes": nodes, "seed": trial.seed, "guard": "finite"}
    if trial.kind.has_server:
        from dpwa.lab.strategies.federated.cluster import cluster_settings  # noqa: PLC0415 - only for these

        values.update(cluster_settings(trial.settings, names, trial.seed))
    if trial.kind.is_method:
        values["method"] = trial.settings.strategy
        values.update(with_folder(trial.settings.cluster, study_folder))
    return values


def command_of(trial: Trial, folder: TrialFolder) -> list[str]:
    """What starts the processes of a trial."""
    path = str(folder.path)
    worker = [sys.executable, "-m", "dpwa.lab.worker", path]
    if trial.start is Start.MPI:
        # mpi4py's own runner ends all processes when one fails; without it the others would wait for ever.
        python, *module = worker
        return [str(_mpiexec()), "-n", str(len(trial.process_names)), python, "-m", "mpi4py", *module]
    if trial.start is Start.TORCHRUN:
        restarting = ["--standalone", f"--nproc-per-node={trial.settings.nodes}", f"--max-restarts={_MOST_RESTARTS}"]
        return [sys.executable, "-m", "torch.distributed.run", *restarting, *worker[1:]]
    if trial.start is Start.IN_MEMORY:
        return [sys.executable, "-m", "dpwa.lab.strategies.in_memory.process", path]
    if trial.start is Start.TENSORFLOW:
        return [sys.executable, "-m", "dpwa.lab.strategies.tensorflow.mirrored", path]
    if trial.kind.package:
        worker[0] = str(ENVIRONMENTS[trial.kind.package].python())
    return [sys.executable, "-m", "dpwa", "launch", str(folder.cluster_yaml), "--run-dir", path, "--", *worker]


def evaluation_command(folder: TrialFolder, *, exit_code: int, reason: str, wall_s: float) -> list[str]:
    """What evaluates the snapshots of a trial."""
    module = [sys.executable, "-m", "dpwa.lab.training.evaluation", str(folder.path)]
    return [*module, f"--exit-code={exit_code}", f"--reason={reason}", f"--wall-s={wall_s:.3f}"]


def environment_of(threads: int, data_dir: Path | None, modules: Path | None = None) -> dict[str, str]:
    """The environment of a process of the lab.

    Args:
        threads: of each process.
        data_dir: folder of the data sets; None keeps DPWA_DATA_DIR as it is.
        modules: a folder in which Python is to look for modules, too: a user's own methods, models and data sets.
    """
    found = {key: value for key, value in os.environ.items() if key not in _OF_A_NODE}
    found.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    found["PYTHONUNBUFFERED"] = "1"
    if modules is not None:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [found.get("PYTHONPATH"), str(modules.absolute())]))
    given = data_dir if data_dir is not None else found.get("DPWA_DATA_DIR")
    if given:
        found["DPWA_DATA_DIR"] = str(Path(given).absolute())
    return found


def data_command(name: str, cache: Path) -> list[str]:
    """What loads a data set into one file for the whole run."""
    return [sys.executable, "-m", "dpwa.lab.training.data", name, str(cache)]


@contextmanager
def held_to(cores: int | None) -> Iterator[None]:
    """Restricts processes that start meanwhile, with all that they start, to this many cores.

    Args:
        cores: how many; None: no restriction, as on systems that have none.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def _mpiexec() -> Path | None:
    """The one installed beside the interpreter, otherwise the one in PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    return None if found is None else Path(found)
