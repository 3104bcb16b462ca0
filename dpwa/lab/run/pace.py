"""How long trials take on this machine, learned from those that have finished.

Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from dpwa.lab.study.trial import Trial

__all__ = ["Pace", "Patience", "duration_text"]

_Key = tuple[str, str, str]

_LEAST_DEADLINE_S = 600.0
_DEADLINE_FACTOR = 6.0
_LONGEST_EPOCH_S = 360.0
"""Before anything has been learned: ten times what the slowest network needs on one core of a server of 2023."""


class Pace:
    """Seconds per epoch, by data set, network and engine."""

    def __init__(self) -> None:
        self._taken_s: dict[_Key, float] = {}
        self._epochs: dict[_Key, float] = {}

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
        """How long a trial may take before it may count as hanging, in seconds; see `Patience`."""
        expected_s = self.seconds([trial])
        if expected_s is None:
            return _LEAST_DEADLINE_S + _LONGEST_EPOCH_S * _epochs(trial)
        return max(_LEAST_DEADLINE_S, _DEADLINE_FACTOR * expected_s)


class Patience:
    """Tells a trial that hangs from one that is slow: its time is over, and rounds have stopped to end.

    Small batches, few cores and slow nodes can make an honest trial many times slower than others on the same data.

    Args:
        deadline_s: when its time is over.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._rounds = 0.0
        self._newest_s = 0.0
        self._longest_s = 0.0

    def is_over(self, elapsed_s: float, rounds: float) -> bool:
        """Whether the trial hangs.

        Args:
            elapsed_s: since its start.
            rounds: that have ended, the mean over its processes.
        """
        if rounds > self._rounds:
            self._longest_s = max(self._longest_s, elapsed_s - self._newest_s)
            self._rounds, self._newest_s = rounds, elapsed_s
        silent_s = elapsed_s - self._newest_s
        usual_s = max(_LEAST_DEADLINE_S, _DEADLINE_FACTOR * self._longest_s) if self._rounds else 0.0
        return elapsed_s > self._deadline_s and silent_s > usual_s


def _key(trial: Trial) -> _Key:
    return trial.settings.data, trial.settings.model, trial.settings.engine


def _epochs(trial: Trial) -> float:
    """Passes over the data; whoever waits for a slow process, or for all of its work, is as slow as that one."""
    slow = trial.settings.slow
    return trial.settings.n_epochs * (
        slow.factor if slow is not None and (trial.kind.waits or slow.keeps_work) else 1.0
    )


def duration_text(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
