"""The models that the nodes of a run have saved, and how much each may count in a mean.

Must not know: what is in a model, torch. Runs in: any thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors import deserialize

from dpwa.errors import ConfigError
from dpwa.observe.bounded_file import read_records
from dpwa.observe.endings import Ending, ending_of
from dpwa.observe.journal import EVENTS_FILE, MODEL_FILE, node_folder
from dpwa.snapshot.dtypes import widened

__all__ = ["SavedModel", "Weighting", "distances_from_mean", "saved_models"]

Weighting = Literal["equal", "clock", "mass", "loss"]

_MOST_BYTES = 256_000_000
"""Models that take more together are not compared: the end of a launch should not take seconds."""

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class SavedModel:
    """The model of one node.

    Attributes:
        node: its name.
        path: of the file.
        clock: age of the model in updates; None if the journal does not say.
        mass: its weight in the sum that push methods conserve; None with other methods.
        loss: the last one that it published; None if it never had one.
    """

    node: str
    path: Path
    clock: float | None
    mass: float | None
    loss: float | None

    def weight(self, weighting: Weighting) -> float:
        """How much the model counts; by loss, one divided by it, so that half the loss counts twice.

        Raises:
            ConfigError: that is unknown, or not above 0.
        """
        if weighting == "equal":
            return 1.0
        value = {"clock": self.clock, "mass": self.mass, "loss": self.loss}[weighting]
        if value is None or not (math.isfinite(value) and value > 0):
            hint = "; the methods gosgd and sgp have masses" if weighting == "mass" else ""
            raise ConfigError(f"node {self.node}: expected a {weighting} above 0 in its journal, found {value}{hint}")
        return 1.0 / value if weighting == "loss" else value


def saved_models(run_dir: Path) -> tuple[list[SavedModel], dict[str, str]]:
    """The models of a run, in the order of the nodes' names, and what is wrong with the other nodes, by name.

    Raises:
        ConfigError: this is not the folder of a run, or no node has saved a model.
    """
    folders = sorted(path for path in node_folder(run_dir, "any").parent.glob("*") if path.is_dir())
    if not folders:
        raise ConfigError(f"{run_dir}: expected the folder of a run, with a folder nodes/NAME for each node")
    found, without = [], {}
    for folder in folders:
        ending = ending_of(folder)
        if not (folder / MODEL_FILE).exists():
            without[folder.name] = "has saved no model"
        elif ending.is_cut_off and _is_of_a_former_life(folder):
            without[folder.name] = "has saved no model in its last life"
        else:
            found.append(_saved(folder, ending))
    if not found:
        raise ConfigError(f"{run_dir}: no node has saved a model yet; a node saves {MODEL_FILE} when it ends")
    return found, without


def distances_from_mean(models: Sequence[SavedModel]) -> dict[str, float]:
    """How far each model is from the mean of all, relative to that mean's norm, by node.

    Empty for fewer than two models, for models that differ in their tensors, and for large ones.
    """
    if len(models) < 2 or sum(model.path.stat().st_size for model in models) > _MOST_BYTES:
        return {}
    values = [_values(model.path) for model in models]
    if len({each.shape for each in values}) != 1 or not values[0].size:
        return {}
    mean = np.mean(values, axis=0)
    norm = float(np.linalg.norm(mean))
    if not (norm > 0 and math.isfinite(norm)):
        return {}
    return {model.node: float(np.linalg.norm(each - mean)) / norm for model, each in zip(models, values, strict=True)}


def _values(path: Path) -> npt.NDArray[np.float32]:
    """All floating-point values of a file, one after the other."""
    tensors = sorted(
        deserialize(path.read_bytes()),  # type: ignore[no-untyped-call]
        key=lambda named: named[0],
    )
    found = [
        widened(np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])).astype(np.float32, copy=False)
        for _, tensor in tensors
        if tensor["dtype"] in _DTYPES
    ]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _is_of_a_former_life(folder: Path) -> bool:
    """Whether the model of a node is older than its last life."""
    starts = [record.get("t") for record in read_records(folder / EVENTS_FILE) if record.get("event") == "start"]
    began_s = _number(starts[-1]) if starts else None
    return began_s is not None and (folder / MODEL_FILE).stat().st_mtime < began_s


def _saved(folder: Path, ending: Ending) -> SavedModel:
    closing = ending.closing
    clock, mass, loss = (_number(closing.get(key)) for key in ("clock", "mass", "loss"))
    return SavedModel(folder.name, folder / MODEL_FILE, clock, mass, loss)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
