"""How long trainings will take: an estimate before, and a better one while they run.

The numbers were measured on one core of a server of 2023; what other machines do is learned from finished trainings.

Must not know: torch, processes, files. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpwa.lab.study.trial import Trial

__all__ = ["ASK_ABOVE_S", "Pace", "cores_of", "estimate_s", "shown_duration", "threads_of", "training_estimate_s"]

ASK_ABOVE_S = 3600.0
"""What takes longer than this is not begun unasked."""

_SAMPLE_S = {"mcmahan_cnn": 0.60e-3, "light_cnn": 0.15e-3, "mlp": 0.012e-3}
"""Seconds to train on one sample with one core."""

_EVALUATION_SHARE = 1 / 3
"""Of a sample's cost when it is only classified: there is no way back."""

_SAMPLES = {
    "digits": (1438, 359),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
}
"""Of training, and held out."""

_START_S = 4.0
_START_OF_PROCESS_S = 2.5
"""Core-seconds until a process has imported torch and loaded its data."""


def cores_of(trial: Trial, machine_cores: int) -> int:
    """How many cores the processes of a training together may use."""
    return min(machine_cores, trial.settings.cores or machine_cores)


def threads_of(trial: Trial, machine_cores: int) -> int:
    """Threads of each process: the cores divided equally among those that compute, at least one."""
    computing = len(trial.process_names) - trial.kind.has_server
    return max(1, cores_of(trial, machine_cores) // computing)


def training_estimate_s(trial: Trial, machine_cores: int) -> float:
    """Seconds from the start of a training's processes to their end.

    Args:
        trial: the training.
        machine_cores: cores that this program may use.
    """
    settings, cores = trial.settings, cores_of(trial, machine_cores)
    processes = len(trial.process_names)
    in_use = min(cores, processes * threads_of(trial, machine_cores))
    samples = settings.n_epochs * _SAMPLES[settings.data][0]
    # Those that wait for each other are as slow as the slowest of them.
    factor = settings.slow.factor if settings.slow is not None and trial.kind.waits else 1.0
    start_s = _START_S + _START_OF_PROCESS_S * processes / cores
    return start_s + factor * samples * _SAMPLE_S[settings.model] / in_use


def estimate_s(trial: Trial, machine_cores: int) -> float:
    """Seconds that a training takes with its evaluation.

    Args:
        trial: the training.
        machine_cores: cores that this program may use.
    """
    settings = trial.settings
    models = (trial.rounds + 1 if settings.eval_acc else 1) + len(trial.process_names)
    each_s = _EVALUATION_SHARE * _SAMPLE_S[settings.model] * _SAMPLES[settings.data][1] / machine_cores
    return training_estimate_s(trial, machine_cores) + _START_S + models * each_s


@dataclass
class Pace:
    """How this machine compares with the estimates, learned from what has finished.

    Attributes:
        estimated_s: sum of the estimates of finished trainings.
        taken_s: what these took.
    """

    estimated_s: float = 0.0
    taken_s: float = 0.0

    def learn(self, estimated_s: float, taken_s: float) -> None:
        """A training has finished."""
        self.estimated_s += estimated_s
        self.taken_s += taken_s

    @property
    def ratio(self) -> float:
        """Seconds taken per second estimated."""
        return self.taken_s / self.estimated_s if self.estimated_s > 0 else 1.0

    def seconds(self, trials: Iterable[Trial], machine_cores: int) -> float:
        """How long these trainings will take."""
        return self.ratio * sum(estimate_s(trial, machine_cores) for trial in trials)


def shown_duration(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
