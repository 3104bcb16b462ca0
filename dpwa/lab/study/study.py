"""A study: a question, the rows that are compared, and the trainings that this takes.

Must not know: torch, processes, folders of runs. Runs in: any thread; a Study never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dpwa.config import yaml_file
from dpwa.config.lines import lines_of
from dpwa.config.problems import Problem, problems_of
from dpwa.config.yaml_file import ClusterFile
from dpwa.errors import ConfigError
from dpwa.lab.study.selection import chosen
from dpwa.lab.study.study_file import StudyOptions
from dpwa.lab.study.study_rows import Row, rows_of, slug
from dpwa.lab.study.trial import Trial

__all__ = ["Row", "Study", "trial_folder_name"]

_KIND = "study file"


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: its key `study`.
        title: heading; the name if the file has none.
        question: what is asked, for people; may be empty.
        rows: what is compared, in the order of the file.
        seeds: each row is trained once with each.
        literature_unit: "%" or "s", of the rows' numbers of the literature.
        target_accuracy: in per cent; None for none.
        grid: the keys that tell rows of one strategy apart.
        path: the file.
    """

    name: str
    title: str
    question: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    literature_unit: str
    target_accuracy: float | None
    grid: tuple[str, ...]
    path: Path

    @classmethod
    def load(cls, path: Path, *, for_running: bool = False) -> Study:
        """Read a study file and check it.

        Args:
            path: the file.
            for_running: look also at other files that it names, relative to its folder.

        Raises:
            ConfigError: with every problem, each on a line with file, line, column and place.
        """
        return cls._of(yaml_file.read(path, kind=_KIND), path, path.parent if for_running else None)

    @classmethod
    def from_text(cls, text: str, name: str = "study.yaml") -> Study:
        """Check the text of a study file.

        Args:
            text: YAML.
            name: what messages call the text.

        Raises:
            ConfigError: with every problem, each on a line.
        """
        return cls._of(yaml_file.parse(text, name, kind=_KIND), Path(name), None)

    @classmethod
    def _of(cls, file: ClusterFile, path: Path, folder: Path | None) -> Study:
        problems: list[Problem] = []
        options: StudyOptions | None = None
        try:
            options = StudyOptions.model_validate(file.values)
        except ValidationError as error:
            problems += problems_of(error, StudyOptions.model_json_schema())
        rows, found = rows_of(file.values, folder)
        lines = lines_of([*problems, *found], file)
        if options is None or lines:
            raise ConfigError(lines)
        return cls(
            name=options.study,
            title=options.title or options.study,
            question=options.question.strip(),
            rows=tuple(rows),
            seeds=options.seeds,
            literature_unit=options.literature_unit,
            target_accuracy=options.target_accuracy,
            grid=tuple(options.grid),
            path=path,
        )

    def trials(self, only: Sequence[str] = (), seeds: int | None = None) -> list[Trial]:
        """The trainings, row by row.

        Args:
            only: conditions KEY=VALUE; of several with one key one must hold, and all keys must.
            seeds: how many seeds, 0 to n-1, instead of those of the file.

        Raises:
            ConfigError: a condition has an unknown key, or fits no training.
        """
        numbers = self.seeds if seeds is None else tuple(range(seeds))
        trials = [Trial(self.name, row.label, seed, row.settings) for row in self.rows for seed in numbers]
        return chosen(trials, only, self.grid)


def trial_folder_name(trial: Trial) -> str:
    """Name of the folder of a training, unique in its study."""
    return f"{slug(trial.row)}-s{trial.seed}"
