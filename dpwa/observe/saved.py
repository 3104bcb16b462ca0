"""The models that the nodes of a run have saved, and how much each may count in a mean.

Must not know: what is in a model, torch. Runs in: any thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpwa.errors import ConfigError
from dpwa.observe.bounded_file import read_records
from dpwa.observe.journal import METRICS_FILE, node_folder

__all__ = ["MODEL_FILE", "SavedModel", "Weighting", "saved_models"]

MODEL_FILE = "model.safetensors"

Weighting = Literal["equal", "clock", "mass"]


@dataclass(frozen=True)
class SavedModel:
    """The model of one node.

    Attributes:
        node: its name.
        path: of the file.
        clock: age of the model in updates; None if the node has left no metrics.
        mass: its weight in the sum that push methods conserve; None with other methods.
    """

    node: str
    path: Path
    clock: float | None
    mass: float | None

    def weight(self, weighting: Weighting) -> float:
        """How much the model counts.

        Raises:
            ConfigError: that is unknown, or not above 0.
        """
        if weighting == "equal":
            return 1.0
        value = self.clock if weighting == "clock" else self.mass
        if value is None or not (math.isfinite(value) and value > 0):
            hint = "; the methods gosgd and sgp have masses" if weighting == "mass" else ""
            raise ConfigError(f"node {self.node}: expected a {weighting} above 0 in its metrics, found {value}{hint}")
        return value


def saved_models(run_dir: Path) -> tuple[list[SavedModel], list[str]]:
    """The models of a run, in the order of the nodes' names, and the names of nodes that have saved none.

    Raises:
        ConfigError: this is not the folder of a run, or no node has saved a model.
    """
    folders = sorted(path for path in node_folder(run_dir, "any").parent.glob("*") if path.is_dir())
    if not folders:
        raise ConfigError(f"{run_dir}: expected the folder of a run, with a folder nodes/NAME for each node")
    found = [_saved(folder) for folder in folders if (folder / MODEL_FILE).exists()]
    if not found:
        raise ConfigError(f"{run_dir}: no node has saved a model yet; a node saves {MODEL_FILE} when it ends")
    return found, [folder.name for folder in folders if not (folder / MODEL_FILE).exists()]


def _saved(folder: Path) -> SavedModel:
    newest = deque(read_records(folder / METRICS_FILE), maxlen=1)
    last: Mapping[str, object] = newest[0] if newest else {}
    return SavedModel(folder.name, folder / MODEL_FILE, _number(last.get("clock")), _number(last.get("mass")))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
