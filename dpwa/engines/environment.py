"""What the environment says of the engine that has started this process: which, and which of how many this is.

An engine inside another is the one that counts: `srun torchrun ...` starts by torchrun, and `mpiexec` within an
allocation of SLURM by MPI. Hence the order of `ENGINES`.

Must not know: the config, sockets, files, torch. Runs in: any thread; pure, but for `local_rank` without an argument.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dpwa.errors import ConfigError

__all__ = ["ENGINES", "LOCAL_RANK", "MAX_RANKS", "Engine", "Start", "local_rank", "start_of"]

LOCAL_RANK = "DPWA_LOCAL_RANK"
"""Set by `dpwa launch`: the node's place among those of its machine."""

MAX_RANKS = 4096
"""Most processes of one start; above that, what is in the environment is a mistake."""


@dataclass(frozen=True)
class Engine:
    """The variables of one engine.

    Attributes:
        name: as its users call it.
        rank: has this process's place, from 0.
        size: has the number of processes.
        also: must be there as well.
        marks: without all of these, the others are left over from something else, and mean nothing.
        job: what tells one job from another, as far as these are set, however often it is started again.
        attempt: has the number of times that it was started again; "" for none.
        host: has the name of this host; "" for none.
        local_rank: has this process's place among those of its machine.
        local_size: has the number of these; "" for none.
    """

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str = ""
    also: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    attempt: str = ""
    host: str = ""


ENGINES = (
    Engine(
        "torchrun",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        also=("MASTER_ADDR", "MASTER_PORT"),
        job=("TORCHELASTIC_RUN_ID",),
        attempt="TORCHELASTIC_RESTART_COUNT",
    ),
    Engine(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    Engine("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", marks=("PMI_FD",), host="PMI_HOSTNAME"),
    # A batch script by itself has SLURM_PROCID, too; only what srun has started is in a step.
    Engine(
        "SLURM",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        marks=("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        attempt="SLURM_RESTART_COUNT",
        host="SLURMD_NODENAME",
    ),
)
"""In the order in which they are looked for."""


@dataclass(frozen=True)
class Start:
    """One process of several that an engine has started.

    Attributes:
        engine: its name.
        rank: which of them this is, from 0.
        size: how many there are.
        job: the same for all of them and whenever they are started again; "" where the engine has no name for it.
        attempt: how often they were started again.
        host: name by which the engine knows this host; "" if it does not say.
        others: engines whose variables are there as well, and do not count.
    """

    engine: str
    rank: int
    size: int
    job: str
    attempt: str = "0"
    host: str = ""
    others: tuple[str, ...] = ()


def start_of(environment: Mapping[str, str]) -> Start | None:
    """How this process was started; None if by no engine that is known here, or as the only one.

    Raises:
        ConfigError: an engine's variables are incomplete, or make no sense.
    """
    found = [engine for engine in ENGINES if _is_there(engine, environment)]
    if not found:
        return None
    engine = found[0]
    missing = [name for name in (engine.rank, engine.size, *engine.also) if not environment.get(name)]
    if missing:
        there = engine.rank if engine.rank not in missing else engine.size
        raise ConfigError(
            f"the environment of {engine.name} is incomplete: {there} is set, and {', '.join(missing)} not; start the "
            f"script with {engine.name}, or unset {there}"
        )
    rank, size = _number(engine.name, engine.rank, environment), _number(engine.name, engine.size, environment)
    if not (1 <= size <= MAX_RANKS and 0 <= rank < size):
        raise ConfigError(
            f"the environment of {engine.name}: expected {engine.rank} below {engine.size}, and that from 1 to "
            f"{MAX_RANKS}, got {rank} and {size}"
        )
    if size == 1:
        return None
    # "none" is what torchrun calls every job to which its user has given no id.
    parts = [environment[name] for name in engine.job if environment.get(name) not in (None, "", "none")]
    return Start(
        engine.name,
        rank,
        size,
        "-".join([engine.name.replace(" ", "").lower(), *parts]) if parts else "",
        environment.get(engine.attempt) or "0",
        environment.get(engine.host, ""),
        tuple(other.name for other in found[1:]),
    )


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This process's place among those of its machine, from 0, whatever has started it; 0 if it was started by itself.

    It says which GPU a process may take: `torch.device("cuda", dpwa.local_rank() % torch.cuda.device_count())`. Within
    an island, the places of all its processes differ, and those of the next island of that machine follow.

    Args:
        environment: where it stands; None: this process's.

    Raises:
        ConfigError: a variable that should have it makes no sense.
    """
    environment = os.environ if environment is None else environment
    found = (engine for engine in ENGINES if _is_there(engine, environment) and environment.get(engine.local_rank))
    engine = next(found, None)
    of_engine = 0 if engine is None else _number(engine.name, engine.local_rank, environment)
    if not environment.get(LOCAL_RANK):
        return of_engine
    of_node = _number("dpwa launch", LOCAL_RANK, environment)
    if engine is None or not environment.get(engine.local_size):
        return of_node
    return of_node * _number(engine.name, engine.local_size, environment) + of_engine


def _is_there(engine: Engine, environment: Mapping[str, str]) -> bool:
    if not all(environment.get(name) for name in engine.marks):
        return False
    return bool(environment.get(engine.rank) or environment.get(engine.size))


def _number(engine: str, name: str, environment: Mapping[str, str]) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ConfigError(f"the environment of {engine}: expected a whole number in {name}, got {text[:40]!r}")
    return int(text)
