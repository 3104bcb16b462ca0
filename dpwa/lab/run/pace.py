"""How long trials take on this machine, learned from those that have finished.

Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from dpwa.lab.study.trial import Trial

__all__ = ["Pace", "duration_text"]

_LEAST_DEADLINE_S = 600.0
_DEADLINE_FACTOR = 6.0
_LONGEST_EPOCH_S = 360.0
"""Before anything has been learned: ten times what the slowest network needs on one core of a server of 2023."""


class Pace:
    """Seconds per epoch, by data set and network."""

    def __init__(self) -> None:
        self._taken_s: dict[tuple[str, str], float] = {}
        self._epochs: dict[tuple[str, str], float] = {}

    def learn(self, trial: Trial, taken_s: float) -> None:
        """Takes note of a trial that has finished."""
        key = _key(trial)
        self._taken_s[key] = self._taken_s.get(key, 0.0) + taken_s
        self._epochs[key] = self._epochs.get(key, 0.0) + _epochs(trial)

    def seconds(self, trials: Iterable[Trial], running: tuple[Trial, float] | None = None) -> float | None:
        """About how long these trials will take; None while nothing is known of one of them.

        Args:
            trials: the trials.
            running: a trial that has not finished yet, and how long it seems to take.
        """
        epoch_s = {key: self._taken_s[key] / self._epochs[key] for key in self._taken_s}
        if running is not None:
            trial, taken_s = running
            epoch_s.setdefault(_key(trial), taken_s / _epochs(trial))
        total_s = 0.0
        for trial in trials:
            if _key(trial) not in epoch_s:
                return None
            total_s += epoch_s[_key(trial)] * _epochs(trial)
        return total_s

    def deadline_s(self, trial: Trial) -> float:
        """How long a trial may take before it counts as hanging, in seconds."""
        expected_s = self.seconds([trial])
        if expected_s is None:
            return _LEAST_DEADLINE_S + _LONGEST_EPOCH_S * _epochs(trial)
        return max(_LEAST_DEADLINE_S, _DEADLINE_FACTOR * expected_s)


def _key(trial: Trial) -> tuple[str, str]:
    return trial.settings.data, trial.settings.model


def _epochs(trial: Trial) -> float:
    """Passes over the data; processes that wait for each other are as slow as the slowest of them."""
    slow = trial.settings.slow
    return trial.settings.n_epochs * (slow.factor if slow is not None and trial.kind.waits else 1.0)


def duration_text(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
