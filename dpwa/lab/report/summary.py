"""From the results of single trials to one summary per row: means over seeds, curves, what failed, what is missing.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpwa.lab.report.results import Batches, Round, TrialResult, listed, number, seeds_text
from dpwa.lab.report.statistics import Estimate, estimate
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.study import Row, Study

__all__ = ["NONE", "Band", "Curves", "RowSummary", "Summary", "TimeToTarget", "summarise", "time_to"]

NONE = "-"
"""In place of a number that there is not."""

MOST_POINTS = 200
# Single batches vary too much to be read: each point is a mean over enough of them to leave this many points.
MOST_BATCH_POINTS = 80

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A curve: the mean over seeds, the lowest and the highest seed; NaN where nothing was measured."""

    mean: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Curves:
    """How a row's training went, by round.

    Attributes:
        epoch: passes over the data by all processes together; shape (points,), like the others.
        time_s: on the training clock, mean over seeds.
        bytes_sent: by all processes, mean over seeds.
        accuracy: of the aggregated model, per cent.
        loss: of the same on the test set.
        train_accuracy: of the same on training samples, per cent; NaN unless the study asks for it.
        train_loss: of the same on training samples.
        consensus: relative distance of the models from their mean.
        batch_samples: seen by all processes; shape (batch points,), like the next two.
        batch_loss: of training batches.
        batch_accuracy: of training batches, per cent.
        seeds: how many make the mean.
        is_whole: whether the training was completed.
    """

    epoch: Numbers
    time_s: Numbers
    bytes_sent: Numbers
    accuracy: Band
    loss: Band
    train_accuracy: Band
    train_loss: Band
    consensus: Band
    batch_samples: Numbers
    batch_loss: Band
    batch_accuracy: Band
    seeds: int
    is_whole: bool


@dataclass(frozen=True)
class TimeToTarget:
    """The training time until the target was reached, over the seeds that reached it."""

    time_s: Estimate | None
    seeds: int


@dataclass(frozen=True)
class RowSummary:
    """A row over its seeds. Estimates are over the trials that are done; None if there are none.

    Attributes:
        name: its label.
        index: its place in the study.
        literature: what others reported, in the study's unit.
        is_same_recipe: whether they trained as this row does.
        compare_with: name of the row that this one is compared with; empty: none.
        entry: name of its entry of `strategies`.
        point: its keys of the grid, with their values.
        settings: as in the study file.
        done: results of trials that are done, by seed.
        failed: results of those that failed, by seed.
        skipped: results of those that could not be started, by seed.
        missing: seeds without a result.
        accuracy: final, of the aggregated model, per cent.
        best: that of the round in which it was highest: chosen by the test set, so it flatters.
        best_epoch: at whose end that round was.
        train_accuracy: final, of the aggregated model on training samples, per cent; None unless the study asks for it.
        loss: of the same on the test set.
        worst_worker: the lowest final accuracy of a worker's model, per cent.
        training_s: of the slowest process.
        epoch_s: the same, divided by the number of epochs.
        to_target: when the target accuracy was reached; None without a target or a trial that is done.
        samples: seen by all processes together.
        bytes_sent: by all processes together.
        updates: of one node, the mean over the nodes.
        asked: exchanges per step of a node that its settings ask for; None for strategies without.
        exchanges: exchanges per step of a node as they really were.
        merging: accuracy of the aggregated model minus the mean of the nodes' models, in points; None for one model.
        consensus: final consensus distance.
        curves: None without any round.
    """

    name: str
    index: int
    literature: float | None
    is_same_recipe: bool
    compare_with: str
    entry: str
    point: Mapping[str, Any]
    settings: Settings
    done: tuple[TrialResult, ...]
    failed: tuple[TrialResult, ...]
    skipped: tuple[TrialResult, ...]
    missing: tuple[int, ...]
    accuracy: Estimate | None
    best: Estimate | None
    best_epoch: Estimate | None
    train_accuracy: Estimate | None
    loss: Estimate | None
    worst_worker: Estimate | None
    training_s: Estimate | None
    epoch_s: Estimate | None
    to_target: TimeToTarget | None
    samples: Estimate | None
    bytes_sent: Estimate | None
    updates: Estimate | None
    asked: Estimate | None
    exchanges: Estimate | None
    merging: Estimate | None
    consensus: Estimate | None
    curves: Curves | None

    @property
    def measured(self) -> tuple[TrialResult, ...]:
        """The trials of which something was measured, whether they are done or failed."""
        return tuple(result for result in self.done + self.failed if result.processes > 0)

    @property
    def falls_short(self) -> bool:
        """Whether the nodes exchanged less than nine tenths of what the row's settings ask for."""
        return self.asked is not None and self.exchanges is not None and self.exchanges.mean < 0.9 * self.asked.mean

    @property
    def processes(self) -> str:
        """Processes and threads of each, such as "4 x 1"; all of them, if trials differ."""
        if self.settings.engine == "in_memory" and self.measured:
            return "1 x 1"
        found = dict.fromkeys(f"{result.processes} x {result.threads_per_process}" for result in self.measured)
        return ", ".join(found)


@dataclass(frozen=True)
class Summary:
    """A whole study.

    Attributes:
        study: the study.
        rows: all of them, in order.
        notes: one line for each thing that is wrong or missing.
    """

    study: Study
    rows: tuple[RowSummary, ...]
    notes: tuple[str, ...]

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """All trials of which something was measured."""
        return tuple(result for row in self.rows for result in row.measured)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trials of which something was measured."""
        return sorted({result.seed for result in self.results})


def summarise(study: Study, results: Sequence[TrialResult], problems: Sequence[str] = ()) -> Summary:
    """Summarises a study.

    Args:
        study: the study.
        results: of its trials, in any order.
        problems: found while reading them, one line each.
    """
    labels = [row.label for row in study.rows]
    notes = [*problems]
    strangers = dict.fromkeys(result.row for result in results if result.row not in labels)
    notes += [f'Results of "{name}" are left out: the study has no such row.' for name in strangers]
    current, remarks = _current(study, results)
    notes += remarks
    # A run may have been asked for more seeds than the file has.
    seeds_wanted = {*study.seeds, *(result.seed for found in current for result in found)}
    rows = tuple(_row(study, index, row, current[index], seeds_wanted) for index, row in enumerate(study.rows))
    missing: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.missing:
            missing[seeds_text(row.missing)].append(row.name)
    if missing:
        notes.append(f"Not run yet: {'; '.join(_rows_text(names, seeds, rows) for seeds, names in missing.items())}.")
    return Summary(study, rows, tuple(notes))


def _rows_text(names: Sequence[str], seeds: str, rows: Sequence[RowSummary]) -> str:
    return f"{'all rows' if len(names) == len(rows) > 1 else listed(names)} ({seeds})"


def _current(study: Study, results: Sequence[TrialResult]) -> tuple[list[list[TrialResult]], list[str]]:
    """The results of each row that were made with its present settings, and a remark for those that were not."""
    current: list[list[TrialResult]] = []
    changed: dict[str, list[str]] = defaultdict(list)
    for row in study.rows:
        keys_of = [(result, _changed(row, result)) for result in results if result.row == row.label]
        current.append([result for result, keys in keys_of if not keys])
        if keys := sorted({key for _, keys in keys_of for key in keys}):
            changed[", ".join(keys)].append(row.label)
    return current, [
        f"Left out: results made before settings changed ({keys}): {listed(names)}. Run the study again."
        for keys, names in changed.items()
    ]


def _changed(row: Row, result: TrialResult) -> list[str]:
    """The settings with which a result was made and that are others in the study file now."""
    wanted = row.settings.to_json()
    return [key for key, value in result.trial.settings.items() if key in wanted and wanted[key] != value]


def _row(
    study: Study, index: int, row: Row, results: Sequence[TrialResult], seeds_wanted: Collection[int]
) -> RowSummary:
    ordered = sorted(results, key=lambda result: result.seed)
    done = tuple(result for result in ordered if result.status == "done")
    skipped = tuple(result for result in ordered if result.status == "skipped")
    failed = tuple(result for result in ordered if result.status not in {"done", "skipped"})

    def over_seeds(value: Callable[[TrialResult], float | None]) -> Estimate | None:
        return estimate([found for result in done if (found := value(result)) is not None])

    return RowSummary(
        name=row.label,
        index=index,
        literature=row.literature,
        is_same_recipe=row.is_same_recipe,
        compare_with=row.compare_with if row.compare_with != row.label else "",
        entry=row.entry,
        point=row.point,
        settings=row.settings,
        done=done,
        failed=failed,
        skipped=skipped,
        missing=tuple(sorted(set(seeds_wanted) - {result.seed for result in ordered})),
        accuracy=over_seeds(lambda result: _percent(result.final_accuracy)),
        best=over_seeds(lambda result: _percent(_best(result).accuracy)),
        best_epoch=over_seeds(lambda result: _best(result).epoch),
        train_accuracy=over_seeds(lambda result: _percent(result.rounds[-1].train_accuracy) if result.rounds else None),
        loss=over_seeds(lambda result: result.final_loss),
        worst_worker=over_seeds(_worst_worker),
        training_s=over_seeds(lambda result: result.training_s),
        epoch_s=over_seeds(lambda result: result.training_s / row.settings.n_epochs),
        to_target=_to_target(done, study.target_accuracy),
        samples=over_seeds(lambda result: result.samples_seen),
        bytes_sent=over_seeds(lambda result: result.bytes_sent),
        updates=over_seeds(_updates),
        asked=over_seeds(lambda result: result.asked_per_step),
        exchanges=over_seeds(lambda result: result.exchanges_per_step),
        merging=over_seeds(_merging),
        consensus=over_seeds(lambda result: result.rounds[-1].consensus if result.rounds else None),
        curves=_curves(done or failed, is_whole=bool(done)),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _worst_worker(result: TrialResult) -> float | None:
    return _percent(min((worker.accuracy for worker in result.workers if worker.accuracy is not None), default=None))


def _best(result: TrialResult) -> Round:
    """The round with the highest accuracy, the first of several."""
    return max(result.rounds, key=lambda found: found.accuracy or 0.0, default=Round(round=0, epoch=0, time_s=0))


def _updates(result: TrialResult) -> float | None:
    return fmean(worker.steps for worker in result.workers) if result.workers else None


def _merging(result: TrialResult) -> float | None:
    """What merging the nodes' models into one is worth, by themselves at the end or by whoever evaluates them."""
    pairs = ((worker.accuracy_before_merge, worker.accuracy) for worker in result.workers)
    found = [own for before, after in pairs if (own := after if before is None else before) is not None]
    if result.final_accuracy is None or len(found) < 2:
        return None
    return 100 * (result.final_accuracy - fmean(found))


def time_to(rounds: Sequence[Round], accuracy: float) -> float | None:
    """Training time (s) at the end of the first round at or above an accuracy (0..1); None if there is no such round.

    Nothing is interpolated: between two rounds nothing was measured.
    """
    # A share such as 0.9 and a percentage such as 90 / 100 may differ in their last bit.
    reached = (r.time_s for r in rounds if r.accuracy is not None and r.accuracy >= accuracy - 1e-12)
    return next(reached, None)


def _to_target(done: Sequence[TrialResult], target: float | None) -> TimeToTarget | None:
    if target is None or not done:
        return None
    times_s = [time_s for result in done if (time_s := time_to(result.rounds, target / 100)) is not None]
    return TimeToTarget(estimate(times_s), len(done))


def _curves(results: Sequence[TrialResult], *, is_whole: bool) -> Curves | None:
    """The mean over seeds of all rounds that each of them reached."""
    tables = [{round_.round: round_ for round_ in result.rounds} for result in results if result.rounds]
    if not tables:
        return None
    common = sorted(set.intersection(*(set(table) for table in tables)))
    if not common:
        return None
    shown = [common[at] for at in _thinned(len(common))]

    def values(value: Callable[[Round], float | None]) -> Numbers:
        return np.array([[number(value(table[at])) for at in shown] for table in tables], np.float64)

    samples, losses, accuracies = _batches([result.batches for result in results])
    return Curves(
        epoch=values(lambda r: r.epoch).mean(axis=0),
        time_s=values(lambda r: r.time_s).mean(axis=0),
        bytes_sent=values(lambda r: r.bytes_sent).mean(axis=0),
        accuracy=_band(values(lambda r: _percent(r.accuracy))),
        loss=_band(values(lambda r: r.loss)),
        train_accuracy=_band(values(lambda r: _percent(r.train_accuracy))),
        train_loss=_band(values(lambda r: r.train_loss)),
        consensus=_band(values(lambda r: r.consensus)),
        batch_samples=samples,
        batch_loss=losses,
        batch_accuracy=accuracies,
        seeds=len(tables),
        is_whole=is_whole,
    )


def _thinned(count: int) -> list[int]:
    """Indices of at most `MOST_POINTS` of `count` points, evenly spaced, with the first and the last."""
    if count <= MOST_POINTS:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, MOST_POINTS)]


def _band(values: Numbers) -> Band:
    """The band of values of shape (seeds, points)."""
    return Band(values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _batches(found: Sequence[Batches]) -> tuple[Numbers, Band, Band]:
    """Samples seen, loss and accuracy (per cent) of training batches, thinned by averaging neighbours."""
    lines = [_batch_line(batches) for batches in found]
    lines = [line for line in lines if line.shape[1] > 0 and line[0, -1] > 0]
    if not lines:
        nothing = np.empty((1, 0))
        return nothing[0], _band(nothing), _band(nothing)
    ends = np.linspace(
        0, min(line[0, -1] for line in lines), min(MOST_BATCH_POINTS, *(line.shape[1] for line in lines)) + 1
    )
    # Integrals, so that a point is the mean over all samples since the previous point.
    means = np.array([[_means_between(line[0], line[row], ends) for line in lines] for row in (1, 2)])
    return ends[1:], _band(means[0]), _band(100 * means[1])


def _batch_line(batches: Batches) -> Numbers:
    """Rows: samples, loss, accuracy; as far as all three are known."""
    count = min(len(batches.samples), len(batches.loss), len(batches.accuracy))
    rows = [
        batches.samples[:count],
        [number(value) for value in batches.loss[:count]],
        [number(value) for value in batches.accuracy[:count]],
    ]
    return np.array(rows, np.float64).reshape(3, count)


def _means_between(ends: Numbers, values: Numbers, wanted: Numbers) -> Numbers:
    """Means of a step function over other steps.

    Args:
        ends: where each step ends, rising from above 0; shape (count,).
        values: of the steps; shape (count,).
        wanted: borders of the new steps, from 0; shape (points + 1,).
    """
    totals = np.concatenate([[0.0], np.cumsum(values * np.diff(ends, prepend=0.0))])
    found: Numbers = np.diff(np.interp(wanted, np.concatenate([[0.0], ends]), totals)) / np.diff(wanted)
    return found
