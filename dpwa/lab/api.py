"""The lab in a script or a notebook: `run_study` trains what a study compares, and returns a table.

Must not know: click, torch. Runs in: the calling thread; where that one has a running event loop, as a notebook's has,
the trials are run from a thread of their own.
"""

from __future__ import annotations

import asyncio
import html
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from dpwa.errors import ConfigError, DpwaError
from dpwa.lab.report.comparison import base_of, difference
from dpwa.lab.report.fairness import findings
from dpwa.lab.report.results import read_results
from dpwa.lab.report.statistics import Estimate
from dpwa.lab.report.summary import RowSummary, Summary, summarise
from dpwa.lab.report.text import Heading, columns, terminal_table
from dpwa.lab.run.running import Runner
from dpwa.lab.study.study import Study

__all__ = ["StudyTable", "run_study", "study_of", "table_of"]

_WIDTH = 120  # columns of a notebook or a file
_DEFAULT_NAME = "try"


@dataclass(frozen=True)
class StudyTable:
    """What a study has measured; a notebook shows it as a table.

    Attributes:
        rows: one mapping per row of the study, with row, strategy, status and seeds (those that are done); accuracies,
            by seed, in per cent; the means over the seeds of accuracy and worst_worker (per cent), loss, training_s,
            difference (from the row of `compare_with`) and merged_minus_mean (of the nodes' models; both in points),
            updates (of a node), samples, asked_per_step and exchanges_per_step (of a node), bytes_sent and consensus;
            and accuracy_half_width and difference_half_width, half of their 95 % confidence intervals. None where
            nothing was measured.
        run_dir: the run folder, for `dpwa lab report`.
        notes: one line for each thing that is wrong, missing or not equal, such as commits, samples and exchanges.
        columns: of the table; a terminal shows those for which it has room.
        cells: what they show, row by row.
    """

    rows: tuple[Mapping[str, Any], ...]
    run_dir: Path
    notes: tuple[str, ...]
    columns: tuple[Heading, ...]
    cells: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __str__(self) -> str:
        console = Console(width=_WIDTH, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        yield terminal_table(self.columns, self.cells, options.max_width)
        yield from map(Text, self.notes)

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(cells, "td") for cells in self.cells)
        head = line([column.title for column in self.columns], "th")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise ConfigError("to_pandas: the package pandas is not installed; install it, or use rows") from error
        return pandas.DataFrame(list(self.rows))


def run_study(
    study: str | Path | Mapping[str, Any] | None = None,
    *,
    seeds: int | None = None,
    only: Sequence[str] = (),
    run_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    **settings: Any,
) -> StudyTable:
    """Trains what a study compares, as `dpwa lab run` does, and prints how far it is. Finished trials are kept.

    Args:
        study: a study file; or the keys and values of one. None: they are the keyword arguments.
        seeds: how many seeds; None: those of the study.
        only: conditions KEY=VALUE that trials must meet.
        run_dir: the run folder; None: runs/STUDY.
        data_dir: folder of the data sets; None: the variable DPWA_DATA_DIR, otherwise ./data.
        settings: keys of a study file, such as strategies=["gosgd", "pull"], beside or in place of a mapping.

    Returns:
        The table, with what failed, too.

    Raises:
        ConfigError: the study, the conditions or the folder cannot be used.
        DpwaError: data are missing.
        KeyboardInterrupt: the user interrupted it; the same call continues it.
    """
    made = study_of(study, settings)
    folder = Path(run_dir) if run_dir is not None else Path("runs") / made.name
    trials = made.trials(only, seeds)
    runner = Runner(made, trials, folder, None if data_dir is None else Path(data_dir))
    code = _run(runner, Console(file=sys.stdout, width=_WIDTH, force_terminal=False, force_jupyter=False))
    if code == 2:
        raise DpwaError(f"{made.name}: data are missing, so no trial was started; what was printed says which")
    if code > 128:
        raise KeyboardInterrupt
    return table_of(made, runner.folder.path)


def study_of(study: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Study:
    """A study that is ready to run.

    Args:
        study: a file, or keys and values of one, or None.
        settings: further keys; they win.

    Raises:
        ConfigError: one line per problem.
    """
    if isinstance(study, (str, Path)):
        if settings:
            raise ConfigError(f"{study}: expected no settings beside a study file, got {', '.join(settings)}")
        return Study.load(Path(study), for_running=True)
    values = {"study": _DEFAULT_NAME, **(study or {}), **settings}
    plain = json.loads(json.dumps(values, default=_refuse))
    text = yaml.safe_dump(plain, sort_keys=False, width=120)
    return Study.from_text(text, None, for_running=True)


def table_of(study: Study, run_dir: Path) -> StudyTable:
    """What the trials in a run folder have measured.

    Args:
        study: the study.
        run_dir: its run folder.
    """
    results, problems = read_results(run_dir)
    summary = summarise(study, results, problems)
    shown = columns(summary)
    return StudyTable(
        rows=tuple(_row(row, summary) for row in summary.rows),
        run_dir=run_dir,
        notes=(*summary.notes, *(found.text for found in findings(summary) if not found.is_equal)),
        columns=tuple(column.heading for column in shown),
        cells=tuple(tuple(column.text(row) for column in shown) for row in summary.rows),
    )


def _refuse(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        name = getattr(value, "__name__", "function")
        raise ConfigError(
            f"{name}: the lab's processes cannot see what is defined here; write it into a file module.py and name it "
            f'"module:{name}"'
        )
    raise ConfigError(f"expected plain values, as in a study file, got {value!r} of type {type(value).__name__}")


def _run(runner: Runner, console: Console) -> int:
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # there is none
        return runner.run(console)
    with ThreadPoolExecutor(1, "lab") as threads:
        running = threads.submit(runner.run, console)
        try:
            return running.result()
        except KeyboardInterrupt:
            runner.end(signal.SIGINT)
            return running.result()


def _row(row: RowSummary, summary: Summary) -> dict[str, Any]:
    base = base_of(row, summary)
    found = None if base is None else difference(row, base)

    def mean(found: Estimate | None) -> float | None:
        return None if found is None else found.mean

    return {
        "row": row.name,
        "strategy": row.settings.strategy,
        "status": "done" if row.done and not (row.failed or row.skipped) else "failed" if row.failed else "not run",
        "seeds": [result.seed for result in row.done],
        "accuracy": mean(row.accuracy),
        "accuracy_half_width": None if row.accuracy is None else row.accuracy.half_width,
        "accuracies": {
            result.seed: 100 * result.final_accuracy for result in row.done if result.final_accuracy is not None
        },
        "worst_worker": mean(row.worst_worker),
        "loss": mean(row.loss),
        "training_s": mean(row.training_s),
        "difference": mean(found),
        "difference_half_width": None if found is None else found.half_width,
        "merged_minus_mean": mean(row.merging),
        "updates": mean(row.updates),
        "samples": mean(row.samples),
        "asked_per_step": mean(row.asked),
        "exchanges_per_step": mean(row.exchanges),
        "bytes_sent": mean(row.bytes_sent),
        "consensus": mean(row.consensus),
    }
