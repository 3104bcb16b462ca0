"""Runs the trainings of a study, one after the other, and measures each when its processes have ended.

What has finished is kept, so that a run goes on where it stopped. A training that fails is told and does not stop the
rest.

Must not know: torch, how strategies work. Runs in: the main thread.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dpwa.lab.run.cost import Pace, estimate_s, shown_duration, threads_of
from dpwa.lab.run.mpi_segments import remove_mpi_segments
from dpwa.lab.run.progress import RunProgress
from dpwa.lab.run.run_folder import (
    RunFolder,
    is_result,
    last_lines,
    newest_round,
    read_json,
    remove_snapshots,
    shown_path,
)
from dpwa.lab.run.starting import (
    command_of,
    data_command,
    environment_of,
    evaluation_command,
    held_to,
    machine_cores,
    missing_for,
    prepare,
)
from dpwa.lab.run.supervision import Ended, EndedBySignal, run_to_end, signals_as_exceptions
from dpwa.lab.study.kinds import Start
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder, write_json

__all__ = ["Runner"]

_LEAST_DEADLINE_S = 600.0
_DEADLINE_IN_ESTIMATES = 6.0
_SHOWN_LINES = 12
_SEARCHED_LINES = 300
_SHARE_TO_TRUST = 0.15
"""From this share of a training on, its own pace tells better than the estimate when it will be over."""

_ERROR_LINES = (re.compile(r"\b\w+(?:Error|Exception): .*"), re.compile(r"dpwa: node .* failed: .*"))
"""What tells why processes failed: an exception that ended one, else what `dpwa launch` says. The first is the cause of
the others."""

_CAUSE = "The above exception was the direct cause of the following exception:"
"""After an exception that was turned into one which says more to a person."""


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a training.

    Attributes:
        trial: the training.
        status: done, failed or skipped.
        reason: why it is not done, in one line.
        accuracy: of the final model, 0..1; None if it has none.
        is_expected: nothing is wrong with the run: done, skipped, or failed because the study kills a node.
    """

    trial: Trial
    status: str
    reason: str = ""
    accuracy: float | None = None
    is_expected: bool = True

    @classmethod
    def of_result(cls, trial: Trial, result: dict[str, Any]) -> TrialOutcome:
        """What result.json says."""
        reason, accuracy = str(result.get("reason", "")), result.get("final_accuracy")
        return cls(trial, str(result.get("status")), reason, accuracy, is_expected=is_result(trial, result))


class Runner:
    """A run of a study in a folder.

    Args:
        study: the study.
        trials: the trainings to make.
        folder: of the run.
        data_dir: folder of the data sets; None leaves DPWA_DATA_DIR as it is.
    """

    def __init__(self, study: Study, trials: Sequence[Trial], folder: Path, data_dir: Path | None = None) -> None:
        self.folder = RunFolder(folder.absolute())
        self._study = study
        self._trials = tuple(trials)
        self._data_dir = data_dir
        self._cores = machine_cores()
        self._pace = Pace()
        self._missing = {trial.kind.name: missing_for(trial) for trial in self._trials}

    def waiting(self) -> list[Trial]:
        """The trainings that have not been made, and can be."""
        return [
            trial for trial in self._trials if self.folder.result(trial) is None and not self._missing[trial.kind.name]
        ]

    def estimate_s(self) -> float:
        """How long they will take."""
        return self._pace.seconds(self.waiting(), self._cores)

    def run(self, console: Console) -> int:
        """Makes the trainings that are missing.

        Args:
            console: where to show how it goes.

        Returns:
            The exit code: 0 if all is done or skipped, 1 if some failed that should not, 2 if data are missing, and
            nothing was begun, 128 + N after signal N.

        Raises:
            ConfigError: the folder cannot be used.
        """
        with self.folder.taken():
            self.folder.keep(self._study)
            kept = [trial for trial in self._trials if self.folder.result(trial) is not None]
            with signals_as_exceptions():
                try:
                    if not self._has_data(console):
                        return 2
                    with RunProgress(console, len(self._trials), len(kept)) as progress:
                        if kept:
                            progress.say(
                                f"{len(kept)} of {len(self._trials)} trainings were finished before and are kept"
                            )
                        outcomes = [self._outcome(trial, progress) for trial in self._trials]
                except EndedBySignal as ended:
                    _print(console, f"ended by {ended}; the same command goes on from here")
                    return 128 + ended.number
        self._summarise(outcomes, console)
        return 0 if all(outcome.is_expected for outcome in outcomes) else 1

    def _has_data(self, console: Console) -> bool:
        """Loads what the trainings need, once for all of them, unless an earlier run has; what is wrong it tells."""
        needed = {trial.settings.data: self.folder.of(trial) for trial in self.waiting()}
        for name, folder in needed.items():
            cache = folder.data_cache(name)
            if cache.exists():
                continue
            _print(console, f"{name}: being read, once for all trainings")
            # In a session of its own: Ctrl-C comes to this program alone, which then ends the other.
            ended = subprocess.run(
                data_command(name, cache),
                env=environment_of(self._cores, self._data_dir),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                check=False,
            )
            if ended.returncode != 0:
                others = [other for other in needed if other != name]
                hint = f"; to leave these trainings out: --only data={others[0]}" if others else ""
                _print(console, f"{name} cannot be had, and no training was begun{hint}")
                return False
        return True

    def _outcome(self, trial: Trial, progress: RunProgress) -> TrialOutcome:
        result = self.folder.result(trial)
        if result is not None:
            return TrialOutcome.of_result(trial, result)
        missing = self._missing[trial.kind.name]
        if missing is not None:
            self._write_down(trial, self.folder.empty(trial), "skipped", missing)
            progress.end(_name(trial), f"skipped: {missing}")
            return TrialOutcome(trial, "skipped", missing)
        progress.begin(_name(trial), self.estimate_s())
        if why := self.folder.why_again(trial):
            progress.say(f"{_name(trial)}: made again, {why}")
        try:
            outcome, ended = self._make(trial, progress)
        finally:
            if trial.kind.start is Start.MPI:
                remove_mpi_segments()
        progress.end(
            _name(trial),
            f"{_shown(outcome)}, {shown_duration(ended.wall_s)}; {shown_duration(self.estimate_s())} left in all",
        )
        if not outcome.is_expected:
            log = self.folder.of(trial).output_log
            progress.say(f"  what it printed last, of {log}:")
            for line in last_lines(log, _SHOWN_LINES):
                progress.say(f"  | {line}")
        return outcome

    def _make(self, trial: Trial, progress: RunProgress) -> tuple[TrialOutcome, Ended]:
        """One training with its evaluation, from an empty folder."""
        folder = self.folder.empty(trial)
        prepare(trial, folder, self._study.path.parent)
        estimated_s = estimate_s(trial, self._cores)
        deadline_s = max(_LEAST_DEADLINE_S, _DEADLINE_IN_ESTIMATES * estimated_s * self._pace.ratio)
        later_s = self._pace.seconds([other for other in self.waiting() if other != trial], self._cores)

        def on_wait(elapsed_s: float) -> None:
            share = min(1.0, newest_round(folder) / trial.rounds)
            left_s = max(0.0, self._pace.ratio * estimated_s - elapsed_s)
            if share >= _SHARE_TO_TRUST:
                left_s = elapsed_s * (1 - share) / share
            progress.tell(share, left_s + later_s)

        with held_to(trial.settings.cores):
            ended = run_to_end(
                command_of(trial, folder),
                environment_of(threads_of(trial, self._cores), self._data_dir),
                folder.output_log,
                deadline_s=deadline_s,
                on_wait=on_wait,
            )
        reason = _reason(ended, deadline_s, folder)
        measured = run_to_end(
            evaluation_command(folder, exit_code=ended.exit_code, reason=reason, wall_s=ended.wall_s),
            environment_of(self._cores, self._data_dir),
            folder.output_log,
            deadline_s=deadline_s,
        )
        outcome = self._measured(trial, folder, reason, measured)
        if outcome.status == "done":
            self._pace.learn(estimated_s, ended.wall_s + measured.wall_s)
        return outcome, ended

    def _measured(self, trial: Trial, folder: TrialFolder, reason: str, measured: Ended) -> TrialOutcome:
        """What result.json says, if the evaluation has written one."""
        result = read_json(folder.result_json)
        if measured.exit_code != 0 or result is None:
            reason = reason or f"its evaluation failed: {_error_in(folder) or f'exit code {measured.exit_code}'}"
            self._write_down(trial, folder, "failed", reason)
            return TrialOutcome(trial, "failed", reason, is_expected=False)
        remove_snapshots(folder)
        return TrialOutcome.of_result(trial, result)

    @staticmethod
    def _write_down(trial: Trial, folder: TrialFolder, status: str, reason: str) -> None:
        """The result of a training that could not be measured, for the report."""
        write_json(folder.result_json, {"trial": trial.to_json(), "status": status, "reason": reason})

    def _summarise(self, outcomes: Sequence[TrialOutcome], console: Console) -> None:
        """One line per row, and what to do next."""
        rows: dict[str, list[TrialOutcome]] = {}
        for outcome in outcomes:
            rows.setdefault(outcome.trial.row, []).append(outcome)
        width = max(map(len, rows))
        for label, found in rows.items():
            reached = [outcome.accuracy for outcome in found if outcome.accuracy is not None]
            words = []
            if reached:
                words.append(f"{sum(reached) / len(reached):6.2%} (mean of {len(reached)})")
            for status in ("failed", "skipped"):
                reasons = [outcome.reason for outcome in found if outcome.status == status]
                if reasons:
                    words.append(f"{len(reasons)} {status}: {reasons[0]}")
            _print(console, f"{label:{width}}  {'; '.join(words)}")
        _print(console, f"Report: dpwa lab report {shown_path(self.folder.path)}")


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _name(trial: Trial) -> str:
    return f"{trial.row} (seed {trial.seed})"


def _shown(outcome: TrialOutcome) -> str:
    if outcome.status == "done" and outcome.accuracy is not None:
        return f"done, {outcome.accuracy:.2%}"
    return f"{outcome.status}: {outcome.reason}"


def _reason(ended: Ended, deadline_s: float, folder: TrialFolder) -> str:
    """Why a training has failed, in one line; empty if it has not."""
    if ended.is_late:
        return f"not done within {shown_duration(deadline_s)}"
    if ended.exit_code == 0:
        return ""
    if ended.exit_code < 0:
        return f"killed by {signal.Signals(-ended.exit_code).name}"
    return _error_in(folder) or f"exit code {ended.exit_code}"


def _error_in(folder: TrialFolder) -> str:
    """The line of the log that tells best what went wrong, shortened; empty if none does."""
    lines = last_lines(folder.output_log, _SEARCHED_LINES)
    for pattern in _ERROR_LINES:
        for number, line in enumerate(lines):
            # Python leaves a line empty before it; other processes print lines between.
            if (found := pattern.search(line)) and not any(_CAUSE in later for later in lines[number + 1 : number + 6]):
                return found[0] if len(found[0]) <= 200 else f"{found[0][:197]}..."
    return ""
