"""Reads the results of a study's trials.

Runs in: the calling thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["Batches", "Round", "TrialName", "TrialResult", "Worker", "listed", "number", "read_results", "seeds_text"]


class _Part(BaseModel):
    """A part of a result; an evaluation of another version may have written more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TrialName(_Part):
    """The trial; see `dpwa.lab.study.trial.Trial.to_json`."""

    study: str
    row: str
    seed: int
    settings: dict[str, Any] = {}


class Worker(_Part):
    """What was measured of one process."""

    name: str
    samples: int = 0
    steps: int = 0
    training_s: float = 0.0
    accuracy: float | None = None
    accuracy_before_merge: float | None = None


class Round(_Part):
    """What was measured after one of the equal parts of a training."""

    round: int = Field(ge=0)
    epoch: float
    samples: float = 0
    time_s: float
    bytes_sent: float = 0
    accuracy: float | None = None
    loss: float | None = None
    train_accuracy: float | None = None
    train_loss: float | None = None
    consensus: float | None = None


class Batches(_Part):
    """Training batches: means over the workers."""

    samples: list[float] = []
    loss: list[float | None] = []
    accuracy: list[float | None] = []


class TrialResult(_Part):
    """The result of a trial, as `dpwa.lab.training.evaluation` writes it; of a failed trial as much as there is."""

    trial: TrialName
    status: str
    reason: str = ""
    commit: str = ""
    machine: dict[str, Any] = {}
    wall_s: float = 0.0
    processes: int = 0
    threads_per_process: int = 0
    parameters: int = 0
    initial_weights: str = ""
    samples_seen: float = 0
    training_s: float = 0.0
    bytes_sent: float = 0
    asked_per_step: float | None = None
    exchanges_per_step: float | None = None
    final_accuracy: float | None = None
    final_loss: float | None = None
    workers: list[Worker] = []
    shard_sizes: list[int] = []
    class_counts: list[list[int]] = []
    rounds: list[Round] = []
    batches: Batches = Batches()
    worker_batches: dict[str, Batches] = {}
    written_s: float = 0.0
    """When the file was written, in seconds since 1970."""

    @property
    def row(self) -> str:
        """The row of the study."""
        return self.trial.row

    @property
    def seed(self) -> int:
        """The seed."""
        return self.trial.seed


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds for people: "seed 0", "seeds 0, 1"."""
    numbers = [str(seed) for seed in seeds]
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def number(value: float | None) -> float:
    """A number of a result for arithmetic: NaN where it is missing or infinite."""
    return value if value is not None and math.isfinite(value) else math.nan


def read_results(run_dir: Path) -> tuple[list[TrialResult], list[str]]:
    """The results in a run folder, sorted by the names of the trials' folders, and one line per unusable file."""
    results, problems = [], []
    for path in sorted(run_dir.glob("trials/*/result.json")):
        found = _read(path)
        if isinstance(found, TrialResult):
            results.append(found)
        else:
            place = path.relative_to(run_dir).as_posix()
            problems.append(f"{place} cannot be read ({found}); remove its folder and run the study again.")
    return results, problems


def _read(path: Path) -> TrialResult | str:
    """The result of one trial, or why there is none."""
    try:
        result = TrialResult.model_validate(json.loads(path.read_text(encoding="utf-8")))
        return result.model_copy(update={"written_s": path.stat().st_mtime})
    except (OSError, ValueError) as error:
        return _in_short(error)


def _in_short(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def listed(names: Iterable[object]) -> str:
    """Names separated by commas; names that contain a comma are quoted."""
    return ", ".join(f'"{name}"' if "," in str(name) else str(name) for name in names)
