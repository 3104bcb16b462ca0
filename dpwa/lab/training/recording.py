"""Records what one process of a trial does: its training clock, its steps, and its model after each round.

The clock stands still while something is written. Nothing is evaluated here: that comes after the training.

Must not know: strategies, data sets. Runs in: the training thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpwa.errors import InternalError
from dpwa.lab.study.trial import TrialFolder, step_at, write_json
from dpwa.lab.training.handicaps import Handicap
from dpwa.lab.training.snapshots import read_steps, write_snapshot, write_steps

__all__ = ["Recorder", "StartTimeout"]

# Many processes on few cores take their time to load torch and the data.
_START_TIMEOUT_S = 300.0
_START_POLL_S = 0.02


class StartTimeout(Exception):
    """Not all processes of a trial became ready."""


class Recorder:
    """The `Watch` of one process; see `dpwa.lab.training.loop.train`.

    Args:
        folder: of the trial.
        names: of all processes of the trial; they begin together.
        name: of this process.
        model: saved after each round.
        rounds: number of rounds.
        saves: whether this process saves its model; if all processes have the same model, only one does.
        did: what the strategy has done so far, asked at each round; see `Strategy.did`.
        handicap: what is wrong with this process.
        clock: the time in seconds; other than real time for processes that exist in virtual time only.
        meets: whether all processes begin together.
    """

    def __init__(
        self,
        folder: TrialFolder,
        names: tuple[str, ...],
        name: str,
        model: nn.Module,
        *,
        rounds: int,
        saves: bool = True,
        did: Callable[[], Mapping[str, float]] = lambda: {"bytes_sent": 0},
        handicap: Handicap | None = None,
        clock: Callable[[], float] = time.monotonic,
        meets: bool = True,
    ) -> None:
        self._folder = folder
        self._names = names
        self._name = name
        self._model = model
        self._rounds = rounds
        self._saves = saves
        self._did = did
        self._handicap = handicap
        self._clock = clock
        self._meets = meets
        # Asked now, because a strategy may divide them among its own threads.
        self._threads = torch.get_num_threads()
        self._round = 0
        self._samples = 0
        self._step = 0
        self._paused_s = 0.0
        self._total_steps = 0
        self._steps: list[tuple[float, int, int, float]] = []

    def begin(self, total_steps: int) -> None:
        """Saves the initial model, waits until all processes are ready, and starts the clock.

        One that was started anew before it had anything to go on from keeps the clock of its first life.

        Raises:
            StartTimeout: a process did not become ready.
        """
        self._total_steps = total_steps
        self._started_s = self._clock()
        self._write(0)
        first_life_s = self._begin_of_first_life()
        if self._meets:
            self._meet()
        if self._handicap is not None:
            self._handicap.begin()
        self._started_s = self._clock() - (0.0 if first_life_s is None else time.time() - first_life_s)
        self._paused_s = 0.0

    def resume(self, total_steps: int, steps_done: int) -> None:
        """Goes on where the checkpoint is, with the clock of the life before: what was lost and the restart count.

        Raises:
            InternalError: an earlier life has not written down these steps.
        """
        path = self._folder.steps(self._name)
        found = read_steps(path)
        if found is None or len(found["loss"]) < steps_done:
            raise InternalError(f"{path}: expected {steps_done} steps of an earlier life")
        rows = list(zip(*(found[name].tolist() for name in ("loss", "right", "count", "end_s")), strict=True))
        self._steps = rows[:steps_done]
        self._total_steps, self._step = total_steps, steps_done
        self._samples = sum(count for _, _, count, _ in self._steps)
        while self._round < self._rounds and steps_done >= step_at(self._round + 1, self._rounds, total_steps):
            self._round += 1
        self._started_s = self._clock() - self._clock_of_earlier_life(path, found["end_s"])
        self.write_last_word()  # without the steps that are made again: a next life counts those of this one
        if self._handicap is not None:
            self._handicap.begin()

    @property
    def training_s(self) -> float:
        """Seconds on the training clock."""
        return self._clock() - self._started_s - self._paused_s

    def stepped(self, step: int, *, done: float, loss: Tensor, right: int, count: int) -> None:
        """Records a step, and saves the model where a round ends."""
        self._step = step
        self._samples += count
        self._steps.append((loss.item(), right, count, self.training_s))
        if self._handicap is None:
            self._end_rounds(done)
            return
        self._handicap.after_step()
        is_due = self._handicap.is_due(done)
        if not is_due or done < 1.0:  # who dies in its last step has not ended
            self._end_rounds(done)
        if is_due:
            self.write_last_word()
            self._handicap.kill()

    def ended(self) -> None:
        """See `Watch.ended`."""
        self._end_rounds(1.0)

    def round_done(self, round_: int, *, samples: int) -> None:
        """Records a round of a server, which makes no steps itself.

        Args:
            round_: from 1 to the number that `begin` was given.
            samples: that all clients together have trained on so far.
        """
        self._step, self._samples = round_, samples
        self._end_rounds(round_ / self._total_steps)

    def write_merged(self) -> None:
        """Saves the model once more as the last round's: it was merged after the last step. What it was is kept."""
        last = self._folder.snapshot(self._name, self._round)
        if self._round and last.exists():
            last.replace(self._folder.before_merge(self._name))
            self._write(self._round)

    def write_last_word(self) -> None:
        """Says how far this process has come, which ends before its training does: what it did since a round counts."""
        if self._steps:
            self._write_steps()
            write_json(self._folder.last_word(self._name), self._numbers(self.training_s))

    def _end_rounds(self, done: float) -> None:
        while self._round < self._rounds and done >= (self._round + 1) / self._rounds:
            self._round += 1
            self._write(self._round)
            if self._handicap is not None:
                self._handicap.begin()  # what saving has computed is no training

    def _write(self, round_: int) -> None:
        paused_s, training_s = self._clock(), self.training_s
        if self._saves:
            self._write_model(round_, training_s)
        self._write_steps()
        self._paused_s += self._clock() - paused_s

    def _write_steps(self) -> None:
        columns = zip(*self._steps, strict=True) if self._steps else ((), (), (), ())
        write_steps(
            self._folder.steps(self._name), dict(zip(("loss", "right", "count", "end_s"), columns, strict=True))
        )

    def _write_model(self, round_: int, training_s: float) -> None:
        write_snapshot(
            self._folder.snapshot(self._name, round_),
            self._model.state_dict(),
            {"round": round_, **self._numbers(training_s)},
        )

    def _numbers(self, training_s: float) -> dict[str, float]:
        return {
            "step": self._step,
            "samples": self._samples,
            "training_s": training_s,
            **self._did(),
            "processes": len(self._names),
            "threads": self._threads,
        }

    def _begin_of_first_life(self) -> float | None:
        """When an earlier life of this process was ready, in seconds since 1970; None if there was none."""
        ready = self._folder.node(self._name) / "ready"
        return ready.stat().st_mtime if self._meets and ready.exists() else None

    def _clock_of_earlier_life(self, steps: Path, end_s: npt.NDArray[Any]) -> float:
        """What the clock of the life before would be now, if it had gone on since it wrote for the last time."""
        word = self._folder.last_word(self._name)
        if word.exists() and word.stat().st_mtime >= steps.stat().st_mtime:
            then_s = float(json.loads(word.read_text(encoding="utf-8"))["training_s"])
            return then_s + time.time() - word.stat().st_mtime
        return float(end_s[-1]) + time.time() - steps.stat().st_mtime

    def _meet(self) -> None:
        """Waits for all processes, so that no clock runs while another process is still loading."""
        ready = self._folder.node(self._name) / "ready"
        if not ready.exists():  # its time is that of the first life
            ready.touch()
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        missing = list(self._names)
        while missing:
            missing = [name for name in missing if not (self._folder.node(name) / "ready").exists()]
            if missing and time.monotonic() > deadline_s:
                raise StartTimeout(
                    f"{self._name}: waited {_START_TIMEOUT_S:.0f} s for {', '.join(missing)} to start; "
                    f"their own messages say why they did not"
                )
            if missing:
                time.sleep(_START_POLL_S)
