"""Models and steps as files in a trial's folder: written by its processes, read by the evaluation.

A file is complete or missing, even if its process is killed.

Runs in: the calling thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["RoundModel", "read_snapshot", "read_steps", "write_snapshot", "write_steps"]

_STEP_KINDS = {"loss": "float32", "right": "int32", "count": "int32", "end_s": "float64"}


@dataclass(frozen=True)
class RoundModel:
    """The model of a process after a round.

    Attributes:
        tensors: by name.
        header: numbers; see `dpwa.lab.study.trial`.
    """

    tensors: dict[str, Tensor]
    header: dict[str, float]


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, float]) -> None:
    """Saves a model.

    Args:
        path: of the file.
        tensors: by name.
        header: numbers; see `dpwa.lab.study.trial`.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    save_file(plain, draft, {name: str(value) for name, value in header.items()})
    draft.replace(path)


def read_snapshot(path: Path) -> RoundModel | None:
    """The model in a file; None if there is no such file."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        header = {key: float(value) for key, value in (file.metadata() or {}).items()}
        return RoundModel({name: file.get_tensor(name) for name in file.keys()}, header)  # noqa: SIM118


def write_steps(path: Path, columns: Mapping[str, Any]) -> None:
    """Saves what happened in each step so far.

    Args:
        path: of the file.
        columns: loss, right, count and end_s, one number per step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft.npz")
    arrays = {name: np.asarray(columns[name], kind) for name, kind in _STEP_KINDS.items()}
    np.savez(draft, allow_pickle=False, **arrays)
    draft.replace(path)


def read_steps(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """What `write_steps` was given; None if there is no such file."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in _STEP_KINDS}
