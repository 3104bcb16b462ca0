"""Results of trainings that never were, for tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dpwa.lab.report.results import CellResult
from dpwa.lab.study.cell import Cell
from dpwa.lab.study.study import Study, cell_folder_name

MACHINE = {
    "processor": "Some Processor",
    "cores": 2,
    "memory_gb": 8.2,
    "system": "Linux 6",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "load": 1.5,
}


def result_of(cell: Cell, **changed: Any) -> dict[str, Any]:
    """What stands in result.json of a cell that is done; rows and seeds differ a little, in a way that is plain."""
    settings = cell.settings
    place = sum(map(ord, cell.row)) % 17
    final = 0.9 + 0.002 * place + 0.001 * cell.seed
    rounds = []
    for number in range(cell.rounds + 1):
        share = number / cell.rounds
        rounds.append(
            {
                "round": number,
                "epoch": number / settings.rounds_per_epoch,
                "samples": round(60_000 * settings.n_epochs * share),
                "time_s": (20.0 + place) * settings.n_epochs * share,
                "bytes_sent": 0 if cell.kind.is_one_process else round(4e6 * (place + 1) * number),
                "accuracy": final - (final - 0.1) * math.exp(-9 * share) * (1 - share),
                "loss": 0.25 + 2.05 * math.exp(-6 * share),
                "consensus": None if cell.kind.is_one_process else 0.02 * (1 + place) * (1 - share) + 1e-3 * share,
            }
        )
    points = 400
    shares = [(point + 1) / points for point in range(points)]
    processes = len(cell.process_names)
    result = {
        "cell": cell.to_json(),
        "status": "done",
        "reason": "",
        "commit": "0123456789ab",
        "machine": MACHINE,
        "wall_s": rounds[-1]["time_s"] + 30,
        "processes": processes,
        "threads_per_process": 1,
        "parameters": 206_922,
        "initial_weights": f"{cell.seed:064x}",
        "samples_seen": rounds[-1]["samples"],
        "training_s": rounds[-1]["time_s"],
        "bytes_sent": rounds[-1]["bytes_sent"],
        "final_accuracy": rounds[-1]["accuracy"],
        "final_loss": rounds[-1]["loss"],
        "workers": [
            {"name": name, "samples": 1000, "steps": 10, "training_s": 9.0, "accuracy": final - 0.01 * at}
            for at, name in enumerate(cell.process_names, start=1)
        ],
        "shard_sizes": [60_000 // settings.nodes] * settings.nodes,
        "class_counts": [[6000 // settings.nodes] * 10 for _ in range(settings.nodes)],
        "rounds": rounds,
        "batches": {
            "samples": [rounds[-1]["samples"] * share for share in shares],
            "loss": [0.2 + 2.1 * math.exp(-8 * share) + 0.01 * math.sin(90 * share) for share in shares],
            "accuracy": [final - 0.8 * math.exp(-9 * share) + 0.005 * math.sin(77 * share) for share in shares],
        },
    }
    return {**result, **changed}


def failed(result: dict[str, Any], after: int, reason: str) -> dict[str, Any]:
    """The same training, ended after a round."""
    rounds = result["rounds"][: after + 1]
    return {
        **result,
        "status": "failed",
        "reason": reason,
        "rounds": rounds,
        "final_accuracy": None,
        "final_loss": None,
    }


def parsed(result: dict[str, Any]) -> CellResult:
    """The same after reading."""
    return CellResult.model_validate(result)


class RunFolder:
    """The folder of a study's run."""

    def __init__(self, path: Path, study_text: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        (path / "study.yaml").write_text(study_text, encoding="utf-8")
        self.study = Study.load(path / "study.yaml")

    def cell(self, row: str, seed: int = 0) -> Cell:
        """One of the study's cells."""
        return next(cell for cell in self.study.cells() if (cell.row, cell.seed) == (row, seed))

    def write(self, cell: Cell, result: dict[str, Any] | str) -> Path:
        """Puts down a result, or any text in its place."""
        path = self.path / "cells" / cell_folder_name(cell) / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result if isinstance(result, str) else json.dumps(result), encoding="utf-8")
        return path

    def write_all(self) -> None:
        """A result for each cell."""
        for cell in self.study.cells():
            self.write(cell, result_of(cell))
