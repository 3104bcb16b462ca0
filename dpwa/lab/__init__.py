"""The lab: compares strategies of training together on real data, as real processes, in one report.

It uses dpwa as a user would. `commands`, `study`, `run` and `report` do not import torch, so `dpwa lab list` answers at
once. The words:

- A **study** compares **rows**. A row is a **strategy** (how processes train together) with settings.
- A **trial** is one row with one seed: one training, in a folder of its own, with one result.
- A **run** of a study is a folder with its trials; a run that is continued keeps the finished ones.
- A **round** is one of the equal parts of a training; at its end every process saves its model.

In a script or a notebook: `from dpwa.lab import run_study`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpwa.lab.api import StudyTable, run_study

__all__ = ["StudyTable", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpwa.lab import api  # noqa: PLC0415 - scipy is slow to import, and few who import this package need it

    return getattr(api, name)
