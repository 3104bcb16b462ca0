"""Results of trainings that never were, for tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dpwa.lab.report.results import TrialResult
from dpwa.lab.study.study import Study, trial_folder_name
from dpwa.lab.study.trial import Trial

MACHINE = {
    "processor": "Some Processor",
    "cores": 2,
    "memory_gb": 8.2,
    "system": "Linux 6",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "load": 1.5,
}


def result_of(trial: Trial, **changed: Any) -> dict[str, Any]:
    """What stands in result.json of a trial that is done; rows and seeds differ a little, in a way that is plain."""
    settings = trial.settings
    place = sum(map(ord, trial.row)) % 17
    final = 0.9 + 0.002 * place + 0.001 * trial.seed
    rounds = []
    for number in range(trial.rounds + 1):
        share = number / trial.rounds
        rounds.append(
            {
                "round": number,
                "epoch": number / settings.rounds_per_epoch,
                "samples": round(60_000 * settings.n_epochs * share),
                "time_s": (20.0 + place) * settings.n_epochs * share,
                "bytes_sent": 0 if trial.kind.is_one_process else round(4e6 * (place + 1) * number),
                "accuracy": final - (final - 0.1) * math.exp(-9 * share) * (1 - share),
                "loss": 0.25 + 2.05 * math.exp(-6 * share),
                "consensus": None if trial.kind.is_one_process else 0.02 * (1 + place) * (1 - share) + 1e-3 * share,
            }
        )
    points = 400
    shares = [(point + 1) / points for point in range(points)]
    processes = len(trial.process_names)
    result = {
        "trial": trial.to_json(),
        "status": "done",
        "reason": "",
        "commit": "0123456789ab",
        "machine": MACHINE,
        "wall_s": rounds[-1]["time_s"] + 30,
        "processes": processes,
        "threads_per_process": 1,
        "parameters": 206_922,
        "initial_weights": f"{trial.seed:064x}",
        "samples_seen": rounds[-1]["samples"],
        "training_s": rounds[-1]["time_s"],
        "bytes_sent": rounds[-1]["bytes_sent"],
        "final_accuracy": rounds[-1]["accuracy"],
        "final_loss": rounds[-1]["loss"],
        "workers": [
            {"name": name, "samples": 1000, "steps": 10, "training_s": 9.0, "accuracy": final - 0.01 * at}
            for at, name in enumerate(trial.process_names, start=1)
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


def parsed(result: dict[str, Any]) -> TrialResult:
    """The same after reading."""
    return TrialResult.model_validate(result)


class RunFolder:
    """The folder of a study's run."""

    def __init__(self, path: Path, study_text: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        (path / "study.yaml").write_text(study_text, encoding="utf-8")
        self.study = Study.load(path / "study.yaml")

    def trial(self, row: str, seed: int = 0) -> Trial:
        """One of the study's trials."""
        return next(trial for trial in self.study.trials() if (trial.row, trial.seed) == (row, seed))

    def write(self, trial: Trial, result: dict[str, Any] | str) -> Path:
        """Puts down a result, or any text in its place."""
        path = self.path / "trials" / trial_folder_name(trial) / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result if isinstance(result, str) else json.dumps(result), encoding="utf-8")
        return path

    def write_all(self) -> None:
        """A result for each trial."""
        for trial in self.study.trials():
            self.write(trial, result_of(trial))
