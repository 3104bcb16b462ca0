"""What `dpwa lab list` and `dpwa lab run` do.

Must not know: click. Runs in: the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import dpwa
from dpwa.config import yaml_file
from dpwa.errors import ConfigError
from dpwa.lab.run.pace import duration_text
from dpwa.lab.run.running import Runner
from dpwa.lab.run.starting import absent_packages
from dpwa.lab.strategies.environments import ENVIRONMENTS
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.lab.study.layers import Layers
from dpwa.lab.study.settings import TEXT_DATA_SETS
from dpwa.lab.study.study import Study
from dpwa.lab.study.study_rows import slug

__all__ = ["list_strategies", "list_studies", "run_study", "study_path", "try_strategies"]

_SAMPLES = Path("samples") / "studies"
_RUNS = Path("runs")
_MOST_LETTERS = 60  # of the name of a study that has no file

# For comparisons without a file: short, and good enough to tell strategies apart.
_RECIPE: Mapping[str, Any] = {"model": "light_cnn", "n_epochs": 10, "batch_size": 32}
_RECIPE_FOR_TEXT: Mapping[str, Any] = {
    "model": "char_transformer",
    "n_epochs": 10,
    "batch_size": 32,
    "optimizer": {"adamw": {"lr": 0.003}},
}


def list_studies(paths: Sequence[Path]) -> int:
    """Prints a table of studies.

    Args:
        paths: study files; empty: the bundled studies.

    Returns:
        The exit code: 0, or 2 if a file has problems, which are printed too.
    """
    found = [study_path(path) for path in paths] or _samples()
    table = Table("study", "rows x seeds", "epochs", "takes", "what it asks", box=None, pad_edge=False)
    problems: list[str] = []
    for path in found:
        try:
            study = Study.load(path, for_running=True)
        except ConfigError as error:
            problems += error.problems
            continue
        epochs = sum(trial.settings.n_epochs for trial in study.trials())
        trials = f"{len(study.rows)} x {len(study.seeds)}"
        table.add_row(_shown(path), trials, str(epochs), study.takes or "-", study.title)
    if table.row_count:
        _console().print(table)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems else 0


def list_strategies() -> None:
    """Prints a table of the strategies."""
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
) -> int:
    """Runs the trials of a study that have no result yet.

    Args:
        path: the study file, or the name of a bundled study.
        seeds: how many seeds; None: those of the file.
        only: conditions KEY=VALUE that trials must meet.
        run_dir: the run folder; None: runs/STUDY.
        data_dir: folder of the data sets; None: the variable DPWA_DATA_DIR.
        tensorflow: a Python that has TensorFlow; None: the variable DPWA_TENSORFLOW_PYTHON.

    Returns:
        The exit code; see `Runner.run`.

    Raises:
        ConfigError: the study, the conditions or the folder cannot be used.
        ModuleNotFoundError: a package is not installed without which no trial can run.
    """
    if tensorflow is not None:
        os.environ[ENVIRONMENTS["tensorflow"].variable] = str(tensorflow)
    study = Study.load(study_path(path), for_running=True)
    return _run(study, seeds, only, run_dir, data_dir)


def try_strategies(
    strategies: Sequence[str],
    *,
    data: str,
    nodes: int,
    seeds: int,
    assignments: Sequence[str],
    run_dir: Path | None,
    data_dir: Path | None,
) -> int:
    """Compares strategies without a study file, and prints the table. The run folder holds the file that it stands for.

    Args:
        strategies: at least one.
        data: the data set.
        nodes: processes that train.
        seeds: how many.
        assignments: KEY=VALUE of any other keys of a study file, dotted inside sections; values as in YAML.
        run_dir: the run folder; None: runs/try-STRATEGIES-DATA.
        data_dir: folder of the data sets; None: the variable DPWA_DATA_DIR.

    Returns:
        The exit code; see `Runner.run`.

    Raises:
        ConfigError: a strategy or a setting cannot be used.
    """
    from dpwa.lab.api import study_of, table_of  # noqa: PLC0415 - imports scipy

    layers = Layers()
    names = dict.fromkeys(strategies)
    name = slug("-".join(["try", *names, data]))[:_MOST_LETTERS].rstrip("-.")
    values = {"study": name, "data": data, "nodes": nodes, **(_RECIPE_FOR_TEXT if data in TEXT_DATA_SETS else _RECIPE)}
    for key, value in {**values, "seeds": seeds, "strategies": list(names)}.items():
        layers.put((key,), value, ())
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not (key and separator):
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE, such as n_epochs=20 or cluster.topology=ring")
        layers.put(tuple(key.split(".")), yaml_file.parse(f"value: {text}", f"--set {assignment}").values["value"], ())
    study = study_of(layers.values, {})
    code = _run(study, None, (), run_dir, data_dir)
    if code in (0, 1):
        _console().print(table_of(study, run_dir or _RUNS / study.name))
    return code


def _run(study: Study, seeds: int | None, only: Sequence[str], run_dir: Path | None, data_dir: Path | None) -> int:
    """Runs the trials of a study that have no result yet; the exit code."""
    trials = study.trials(only, seeds)
    runner = Runner(study, trials, run_dir or _RUNS / study.name, data_dir)
    for package in absent_packages(runner.waiting()):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    left_s = runner.seconds_left()
    time = f", about {duration_text(left_s)}" if left_s else ""
    console = _console()
    console.print(
        f"{study.name}: {len(trials)} trials, {len(runner.waiting())} to run{time}; run folder {runner.folder.path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return runner.run(console)


def study_path(path: Path) -> Path:
    """The file itself, or the bundled study of this name.

    Raises:
        ConfigError: there is neither.
    """
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path  # if it is missing, reading it says so
    known = {sample.stem: sample for sample in _samples()}
    if str(path) in known:
        return known[str(path)]
    near = get_close_matches(str(path), known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"expected a file, or one of {', '.join(known)}"
    raise ConfigError(f"{path}: there is no such study, {hint}")


def _samples() -> list[Path]:
    """The bundled studies: in the current folder, otherwise in dpwa's checkout, otherwise in the installed package.

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
