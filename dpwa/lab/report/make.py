"""From a run folder to the report: the table in the terminal, report.html, PNG charts, results.json and results.md.

Runs in: the main thread of `dpwa lab report`.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpwa.errors import ConfigError
from dpwa.lab.report.content import Content, content_of
from dpwa.lab.report.markdown import markdown
from dpwa.lab.report.page import page
from dpwa.lab.report.pictures import draw
from dpwa.lab.report.results import read_results
from dpwa.lab.report.summary import Summary, summarise
from dpwa.lab.report.text import terminal_table
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import write_json

__all__ = ["make_report"]

_WIDTH_OF_A_FILE = 160  # columns when the output goes to a file, where rich would assume 80


def make_report(run_dir: Path, *, mixed: bool = False) -> int:
    """Writes the report of a run, complete or not, and prints its table.

    Args:
        run_dir: the run folder.
        mixed: whether rows may have been made by different commits.

    Returns:
        The exit code: 0, or 1 if nothing has been measured yet; then no file is written.

    Raises:
        ConfigError: the folder is not a run folder of a study, or its results are of different commits.
    """
    study_path = run_dir / "study.yaml"
    if not study_path.is_file():
        raise ConfigError(
            f"{run_dir}: expected a run folder with a study.yaml in it; make one with: dpwa lab run STUDY.yaml"
        )
    study = Study.load(study_path)
    summary = summarise(study, *read_results(run_dir))
    commits = sorted({result.commit or "unknown" for result in summary.results})
    if len(commits) > 1 and not mixed:
        raise ConfigError(
            f"{run_dir}: results of {len(commits)} commits ({', '.join(commits)}), which need not compare; "
            "run the older rows again, or add --mixed"
        )
    console = Console(width=None if os.isatty(1) else _WIDTH_OF_A_FILE)
    content = content_of(summary, _command(study, run_dir, summary))
    console.print(_table(content, console.width))
    for warning in content.warnings:
        console.print(Text(f"- {warning}"))
    if not summary.results:
        console.print(Text(f"Nothing has been measured yet; run the study with: {content.command}"))
        return 1
    for path in _write(run_dir, content):
        console.print(Text(f"Written: {path}"), soft_wrap=True)
    return 0


def _write(run_dir: Path, content: Content) -> list[Path]:
    """Writes all files of the report. The page, which is read first, comes last."""
    drawn = draw(content.summary, run_dir)
    written = [run_dir / name for _, name in drawn.files]
    json_path, markdown_path, page_path = (run_dir / name for name in ("results.json", "results.md", "report.html"))
    write_json(json_path, content.to_json())
    markdown_path.write_text(markdown(content, drawn.files), encoding="utf-8")
    page_path.write_text(page(content, drawn.pictures, drawn.keys), encoding="utf-8")
    return [*written, json_path, markdown_path, page_path]


def _command(study: Study, run_dir: Path, summary: Summary) -> str:
    """The command that runs the study again: with the bundled file, if it is the same."""
    path = run_dir / "study.yaml"
    sample = Path("samples", "studies", f"{study.name}.yaml")
    if sample.is_file() and sample.read_bytes() == path.read_bytes():
        path = sample
    elif path.resolve().is_relative_to(Path.cwd()):
        path = path.resolve().relative_to(Path.cwd())
    words = ["dpwa", "lab", "run", str(path)]
    if set(summary.seeds) > set(study.seeds) and summary.seeds == list(range(len(summary.seeds))):
        words += ["--seeds", str(len(summary.seeds))]
    return shlex.join(words)


def _table(content: Content, width: int) -> Table:
    study = content.summary.study
    cells = [[column.text(row) for column in content.columns] for row in content.summary.rows]
    table = terminal_table(content.columns, cells, width)
    table.title, table.caption = Text(study.title), Text(study.question) if study.question else None
    return table
