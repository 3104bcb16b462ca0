"""Runs the trials of a study, and evaluates each when its processes have ended.

Trials whose times count have the machine to themselves, one after the other. Those in virtual time need one core each:
as many run side by side as there are cores.

Finished trials are kept, so that an interrupted run can be continued. A trial that fails is reported, and the others
still run.

Runs in: the main thread; while trials run, as a task of an event loop.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpwa.custom_code import is_own
from dpwa.lab.run.mpi_segments import remove_mpi_segments
from dpwa.lab.run.pace import Pace, Patience, duration_text
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
    missing_for,
    prepare,
    threads_of,
)
from dpwa.lab.run.supervision import Ended, EndedBySignal, Programs
from dpwa.lab.study.kinds import Start
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.machine import commit, machine_cores
from dpwa.launch.supervision import end_signals

__all__ = ["Runner"]

_SHOWN_LINES = 12
_SEARCHED_LINES = 300
_SHARE_TO_TRUST = 0.15
"""From this share of a trial on, its own speed predicts its end better than earlier trials do."""

_ERROR_LINES = (re.compile(r"\b\w+(?:Error|Exception): .*"), re.compile(r"dpwa: node .* failed: .*"))
"""Lines that say why processes failed: the exception that ended one, otherwise what `dpwa launch` says. The first
exception is the cause of the others."""

_CAUSE = "The above exception was the direct cause of the following exception:"
"""Stands between an exception and the clearer one that it was turned into."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        trial: the trial.
        status: done, failed or skipped.
        reason: why it is not done, in one line.
        accuracy: of the final model, 0..1; None without a final model.
        is_expected: the run went as it should: done, skipped, or failed in a study that kills a node.
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

    @property
    def text(self) -> str:
        """The outcome in words."""
        if self.status == "done" and self.accuracy is not None:
            return f"done, accuracy {self.accuracy:.2%}"
        return f"{self.status}: {self.reason}"


class Runner:
    """A run of a study in a folder; its methods, except `run`, change nothing.

    Args:
        study: the study.
        trials: the trials to run.
        folder: the run folder.
        data_dir: folder of the data sets; None keeps DPWA_DATA_DIR as it is.
        command: what starts the processes of a trial, such as on several hosts; None: `command_of`, on this one.
    """

    def __init__(
        self,
        study: Study,
        trials: Sequence[Trial],
        folder: Path,
        data_dir: Path | None = None,
        *,
        command: Callable[[Trial, TrialFolder], list[str]] | None = None,
    ) -> None:
        self.folder = RunFolder(folder.absolute())
        self._study = study
        self._trials = tuple(trials)
        self._data_dir = data_dir
        self._command = command
        self._cores = machine_cores()
        self._programs = Programs()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._missing = {trial.kind.name: missing_for(trial) for trial in self._trials}
        self._pace = Pace()
        for trial in self._trials:
            result = self.folder.result(trial)
            if result is not None and result.get("wall_s"):
                self._pace.learn(trial, result["wall_s"])

    def waiting(self) -> list[Trial]:
        """The trials that can be run and have no result yet."""
        return [
            trial
            for trial in self._trials
            if self.folder.result(trial) is None and self._missing[trial.kind.name] is None
        ]

    def seconds_left(self) -> float | None:
        """About how long these will take; None until a similar trial has finished."""
        return self._seconds_of(self.waiting())

    def _seconds_of(self, trials: Sequence[Trial], running: tuple[Trial, float] | None = None) -> float | None:
        shared = self._pace.seconds([trial for trial in trials if _shares_machine(trial)], running)
        alone = self._pace.seconds([trial for trial in trials if not _shares_machine(trial)], running)
        return None if shared is None or alone is None else shared / self._cores + alone

    def run(self, console: Console) -> int:
        """Runs the trials that have no result yet.

        Args:
            console: shows the progress.

        Returns:
            The exit code: 0 if every trial is done or skipped, 1 if one failed that should not have, 2 if data are
            missing (then no trial was started), 128 + N after signal N.

        Raises:
            ConfigError: the folder cannot be used.
        """
        with self.folder.taken():
            self.folder.keep(self._study)
            try:
                outcomes = asyncio.run(self._run(console))
            except EndedBySignal as ended:
                _print(console, f"ended by {ended}; run the same command again to continue")
                return 128 + ended.number
        if outcomes is None:
            return 2
        self._summarise(outcomes, console)
        return 0 if all(outcome.is_expected for outcome in outcomes) else 1

    def end(self, signal_number: int) -> None:
        """Ends a run in another thread, as this signal would end one in the main thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._programs.end, signal_number)

    async def _run(self, console: Console) -> list[TrialOutcome] | None:
        """One outcome per trial; None if data are missing."""
        self._loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        with end_signals(self._programs.end) if is_main else nullcontext():  # only a main thread gets signals
            if not await self._has_data(console):
                return None
            kept = sum(self.folder.result(trial) is not None for trial in self._trials)
            with RunProgress(console, len(self._trials), kept) as progress:
                if kept:
                    progress.say(f"{kept} of {len(self._trials)} trials have finished before and are kept")
                if others := self._other_commits():
                    progress.say(
                        f"some of them were made by {', '.join(others)}, not by {commit()}: a report needs --mixed; to "
                        f"run them again, remove their folders in {shown_path(self.folder.path / 'trials')}"
                    )
                outcomes = []
                for is_shared, group in groupby(self._trials, _shares_machine):
                    outcomes += await self._side_by_side(list(group), self._cores if is_shared else 1, progress)
                return outcomes

    async def _side_by_side(self, trials: Sequence[Trial], most: int, progress: RunProgress) -> list[TrialOutcome]:
        """One outcome per trial, of which so many run at a time. After an error or a signal no other begins."""
        room, errors = asyncio.Semaphore(most), list[BaseException]()

        async def outcome(trial: Trial) -> TrialOutcome | None:
            async with room:
                if errors:
                    return None
                try:
                    return await self._outcome(trial, progress)
                except BaseException as error:
                    errors.append(error)
                    raise

        tasks = [asyncio.create_task(outcome(trial)) for trial in trials]
        await asyncio.wait(tasks)  # also after an error: nothing may be left at work
        found = [task.result() for task in tasks]
        return [each for each in found if each is not None]

    def _other_commits(self) -> list[str]:
        """The commits that made the kept results, other than the present one."""
        found = (self.folder.result(trial) for trial in self._trials)
        made = {str(result.get("commit")) for result in found if result is not None and result.get("commit")}
        return sorted(made - {commit()})

    async def _has_data(self, console: Console) -> bool:
        """Loads the data sets that the trials need, unless an earlier run has."""
        needed = {trial.settings.data: self.folder.of(trial) for trial in self.waiting()}
        for name, folder in needed.items():
            if folder.data_cache(name).exists() and not (is_own(name) or name == "text_files"):
                continue
            folder.data_cache(name).unlink(missing_ok=True)  # a user's own data may have changed since
            _print(console, f"{name}: loading the data, once for all trials")
            if not await self._load(name, folder.data_cache(name), console):
                others = [other for other in needed if other != name]
                hint = f"; to leave out the trials that need it: --only data={others[0]}" if others else ""
                _print(console, f"{name} cannot be loaded, so no trial was started{hint}")
                return False
        return True

    async def _load(self, name: str, cache: Path, console: Console) -> bool:
        """Loads a data set; False if that failed, for the reason that is then shown."""
        lines: list[str] = []
        with console.status("") as status:  # in a terminal: how far a download is

            def show(_name: str, line: str) -> None:
                lines.append(line)
                status.update(Text(line))

            ended = await self._programs.run(data_command(name, cache), self._environment(self._cores), on_line=show)
        if ended.exit_code != 0:
            for line in lines[-_SHOWN_LINES:]:
                _print(console, line)
        return ended.exit_code == 0

    def _environment(self, threads: int) -> dict[str, str]:
        return environment_of(threads, self._data_dir, self._study.folder)

    async def _outcome(self, trial: Trial, progress: RunProgress) -> TrialOutcome:
        result = self.folder.result(trial)
        if result is not None:
            return TrialOutcome.of_result(trial, result)
        missing = self._missing[trial.kind.name]
        if missing is not None:
            self._write_down(trial, self.folder.empty(trial), "skipped", missing)
            progress.end(trial.title, f"skipped: {missing}")
            return TrialOutcome(trial, "skipped", missing)
        progress.begin(trial.title, self.seconds_left())
        if why := self.folder.why_again(trial):
            progress.say(f"{trial.title}: running again: {why}")
        try:
            outcome, ended = await self._run_trial(trial, progress)
        finally:
            if trial.kind.start is Start.MPI:
                remove_mpi_segments()
        progress.end(trial.title, f"{outcome.text}, {duration_text(ended.wall_s)}", self.seconds_left())
        if not outcome.is_expected:
            log = self.folder.of(trial).output_log
            progress.say(f"  the end of {log}:")
            for line in last_lines(log, _SHOWN_LINES):
                progress.say(f"  | {line}")
        return outcome

    async def _run_trial(self, trial: Trial, progress: RunProgress) -> tuple[TrialOutcome, Ended]:
        """One trial with its evaluation, from an empty folder."""
        folder = self.folder.empty(trial)
        prepare(trial, folder, self._study.folder)
        expected_s, deadline_s = self._pace.seconds([trial]), self._pace.deadline_s(trial)
        patience = Patience(deadline_s)
        later = [other for other in self.waiting() if other != trial]

        def is_over(elapsed_s: float) -> bool:
            rounds = newest_round(folder)
            share = min(1.0, rounds / trial.rounds)
            whole_s = elapsed_s / share if share >= _SHARE_TO_TRUST else expected_s
            left_s = None
            if whole_s is not None and (later_s := self._seconds_of(later, (trial, whole_s))) is not None:
                left_s = max(0.0, whole_s - elapsed_s) + later_s
            progress.update(trial.title, share, left_s)
            return patience.is_over(elapsed_s, rounds)

        with held_to(trial.settings.cores):
            ended = await self._programs.run(
                (self._command or command_of)(trial, folder),
                self._environment(threads_of(trial, self._cores)),
                log=folder.output_log,
                is_over=is_over,
            )
        reason = _reason(ended, folder)
        evaluated = Ended(0, 0.0)
        if ended.exit_code != 0 or read_json(folder.result_json) is None:  # a trial in memory evaluates itself
            evaluated = await self._programs.run(
                evaluation_command(folder, exit_code=ended.exit_code, reason=reason, wall_s=ended.wall_s),
                self._environment(1 if _shares_machine(trial) else self._cores),
                log=folder.output_log,
                is_over=lambda elapsed_s: elapsed_s > deadline_s,
            )
        outcome = self._evaluated(trial, folder, reason, evaluated)
        if outcome.status == "done":
            self._pace.learn(trial, ended.wall_s + evaluated.wall_s)
        return outcome, ended

    def _evaluated(self, trial: Trial, folder: TrialFolder, reason: str, evaluated: Ended) -> TrialOutcome:
        """What result.json says, if the evaluation has written one."""
        result = read_json(folder.result_json)
        if evaluated.exit_code != 0 or result is None:
            reason = reason or f"its evaluation failed: {_error_in(folder) or evaluated.reason}"
            self._write_down(trial, folder, "failed", reason)
            return TrialOutcome(trial, "failed", reason, is_expected=False)
        remove_snapshots(folder)
        return TrialOutcome.of_result(trial, result)

    @staticmethod
    def _write_down(trial: Trial, folder: TrialFolder, status: str, reason: str) -> None:
        """The result of a trial that could not be evaluated, for the report."""
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


def _shares_machine(trial: Trial) -> bool:
    """Whether others may run beside it: its times are virtual, and it needs one core."""
    return trial.start is Start.IN_MEMORY and trial.settings.cores is None


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _reason(ended: Ended, folder: TrialFolder) -> str:
    """Why a trial has failed, in one line; empty if it has not."""
    if ended.is_late:
        return f"not done within {duration_text(ended.wall_s)}, and no round has ended for long"
    if ended.exit_code == 0:
        return ""
    return ended.reason if ended.exit_code < 0 else _error_in(folder) or ended.reason


def _error_in(folder: TrialFolder) -> str:
    """The line of the log that says best what went wrong, shortened; empty if none does."""
    lines = last_lines(folder.output_log, _SEARCHED_LINES)
    for pattern in _ERROR_LINES:
        for number, line in enumerate(lines):
            # Python prints an empty line before it; other processes print lines between.
            if (found := pattern.search(line)) and not any(_CAUSE in later for later in lines[number + 1 : number + 6]):
                return found[0] if len(found[0]) <= 200 else f"{found[0][:197]}..."
    return ""
