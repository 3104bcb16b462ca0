"""What `dpwa lab list` and `dpwa lab run` do.

Must not know: torch, click. Runs in: the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table

import dpwa
from dpwa.errors import ConfigError
from dpwa.lab.run.cost import ASK_ABOVE_S, estimate_s, shown_duration
from dpwa.lab.run.running import Runner
from dpwa.lab.run.starting import machine_cores
from dpwa.lab.strategies.tensorflow.environment import PYTHON_VARIABLE
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.lab.study.study import Study

__all__ = ["list_strategies", "list_studies", "run_study", "study_path"]

_SAMPLES = Path("samples") / "studies"


def list_studies(paths: Sequence[Path]) -> int:
    """Prints each study with what it costs.

    Args:
        paths: study files; none for those that come along.

    Returns:
        The exit code: 0, or 2 if some file has problems, which are printed too.
    """
    found = [study_path(path) for path in paths] or _samples()
    cores = machine_cores()
    table = Table("study", "rows x seeds", "about", "what it asks", box=None, pad_edge=False)
    problems: list[str] = []
    for path in found:
        try:
            study = Study.load(path, for_running=True)
        except ConfigError as error:
            problems += error.problems
            continue
        trials = study.trials()
        table.add_row(
            _shown(path),
            f"{len(study.rows)} x {len(study.seeds)}",
            shown_duration(sum(estimate_s(trial, cores) for trial in trials)),
            study.title,
        )
    console = _console()
    if table.row_count:
        console.print(table)
        console.print(f"The times are estimates for this machine's {cores} cores.", highlight=False)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems else 0


def list_strategies() -> None:
    """Prints the strategies that a study can name."""
    table = Table("strategy", "what it does", "needs", box=None, pad_edge=False)
    for kind in STRATEGIES.values():
        needs = f"dpwa\\[{kind.extra}]" if kind.extra else ""
        table.add_row(kind.name, f"dpwa: {kind.text}" if kind.is_method else kind.text, needs)
    _console().print(table)


def run_study(
    path: Path,
    *,
    seeds: int | None,
    only: Sequence[str],
    run_dir: Path | None,
    data_dir: Path | None,
    tensorflow: Path | None,
    confirm: Callable[[str], bool] | None,
) -> int:
    """Makes the trainings of a study that have not been made yet.

    Args:
        path: the study file, or the name of a study that comes along.
        seeds: how many seeds instead of the file's; None for those of the file.
        only: conditions KEY=VALUE that trainings must fit.
        run_dir: the run folder; None for runs/STUDY.
        data_dir: folder of the data sets; None for the variable DPWA_DATA_DIR.
        tensorflow: a Python that has TensorFlow; None for the variable DPWA_TENSORFLOW_PYTHON.
        confirm: asks whether to begin something long; None begins it.

    Returns:
        The exit code: 0 if all is done or skipped, 1 if some training failed or the user does not want to begin, 2 if
        data are missing, 128 + N after signal N.

    Raises:
        ConfigError: the study, the conditions or the folder cannot be used.
    """
    if tensorflow is not None:
        os.environ[PYTHON_VARIABLE] = str(tensorflow)
    study = Study.load(study_path(path), for_running=True)
    trials = study.trials(only, seeds)
    runner = Runner(study, trials, run_dir or Path("runs") / study.name, data_dir)
    waiting, needed_s = runner.waiting(), runner.estimate_s()
    console = _console()
    console.print(
        f"{study.name}: {len(trials)} trainings, {len(waiting)} to make, about {shown_duration(needed_s)}; "
        f"run folder {runner.folder.path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if needed_s > ASK_ABOVE_S and confirm is not None:
        question = f"This will take about {shown_duration(needed_s)}. It can be stopped and goes on later. Begin?"
        if not confirm(question):
            return 1
    return runner.run(console)


def study_path(path: Path) -> Path:
    """The file that is meant: itself, or the study of this name that comes along.

    Raises:
        ConfigError: there is neither.
    """
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path  # reading it tells what is wrong
    known = {sample.stem: sample for sample in _samples()}
    if str(path) in known:
        return known[str(path)]
    near = get_close_matches(str(path), known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"expected a file, or one of {', '.join(known)}"
    raise ConfigError(f"{path}: there is no such study, {hint}")


def _samples() -> list[Path]:
    """The studies that come along: of the current folder, else of dpwa's checkout, else of the installed package.

    Raises:
        ConfigError: there are none.
    """
    package = Path(dpwa.__file__).parent
    for folder in (_SAMPLES, package.parent / _SAMPLES, package / "lab" / "studies"):
        if found := sorted(folder.glob("*.yaml")):
            return found
    raise ConfigError(
        f"no studies in {_SAMPLES}: run this in a checkout of dpwa, or name a study file: dpwa lab list my-study.yaml"
    )


def _shown(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)
