"""Problems of a configuration as lines for a person: file, line, column, place, and what to do.

Must not know: which keys there are. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpwa.config import yaml_file
from dpwa.config.yaml_file import ClusterFile
from dpwa.options import Problem

__all__ = ["lines_of"]


def lines_of(problems: Sequence[Problem], file: ClusterFile | None) -> list[str]:
    """One line for each problem, in the order of the file, with the problems of the file as YAML; none twice.

    Args:
        problems: what is wrong with the values.
        file: where they stand; None: the values are not from a file.
    """
    if file is None:
        return list(dict.fromkeys(_text(yaml_file.written(problem.place), problem) for problem in problems))
    marked = [
        (*file.locate(problem.place, key=problem.at_key), _text(file.spell(problem.place), problem))
        for problem in problems
    ]
    marked += [*file.problems]
    return list(dict.fromkeys(f"{file.name}:{line}:{column}: {text}" for line, column, text in sorted(marked)))


def _text(place: str, problem: Problem) -> str:
    text = f"{place}: {problem.text}" if place else problem.text
    return text.replace("\n", "\\n")  # a key or a value may hold one
