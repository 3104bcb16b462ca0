"""A study: a question, the rows that are compared, and their trials; and which of these `--only KEY=VALUE` chooses.

Runs in: any thread; a Study never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpwa.config import yaml_file
from dpwa.config.lines import lines_of
from dpwa.config.problems import problems_of
from dpwa.config.yaml_file import ClusterFile
from dpwa.errors import ConfigError
from dpwa.lab.study.study_file import StudyOptions
from dpwa.lab.study.study_rows import Row, rows_of, slug
from dpwa.lab.study.trial import Trial
from dpwa.options import Problem

__all__ = ["Row", "Study", "trial_folder_name"]

_KIND = "study file"
_MOST_LISTED = 12
_UNNAMED = "study"


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: its key `study`.
        title: heading; the name if the file has none.
        question: what the study asks, for people; may be empty.
        takes: how long its trials take, as the file says; may be empty.
        rows: what is compared, in the order of the file.
        seeds: each row is trained once with each of them.
        literature_unit: "%" or "s", for the rows' numbers from the literature.
        target_accuracy: in per cent; None: no target.
        compare_with: label of the row that the others are compared with, or name of the entry of several; empty: none.
        same_updates: groups of labels of rows that make the same updates.
        grid: the settings by which rows of one strategy differ.
        path: the file.
        folder: what it names is looked for here: files of matrices, and modules with the user's own code.
        text: the content of the file.
    """

    name: str
    title: str
    question: str
    takes: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    literature_unit: str
    target_accuracy: float | None
    compare_with: str
    same_updates: tuple[tuple[str, ...], ...]
    grid: tuple[str, ...]
    path: Path
    folder: Path
    text: str

    @classmethod
    def load(cls, path: Path, *, for_running: bool = False) -> Study:
        """Reads a study file and checks it.

        Args:
            path: the file.
            for_running: also check the files that it names, relative to its folder.

        Raises:
            ConfigError: one line per problem, with file, line, column and key.
        """
        file = yaml_file.read(path, kind=_KIND)
        return cls._of(file, path, path.parent, path.read_text(encoding="utf-8"), is_for_running=for_running)

    @classmethod
    def from_text(cls, text: str, name: str | None = "study.yaml", *, for_running: bool = False) -> Study:
        """Checks the text of a study file.

        Args:
            text: YAML.
            name: the name of the text in messages; None: nobody has written it, so they name no lines.
            for_running: also check the files that it names, relative to the current folder.

        Raises:
            ConfigError: one line per problem.
        """
        file = yaml_file.parse(text, name or _UNNAMED, kind=_KIND)
        return cls._of(file, Path(name or _UNNAMED), Path.cwd(), text, is_for_running=for_running)

    @classmethod
    def _of(cls, file: ClusterFile, path: Path, folder: Path, text: str, *, is_for_running: bool) -> Study:
        problems: list[Problem] = []
        options: StudyOptions | None = None
        try:
            options = StudyOptions.model_validate(file.values)
        except ValidationError as error:
            problems += problems_of(error, StudyOptions.model_json_schema())
        rows, groups, found = rows_of(file.values, folder if is_for_running else None)
        lines = lines_of([*problems, *found], None if file.name == _UNNAMED else file)
        if options is None or lines:
            raise ConfigError(lines)
        return cls(
            name=options.study,
            title=options.title or options.study,
            question=options.question.strip(),
            takes=options.takes,
            rows=tuple(rows),
            seeds=options.seeds,
            literature_unit=options.literature_unit,
            target_accuracy=options.target_accuracy,
            compare_with=options.compare_with,
            same_updates=groups,
            grid=tuple(options.grid),
            path=path,
            folder=folder,
            text=text,
        )

    def trials(self, only: Sequence[str] = (), seeds: int | None = None) -> list[Trial]:
        """The trials, row by row.

        Args:
            only: conditions KEY=VALUE. Keys are row, strategy (or method), seed, and settings, dotted inside sections;
                the last part of a dotted key of the grid is enough. A trial must meet one condition per key.
            seeds: how many seeds, 0 to n-1, instead of those of the file.

        Raises:
            ConfigError: a condition is not of this form, has an unknown key, or a value that no trial has.
        """
        numbers = self.seeds if seeds is None else tuple(range(seeds))
        trials = [Trial(self.name, row.label, seed, row.settings) for row in self.rows for seed in numbers]
        return _chosen(trials, only, self.grid)


def trial_folder_name(trial: Trial) -> str:
    """Name of a trial's folder, unique in its study."""
    return f"{slug(trial.row)}-s{trial.seed}"


def _chosen(trials: Sequence[Trial], only: Sequence[str], grid: Sequence[str]) -> list[Trial]:
    """The trials that meet the conditions; see `Study.trials`."""
    facts = [_facts(trial, grid) for trial in trials]
    wanted: dict[str, list[str]] = {}
    problems: list[str] = []
    for condition in only:
        key, separator, value = condition.partition("=")
        if not separator:
            problems.append(f"--only {condition}: expected KEY=VALUE, such as strategy=gosgd")
            continue
        problems += _problems(condition, key, value, facts)
        wanted.setdefault(key, []).append(value)
    if problems:
        raise ConfigError(problems)
    found = [
        trial
        for trial, fact in zip(trials, facts, strict=True)
        if all(any(_is_same(fact.get(key), value) for value in values) for key, values in wanted.items())
    ]
    if not found:
        raise ConfigError(f"--only {' --only '.join(only)}: no trial meets all of these conditions")
    return found


def _problems(condition: str, key: str, value: str, facts: Sequence[Mapping[str, str]]) -> list[str]:
    known = list(dict.fromkeys(name for fact in facts for name in fact))
    if key not in known:
        near = get_close_matches(key, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(known)}"
        return [f"--only {condition}: unknown key, {hint}"]
    there = list(dict.fromkeys(fact[key] for fact in facts if key in fact))
    if any(_is_same(one, value) for one in there):
        return []
    more = f" and {len(there) - _MOST_LISTED} more" if len(there) > _MOST_LISTED else ""
    return [f"--only {condition}: no trial has this value, expected one of: {'; '.join(there[:_MOST_LISTED])}{more}"]


def _facts(trial: Trial, grid: Sequence[str]) -> dict[str, str]:
    """Everything that a condition can be about, as text."""
    flat = dict(_flat(trial.settings.to_json(), ""))
    facts = {"row": trial.row, "method": trial.settings.strategy, "seed": str(trial.seed), **flat}
    for key in grid:
        if key in flat:
            facts.setdefault(key.rpartition(".")[2], flat[key])
    return facts


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
            if "kind" in value:  # partition=iid
                found.append((f"{prefix}{key}", str(value["kind"])))
        else:
            found.append((f"{prefix}{key}", _text(value)))
    return found


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_same(fact: str | None, value: str) -> bool:
    if fact is None:
        return False
    try:
        return float(fact) == float(value)
    except ValueError:
        return fact == value
