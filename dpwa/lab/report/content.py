"""What a report says, before it becomes a web page, Markdown or JSON.

Must not know: HTML, Markdown, matplotlib. Runs in: any thread; everything here is frozen or pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from dpwa.lab.report.comparison import base_of, difference, noise_floor
from dpwa.lab.report.fairness import Finding, described_machine, differing_settings, findings, used_settings
from dpwa.lab.report.grid import fold
from dpwa.lab.report.results import TrialResult
from dpwa.lab.report.statistics import Estimate
from dpwa.lab.report.summary import NONE, Band, Curves, Numbers, RowSummary, Summary
from dpwa.lab.report.text import Column, Heading, caption, columns, failure_text, status_text
from dpwa.lab.run.pace import duration_text

__all__ = ["Content", "content_of"]


@dataclass(frozen=True)
class Content:
    """All words and numbers of a report.

    Attributes:
        summary: the rows.
        columns: of the table.
        caption: of the table.
        findings: whether the comparison is fair.
        warnings: one line for each thing that a reader must know before the table.
        different: dotted names of the settings in which the rows differ.
        shared: other settings, with their values.
        command: runs the study again.
        commits: of the code that made the results.
        machines: on which they were made, one line each.
        when: they were made.
        hours: that the trials took in all, with start-up and without evaluation.
    """

    summary: Summary
    columns: tuple[Column, ...]
    caption: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    different: tuple[str, ...]
    shared: Mapping[str, str]
    command: str
    commits: tuple[str, ...]
    machines: tuple[str, ...]
    when: str
    hours: float

    def settings_of(self, row: RowSummary) -> list[str]:
        """The row's values of the settings in `different`, in that order."""
        values = used_settings(row.settings)
        return [values.get(key, "") for key in self.different]

    @property
    def folded(self) -> tuple[list[Heading], list[list[str]]] | None:
        """Headings and cells of the short table of a folded study; None for others."""
        found = fold(self.summary)
        if found is None:
            return None
        titles = {column.title: column for column in self.columns}
        time = titles.get("one epoch", titles["training"])
        wanted = [(column, at) for column in (titles["accuracy, %"], time) for at in range(len(found.titles))]
        cells = [
            [NONE if (cell := row.cells[at]) is None else column.text(cell) for column, at in wanted]
            for row in found.rows
        ]
        known = [at for at in range(len(wanted)) if any(row[at] != NONE for row in cells)]
        headings = [Heading(f"{wanted[at][0].title}; {found.titles[wanted[at][1]]}") for at in known]
        named = zip(found.rows, cells, strict=True)
        return (
            [Heading("row", is_number=False), *headings],
            [[row.name, *(texts[at] for at in known)] for row, texts in named],
        )

    @property
    def trained(self) -> str:
        """What was trained, in one line; where the rows differ, with all values."""
        flat = [used_settings(row.settings) for row in self.summary.rows]

        def values(key: str) -> str:
            return " or ".join(dict.fromkeys(one[key] for one in flat if one.get(key)))

        partitions = dict.fromkeys(_partition(one) for one in flat if "partition.kind" in one)
        seeds = ", ".join(map(str, self.summary.seeds))
        parts = [
            f"Data {values('data')}",
            f"network {values('model')}",
            f"nodes {values('nodes')}",
            f"partition {' or '.join(partitions)}" if partitions else "",
            f"epochs {values('n_epochs')}",
            f"batch size {values('batch_size')}",
            f"products in {values('precision')}" if values("precision") != "float32" else "",
            f"seeds {seeds}" if seeds else "",
        ]
        return "; ".join(part for part in parts if part) + "."

    @property
    def made(self) -> list[tuple[str, str]]:
        """How the numbers were made, as terms with their descriptions."""
        seeds = ", ".join(map(str, self.summary.seeds)) or "none"
        return [
            ("command", self.command),
            ("seeds", seeds),
            (
                "made",
                f"{self.when}; the trials took {duration_text(3600 * self.hours)} in all" if self.when else "not yet",
            ),
            ("commit", ", ".join(self.commits) or "unknown"),
            ("machine", "; ".join(self.machines) or "unknown"),
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        study = self.summary.study
        return {
            "study": study.name,
            "title": study.title,
            "question": study.question,
            "command": self.command,
            "made": self.when,
            "hours": round(self.hours, 3),
            "commits": list(self.commits),
            "machines": [dict(machine) for machine in _machines(self.summary)],
            "seeds": self.summary.seeds,
            "literature_unit": study.literature_unit,
            "target_accuracy": study.target_accuracy,
            "notes": list(self.summary.notes),
            "fairness": [asdict(finding) for finding in self.findings],
            "compare_with": study.compare_with or None,
            "noise_floor_points": noise_floor(self.summary),
            "rows": [_row_json(row, self.summary) for row in self.summary.rows],
        }


def content_of(summary: Summary, command: str) -> Content:
    """The report on a study.

    Args:
        summary: its rows.
        command: runs it again.
    """
    results = summary.results
    found = tuple(findings(summary))
    different, shared = differing_settings([row.settings for row in summary.rows])
    failed = [f"{row.name}: {status_text(row)}." for row in summary.rows if row.failed]
    unequal = [finding.text for finding in found if not finding.is_equal]
    return Content(
        summary=summary,
        columns=tuple(columns(summary)),
        caption=caption(summary),
        findings=found,
        warnings=(*summary.notes, *failed, *unequal),
        different=tuple(different),
        shared=shared,
        command=command,
        commits=tuple(dict.fromkeys(result.commit or "unknown" for result in results)),
        machines=tuple(dict.fromkeys(described_machine(result.machine) for result in results)),
        when=_when(results),
        hours=sum(result.wall_s for result in results) / 3600,
    )


def _partition(settings: Mapping[str, str]) -> str:
    """A partition in a few words, from settings by dotted keys."""
    kind = settings["partition.kind"]
    options = {"classes": "classes_per_node", "dirichlet": "alpha", "quantity": "alpha"}
    option = options.get(kind)
    equal = ", equal shards" if settings.get("partition.equal") == "true" else ""
    return kind if option is None else f"{kind} ({option} {settings[f'partition.{option}']}{equal})"


def _when(results: tuple[TrialResult, ...]) -> str:
    """The first and the last day on which results were written."""
    if not results:
        return ""
    days = sorted({datetime.fromtimestamp(result.written_s, timezone.utc).date().isoformat() for result in results})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _machines(summary: Summary) -> list[Mapping[str, Any]]:
    return list({described_machine(result.machine): result.machine for result in summary.results}.values())


def _difference(row: RowSummary, summary: Summary) -> Estimate | None:
    base = base_of(row, summary)
    return None if base is None else difference(row, base)


def _row_json(row: RowSummary, summary: Summary) -> dict[str, Any]:
    target = row.to_target
    return {
        "row": row.name,
        "strategy": row.settings.strategy,
        "status": status_text(row),
        "literature": row.literature,
        "accuracy_percent": _estimate(row.accuracy),
        "literature_recipe": "same" if row.is_same_recipe else "other",
        "best_round_percent": _estimate(row.best),
        "best_round_epoch": _estimate(row.best_epoch),
        "train_accuracy_percent": _estimate(row.train_accuracy),
        "loss": _estimate(row.loss),
        "worst_worker_percent": _estimate(row.worst_worker),
        "training_s": _estimate(row.training_s),
        "epoch_s": _estimate(row.epoch_s),
        "time_to_target_s": _estimate(target.time_s) if target is not None else None,
        "samples_seen": _estimate(row.samples),
        "bytes_sent": _estimate(row.bytes_sent),
        "updates_per_node": _estimate(row.updates),
        "asked_exchanges_per_step": _estimate(row.asked),
        "exchanges_per_step": _estimate(row.exchanges),
        "merged_minus_mean_of_nodes_points": _estimate(row.merging),
        "compare_with": row.compare_with or None,
        "difference_points": _estimate(_difference(row, summary)),
        "consensus_distance": _estimate(row.consensus),
        "processes_and_threads": row.processes,
        "parameters": next((result.parameters for result in row.measured), None),
        "seeds_done": [result.seed for result in row.done],
        "seeds_failed": {
            str(result.seed): failure_text(result, row.settings.n_epochs * row.settings.rounds_per_epoch)
            for result in row.failed
        },
        "seeds_skipped": {str(result.seed): result.reason for result in row.skipped},
        "seeds_missing": list(row.missing),
        "settings": row.settings.to_json(),
        "rounds": _curves(row.curves),
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else found.to_json()


def _curves(curves: Curves | None) -> dict[str, Any] | None:
    """Means over the seeds by round."""
    if curves is None:
        return None
    lines: dict[str, Numbers | Band] = {
        "epoch": curves.epoch,
        "time_s": curves.time_s,
        "bytes_sent": curves.bytes_sent,
        "accuracy_percent": curves.accuracy,
        "loss": curves.loss,
        "train_accuracy_percent": curves.train_accuracy,
        "train_loss": curves.train_loss,
        "consensus_distance": curves.consensus,
    }
    found = {key: _numbers(line.mean if isinstance(line, Band) else line) for key, line in lines.items()}
    return {"seeds": curves.seeds, "is_whole": curves.is_whole, **found}


def _numbers(values: Numbers) -> list[float | None]:
    # No number is known to six digits. NaN is the only value that is not equal to itself.
    return [None if value != value else float(f"{value:.6g}") for value in values.tolist()]  # noqa: PLR0124
