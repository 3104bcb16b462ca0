"""The strategies by name, and what the lab must know of each before it starts one.

Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dpwa.custom_code import is_own
from dpwa.methods.base import Method
from dpwa.methods.registry import METHODS

__all__ = ["STRATEGIES", "Start", "StrategyKind", "is_strategy", "kind_of", "process_names"]


class Start(str, Enum):
    """What starts the processes of a strategy."""

    LAUNCH = "launch"
    """`dpwa launch`: one process per node, and the server's if the strategy has one."""
    MPI = "mpi"
    """`mpiexec`."""
    TORCHRUN = "torchrun"
    """`torchrun`, which starts all processes anew when one fails."""
    IN_MEMORY = "in_memory"
    """One process that holds all nodes."""
    TENSORFLOW = "tensorflow"
    """One process of a Python that has TensorFlow."""


@dataclass(frozen=True)
class StrategyKind:
    """One strategy.

    Attributes:
        name: its name in a study file.
        text: what it does, in one line.
        start: what starts its processes.
        is_method: an averaging method, with the same name in a cluster file.
        is_one_process: a single process sees all data, whatever `nodes` says.
        splits_batch: every update uses one batch of all data, and each process computes a part of it. There is one
            model, and no partition.
        waits: the processes wait for each other, so that a slow one delays all. Otherwise they share the work in
            proportion to their speed.
        has_server: one more process holds the model between the rounds.
        extra: the extra of dpwa that it needs besides the lab's; "" for none.
        package: a package that may be in an environment of its own, with a Python of its own; "" for none.
    """

    name: str
    text: str
    start: Start = Start.LAUNCH
    is_method: bool = False
    is_one_process: bool = False
    splits_batch: bool = False
    waits: bool = False
    has_server: bool = False
    extra: str = ""
    package: str = ""


STRATEGIES: dict[str, StrategyKind] = {
    kind.name: kind
    for kind in (
        StrategyKind("single", "one process, all data", is_one_process=True),
        *(StrategyKind(method.name, method.summary, is_method=True) for method in METHODS.values()),
        StrategyKind("fedavg", "a server averages what clients have learned locally", waits=True, has_server=True),
        StrategyKind("fedprox", "fedavg, with clients held near the round's model", waits=True, has_server=True),
        StrategyKind("param_avg", "MPI: average parameters every avg_freq epochs", Start.MPI, waits=True, extra="mpi"),
        StrategyKind("w_param_avg", "MPI: the same, weighted by distance", Start.MPI, waits=True, extra="mpi"),
        StrategyKind(
            "parallel_sgd",
            "MPI: average gradients every batch",
            Start.MPI,
            splits_batch=True,
            waits=True,
            extra="mpi",
        ),
        StrategyKind("ddp", "torch's DistributedDataParallel", splits_batch=True, waits=True),
        StrategyKind(
            "ddp_restarts",
            "the same under torchrun --max-restarts: after a failure all go on from the last epoch's checkpoint",
            Start.TORCHRUN,
            splits_batch=True,
            waits=True,
        ),
        StrategyKind("allreduce_every_h", "every_steps local steps, then an all-reduce of the parameters", waits=True),
        StrategyKind(
            "custom_data_parallel",
            "one process, one replica per device or thread, gradients summed by hand",
            is_one_process=True,
            waits=True,
        ),
        StrategyKind(
            "tf_mirrored",
            "TensorFlow's MirroredStrategy",
            Start.TENSORFLOW,
            is_one_process=True,
            waits=True,
            extra="tensorflow",
            package="tensorflow",
        ),
        StrategyKind(
            "hivemind",
            "hivemind: local steps, and every every_steps an average with whoever is found",
            package="hivemind",
        ),
        StrategyKind(
            "decent_dp",
            "Decent-DP: each step averages with a neighbour in a ring, which all wait for",
            waits=True,
            package="decent_dp",
        ),
    )
}
"""All strategies with a word of their own, in the order in which they are listed."""


def is_strategy(word: str) -> bool:
    """Whether a study file may name a strategy so: by its word, or as "module:Class", a custom averaging method."""
    return is_own(word) or word in STRATEGIES


def kind_of(word: str) -> StrategyKind:
    """The strategy that a study file names.

    Raises:
        KeyError: there is none.
    """
    return StrategyKind(word, Method.summary, is_method=True) if is_own(word) else STRATEGIES[word]


def process_names(kind: StrategyKind, nodes: int) -> tuple[str, ...]:
    """Names of the processes and of their folders: w1, w2 …, and a server's at the end."""
    if kind.is_one_process:
        return ("w1",)
    names = tuple(f"w{number}" for number in range(1, nodes + 1))
    return (*names, "server") if kind.has_server else names
