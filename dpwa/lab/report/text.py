"""The numbers of a study as text: the table that the page, Markdown and the terminal show.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from dpwa.lab.report.comparison import comparison_texts, difference_text, has_own_bases
from dpwa.lab.report.results import TrialResult, seeds_text
from dpwa.lab.report.statistics import FEWEST_FOR_INTERVAL, Estimate
from dpwa.lab.report.summary import NONE, RowSummary, Summary

__all__ = [
    "NONE",
    "Column",
    "Heading",
    "accuracy_text",
    "bytes_text",
    "caption",
    "columns",
    "seconds_text",
    "status_text",
    "terminal_table",
]

_BETWEEN_COLUMNS = 3  # characters: a space on both sides, and a line
_NO_REASON = "no reason given"


@dataclass(frozen=True)
class Heading:
    """What is known of a column without its cells.

    Attributes:
        title: above it.
        rank: 0 is always shown; a terminal shows others where it has room, those of 1 before those of 2.
        is_number: whether it is aligned to the right.
    """

    title: str
    rank: int = field(default=2, kw_only=True)
    is_number: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Column(Heading):
    """One column of the table.

    Attributes:
        text: its cell in a row.
    """

    text: Callable[[RowSummary], str]

    @property
    def heading(self) -> Heading:
        """All but the cells."""
        return Heading(self.title, rank=self.rank, is_number=self.is_number)


def columns(summary: Summary) -> list[Column]:
    """The columns that the table of a study has."""
    study = summary.study
    is_time = study.literature_unit == "s"
    is_with_literature = any(row.literature is not None for row in summary.rows)
    literature = [Column("literature", lambda row: literature_text(row, study.literature_unit), rank=0)]
    found = [Column("row", lambda row: row.name, rank=0, is_number=False)]
    found += literature if is_with_literature and not is_time else []
    found += [
        Column("accuracy, %", accuracy_text, rank=0),
        Column("worst worker, %", lambda row: _estimate(row.worst_worker, lambda value: f"{value:.2f}")),
        Column("best round, %", best_text),
    ]
    if any(row.train_accuracy is not None for row in summary.rows):
        found.append(Column("on training samples, %", lambda row: _estimate(row.train_accuracy, lambda v: f"{v:.2f}")))
    found += literature if is_with_literature and is_time else []
    if is_time:
        found.append(Column("one epoch", lambda row: _time(row, row.epoch_s), rank=0))
    found.append(Column("training", lambda row: _time(row, row.training_s), rank=0))
    if study.target_accuracy is not None:
        found.append(Column(f"to {study.target_accuracy:g} %", to_target_text, rank=0))
    if has_own_bases(summary):
        found.append(Column("base", lambda row: row.compare_with or NONE, is_number=False))
    if any(row.compare_with for row in summary.rows):
        title = "minus its base" if has_own_bases(summary) else f"minus {study.compare_with}"
        found.append(Column(title, lambda row: difference_text(row, summary), rank=0))
    if any(row.asked is not None for row in summary.rows):
        found.append(Column("exchanges per step", exchanges_text, rank=0))
    return [
        *found,
        Column("merged minus mean of nodes", lambda row: _estimate(row.merging, lambda value: f"{value:+.2f}"), rank=1),
        Column("updates per node", lambda row: _estimate(row.updates, lambda value: f"{value:,.0f}"), rank=1),
        Column("samples seen", lambda row: _estimate(row.samples, lambda value: f"{value:,.0f}"), rank=1),
        Column("sent", lambda row: _estimate(row.bytes_sent, bytes_text), rank=0),
        Column("processes x threads", lambda row: row.processes or NONE),
        Column("consensus distance", lambda row: _estimate(row.consensus, lambda value: f"{value:.3g}")),
        Column("status", status_text, rank=0, is_number=False),
    ]


def terminal_table(columns: Sequence[Heading], cells: Sequence[Sequence[str]], width: int) -> Table:
    """The columns of a table for which a terminal has room; it has those of rank 0 in any case.

    Args:
        columns: of the table.
        cells: their texts, row by row.
        width: of the terminal, in characters.
    """
    widths = [
        max([*map(len, column.title.split()), *(cell_len(row[at]) for row in cells)])
        for at, column in enumerate(columns)
    ]
    shown = {at for at, column in enumerate(columns) if column.rank == 0}
    for at in sorted(range(len(columns)), key=lambda at: columns[at].rank):
        if 1 + sum(_BETWEEN_COLUMNS + widths[other] for other in shown | {at}) <= width:
            shown.add(at)
    table = Table()
    for at in sorted(shown):
        justify: Literal["left", "right"] = "right" if columns[at].is_number else "left"
        title = fill(columns[at].title, widths[at])  # or a long one takes its room from the cells of others
        table.add_column(Text(title), justify=justify, overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[at]) for at in sorted(shown)))
    return table


def caption(summary: Summary) -> str:
    """What the numbers of the table mean."""
    study = summary.study
    parts = [
        "Accuracy is that of the aggregated model (the plain mean of all nodes' models, or the only model) on the test "
        f"set after the last round{_over_seeds(summary)}.",
        "All other numbers are means over the seeds.",
        "Worst worker is the accuracy of the least accurate worker's model.",
        "Best round is the round that was best on the test set, and its epoch: such a choice flatters.",
        "Training is the time of the slowest process on the training clock, without start-up and evaluation.",
    ]
    if study.target_accuracy is not None:
        parts.append(
            f"To {study.target_accuracy:g} % is the training time at the end of the first round with this accuracy."
        )
    parts.append(
        "Samples and bytes are those of all processes together. Consensus distance is the mean distance of the models "
        "from their mean, relative to the norm of the mean."
    )
    if any(row.asked is not None for row in summary.rows):
        parts.append(
            "Exchanges per step are those that a node has begun and that came to something, of those that the row asks "
            "for; ! marks less than nine tenths."
        )
    parts.append("Merged minus mean of nodes is in points of accuracy.")
    parts += comparison_texts(summary)
    if any(row.literature is not None for row in summary.rows):
        parts.append("Literature is what the cited work reported, on its own hardware and software.")
    if any(row.literature is not None and not row.is_same_recipe for row in summary.rows):
        parts.append("Another recipe means that it trained in another way: the two numbers cannot be compared.")
    return " ".join(parts)


def _over_seeds(summary: Summary) -> str:
    """How the accuracies of several seeds are shown."""
    has_interval = [row.accuracy.half_width is not None for row in summary.rows if row.accuracy is not None]
    if not has_interval:
        return ""
    mean = f": the mean over {seeds_text(summary.seeds)} ± half of its 95 % confidence interval"
    if all(has_interval):
        return mean
    if any(has_interval):
        return f"{mean}; of rows with fewer than {FEWEST_FOR_INTERVAL} seeds one number per seed, without an interval"
    return f": one number per seed ({seeds_text(summary.seeds)}); fewer than {FEWEST_FOR_INTERVAL} give no interval"


def accuracy_text(row: RowSummary) -> str:
    """Accuracy with its interval, such as "90.12 ± 0.31"; from fewer than three seeds that of each."""
    found = row.accuracy
    if found is None:
        return NONE
    if found.half_width is None:
        values = ", ".join(f"{value:.2f}" for value in found.values)
        return f"{values} (1 seed)" if len(found.values) == 1 else values
    return f"{found.mean:.2f} ± {found.half_width:.2f}"


def best_text(row: RowSummary) -> str:
    """The accuracy of the best round, and its epoch, such as "91.70 (8)"."""
    if row.best is None or row.best_epoch is None:
        return NONE
    return f"{row.best.mean:.2f} ({row.best_epoch.mean:.3g})"


def exchanges_text(row: RowSummary) -> str:
    """Exchanges per step as they were and as they were asked for, such as "0.16 of 1 !"."""
    if row.asked is None or row.exchanges is None:
        return NONE
    mark = " !" if row.falls_short else ""
    return f"{row.exchanges.mean:.3g} of {row.asked.mean:.3g}{mark}"


def literature_text(row: RowSummary, unit: str) -> str:
    """The number from the literature; for accuracies of the same recipe also how far ours is from it."""
    if row.literature is None:
        return NONE
    if not row.is_same_recipe:
        return f"{row.literature:g}{' s' if unit == 's' else ''} (another recipe)"
    if unit == "s":
        return f"{row.literature:g} s"
    if row.accuracy is None:
        return f"{row.literature:g}"
    return f"{row.literature:g} (ours {row.accuracy.mean - row.literature:+.2f})"


def to_target_text(row: RowSummary) -> str:
    """Time to the target accuracy, and how many seeds reached it."""
    found = row.to_target
    if found is None:
        return NONE
    if found.time_s is None:
        return "not reached"
    reached = len(found.time_s.values)
    share = "" if reached == found.seeds else f" ({reached} of {found.seeds} seeds)"
    return f"{_time(row, found.time_s)}{share}"


def status_text(row: RowSummary) -> str:
    """The state of the row: done, or what happened to which seed."""
    parts = []
    if row.done:
        wanted = len(row.done) + len(row.failed) + len(row.skipped) + len(row.missing)
        parts.append("done" if len(row.done) == wanted else f"{len(row.done)} of {wanted} seeds done")
        parts += dict.fromkeys(result.reason for result in row.done if result.reason)
    parts += _failures(row)
    parts += dict.fromkeys(f"skipped: {_without('skipped: ', result.reason) or _NO_REASON}" for result in row.skipped)
    if row.missing:
        seeds = f" ({seeds_text(row.missing)})" if row.done or row.failed or row.skipped else ""
        parts.append(f"not run yet{seeds}")
    return "; ".join(parts)


def failure_text(result: TrialResult, rounds: int) -> str:
    """How far a trial got, and why it ended."""
    return f"failed {_how_far(result, rounds)}: {result.reason or _NO_REASON}"


def _how_far(result: TrialResult, rounds: int) -> str:
    if not result.rounds or result.rounds[-1].round == 0:
        return "in its first round"
    last = result.rounds[-1]
    accuracies = [100 * r.accuracy for r in result.rounds if r.accuracy is not None and r.round > 0]
    accuracy = f", {accuracies[-1]:.2f} %" if accuracies else ""
    return f"after round {last.round} of {rounds} ({seconds_text(last.time_s)}{accuracy})"


def _failures(row: RowSummary) -> list[str]:
    """One line for each reason, with the seeds that it ended and how far the first of them got."""
    reasons: dict[str, list[TrialResult]] = {}
    for result in row.failed:
        reasons.setdefault(result.reason, []).append(result)
    is_only_one = len(row.done) + len(row.failed) + len(row.skipped) == 1
    rounds = row.settings.n_epochs * row.settings.rounds_per_epoch
    lines = []
    for reason, alike in reasons.items():
        if len(alike) == 1:
            lines.append(f"{'' if is_only_one else f'seed {alike[0].seed} '}{failure_text(alike[0], rounds)}")
        else:
            seeds = seeds_text(result.seed for result in alike)
            lines.append(f"{seeds} failed, the first {_how_far(alike[0], rounds)}: {reason or _NO_REASON}")
    return lines


def _without(beginning: str, text: str) -> str:
    return text[len(beginning) :] if text.startswith(beginning) else text


def _time(row: RowSummary, found: Estimate | None) -> str:
    """A time of a row in memory is that of a made-up clock."""
    text = _estimate(found, seconds_text)
    return f"{text} virtual" if row.settings.engine == "in_memory" and text != NONE else text


def _estimate(found: Estimate | None, text: Callable[[float], str]) -> str:
    return NONE if found is None else text(found.mean)


def seconds_text(seconds: float) -> str:
    """A time, with about three digits."""
    if not math.isfinite(seconds):
        return NONE
    digits = 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:,.{digits}f} s"


def bytes_text(count: float) -> str:
    """A number of bytes, in units of thousands, with three digits."""
    if not math.isfinite(count):
        return NONE
    value = count
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB" if value < 999.5 else f"{value:,.0f} TB"
