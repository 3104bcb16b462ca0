"""From the snapshots of a trial to its result.

Run as `python -m dpwa.lab.training.evaluation TRIAL_DIR --exit-code 0 --wall-s 12.3`.

Everything that needs held-out data is measured here, after the training, so that no strategy pays for it.

Runs in: a process of its own, with all cores; for a trial in memory, the process that has trained, with one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpwa.examples.devices import device_of
from dpwa.examples.evaluation import accuracy_and_loss_of, accuracy_of
from dpwa.examples.samples import Samples
from dpwa.lab.study.kinds import Start, kind_of
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.assignment import data_of, model_of, parts_of_nodes
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.data import DataSet
from dpwa.lab.training.machine import commit, machine
from dpwa.lab.training.models import initial_weights_hash
from dpwa.lab.training.partition import class_counts
from dpwa.lab.training.snapshots import RoundModel, read_snapshot, read_steps

__all__ = ["evaluate", "main"]

_MOST_POINTS = 400
_MOST_POINTS_OF_A_WORKER = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a trial and writes its result."""
    parser = argparse.ArgumentParser(description="Evaluate a trial of a study.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exit-code", type=int, default=0, help="exit code of the trial's processes")
    parser.add_argument("--reason", default="", help="why the trial failed, in one line")
    parser.add_argument(
        "--wall-s", type=float, default=0.0, help="duration of the trial in seconds, without the evaluation"
    )
    given = parser.parse_args(arguments)
    folder = TrialFolder(given.folder)
    trial = folder.trial()
    data = data_of(trial, folder)
    data = replace(data, held_out=data.held_out.to(device_of(0)))
    result = evaluate(folder, trial, data, exit_code=given.exit_code, reason=given.reason)
    write_json(folder.result_json, {**result, "wall_s": given.wall_s})


def evaluate(folder: TrialFolder, trial: Trial, data: DataSet, *, exit_code: int, reason: str = "") -> dict[str, Any]:
    """The result of a trial; for one that failed, as far as it got.

    Args:
        folder: of the trial.
        trial: the trial.
        data: its data set.
        exit_code: of its processes.
        reason: why it failed, for people.

    Returns:
        The content of result.json, except `wall_s`.
    """
    device = data.held_out.images.device
    model = model_of(trial, data).to(device)
    names = _names_with_models(trial)
    seen = _some_of_training(trial, data)
    rounds = [_round(folder, trial, names, number, model, data, seen) for number in range(trial.rounds + 1)]
    reached = [found for found in rounds if found is not None]
    done = [name for name in names if folder.snapshot(name, trial.rounds).exists()]
    killed = f"w{trial.settings.kill.node}" if trial.settings.kill is not None else None
    is_done = bool(done) and set(done) >= set(names) - {killed} and (exit_code == 0 or killed is not None)
    ends = _names_at_the_end(folder, trial)
    workers = [
        found
        for name in trial.training_names
        if (found := _worker(folder, trial, name, model, data if name in ends else None))
    ]
    last = reached[-1] if reached else None
    if is_done and killed in trial.process_names and not folder.snapshot(killed, trial.rounds).exists():
        begins_again = kind_of(trial.settings.strategy).start is Start.TORCHRUN
        what = "all began again from the last checkpoint" if begins_again else "the others went on to the end"
        reason = f"{killed} was killed; {what}"
    parts = [] if trial.settings.sampler else parts_of_nodes(trial, data)
    labels_of_one = data.train.labels[0].numel()
    newest = [snapshot for name in trial.process_names if (snapshot := _newest(folder, trial, name)) is not None]
    return {
        "trial": trial.to_json(),
        "status": "done" if is_done else "failed",
        "reason": reason if is_done else reason or f"exit code {exit_code}",
        "commit": _commit_at_the_start(folder),
        "machine": machine(),
        "processes": len(trial.process_names),
        "threads_per_process": int(max((snapshot.header["threads"] for snapshot in newest), default=0)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "initial_weights": _initial_weights(folder, names, model),
        "samples_seen": last["samples"] if last else 0,
        "training_s": last["time_s"] if last else 0.0,
        "bytes_sent": last["bytes_sent"] if last else 0,
        **_rates(newest),
        "final_accuracy": last["accuracy"] if last and is_done else None,
        "final_loss": last["loss"] if last and is_done else None,
        "workers": workers,
        "shard_sizes": [len(part) for part in parts],
        "class_counts": class_counts(
            data.groups.numpy(), [part.numpy() for part in parts], int(data.groups.max()) + 1
        ).tolist(),
        "rounds": reached,
        "batches": _batches(folder, trial.process_names, _MOST_POINTS, labels_of_one=labels_of_one),
        "worker_batches": {
            name: _batches(folder, (name,), _MOST_POINTS_OF_A_WORKER, labels_of_one=labels_of_one)
            for name in trial.training_names
            if len(trial.training_names) > 1
        },
    }


def _commit_at_the_start(folder: TrialFolder) -> str:
    """The commit that the trial was begun with: the checkout may have been renewed meanwhile."""
    if not folder.trial_json.exists():
        return commit()
    return str(json.loads(folder.trial_json.read_text(encoding="utf-8")).get("commit", commit()))


def _rates(newest: Sequence[RoundModel]) -> dict[str, float | None]:
    """Exchanges per step of a process, as asked for and as they really were; None for strategies without.

    Args:
        newest: the last word of each process; those of other versions do not say.
    """
    said = [snapshot.header for snapshot in newest if "asked" in snapshot.header]
    steps, asked, exchanges = (sum(header[key] for header in said) for key in ("step", "asked", "exchanges"))
    if not (asked and steps):
        return {"asked_per_step": None, "exchanges_per_step": None}
    return {"asked_per_step": asked / steps, "exchanges_per_step": exchanges / steps}


def _names_with_models(trial: Trial) -> tuple[str, ...]:
    """The processes whose models are aggregated."""
    names = trial.process_names
    if trial.kind.has_server:
        return names[-1:]
    return names[:1] if trial.kind.splits_batch else names


def _names_at_the_end(folder: TrialFolder, trial: Trial) -> set[str]:
    """The processes whose models are in the final one: not those that were killed, nor clients that were not chosen."""
    names = trial.training_names
    if trial.kind.has_server:
        schedule = Schedule.of(trial.settings, trial.seed)
        names = tuple(names[client] for client in schedule.chosen(schedule.rounds))
    return {name for name in names if folder.snapshot(name, trial.rounds).exists()}


def _initial_weights(folder: TrialFolder, names: Sequence[str], model: nn.Module) -> str:
    """Hash of the weights that the processes started with; several hashes if they differ."""
    found = set()
    for name in names:
        if (snapshot := read_snapshot(folder.snapshot(name, 0))) is not None:
            model.load_state_dict(snapshot.tensors)
            found.add(initial_weights_hash(model))
    return " ".join(sorted(found))


def _newest(folder: TrialFolder, trial: Trial, name: str) -> RoundModel | None:
    """The last model that a process has saved."""
    return _last_word(folder, name, trial.rounds)


def _round(
    folder: TrialFolder,
    trial: Trial,
    names: Sequence[str],
    number: int,
    model: nn.Module,
    data: DataSet,
    seen: Samples | None,
) -> dict[str, Any] | None:
    """What is measured of a round: the mean of all models that were saved after it; None if there are none."""
    found = [snapshot for name in names if (snapshot := read_snapshot(folder.snapshot(name, number))) is not None]
    if not found:
        return None
    mean = {name: torch.stack([s.tensors[name].double() for s in found]).mean(dim=0) for name in found[0].tensors}
    model.load_state_dict({name: value.to(found[0].tensors[name].dtype) for name, value in mean.items()})
    is_wanted = trial.settings.eval_acc or number == trial.rounds
    accuracy, loss = accuracy_and_loss_of(model, data.held_out, data.prepare) if is_wanted else (None, None)
    # Whoever was killed has trained and exchanged, too: its last word counts.
    gone = [name for name in names if not folder.snapshot(name, number).exists()]
    last_words = [*found, *(said for name in gone if (said := _last_word(folder, name, number)) is not None)]
    samples, bytes_sent = (sum(said.header[key] for said in last_words) for key in ("samples", "bytes_sent"))
    if trial.kind.splits_batch:  # every process computes a part of each batch, but only one saves its model
        header = found[0].header
        samples = _samples_of_all(folder, trial, round(header["step"]))
        samples += round(header.get("redone_steps", 0)) * trial.settings.batch_size
        bytes_sent *= len(trial.process_names)
    return {
        "round": number,
        "epoch": number / trial.settings.rounds_per_epoch,
        "samples": round(samples),
        "time_s": max(s.header["training_s"] for s in found),
        "bytes_sent": round(bytes_sent),
        "accuracy": accuracy,
        "loss": loss,
        **_on_training(model, data, seen if is_wanted else None),
        "consensus": _distance([s.tensors for s in found], _parameters(model, mean)) if len(names) > 1 else None,
    }


def _some_of_training(trial: Trial, data: DataSet) -> Samples | None:
    """Training samples on which rounds are evaluated, too: as many as are held out, the same for all rows of a seed."""
    if not trial.settings.eval_train:
        return None
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(trial.seed))
    return data.train.select(order[: len(data.held_out)]).to(data.held_out.images.device)


def _on_training(model: nn.Module, data: DataSet, seen: Samples | None) -> dict[str, float | None]:
    accuracy, loss = (None, None) if seen is None else accuracy_and_loss_of(model, seen, data.prepare)
    return {"train_accuracy": accuracy, "train_loss": loss}


def _last_word(folder: TrialFolder, name: str, number: int) -> RoundModel | None:
    """The last model that a process has saved up to a round, and how far it came after it if it ended there."""
    saved = (read_snapshot(folder.snapshot(name, earlier)) for earlier in range(number, -1, -1))
    found = next((snapshot for snapshot in saved if snapshot is not None), None)
    path = folder.last_word(name)
    if found is None or folder.snapshot(name, number).exists() or not path.exists():
        return found
    header = json.loads(path.read_text(encoding="utf-8"))
    return RoundModel(found.tensors, {**found.header, **header}) if header["step"] >= found.header["step"] else found


def _samples_of_all(folder: TrialFolder, trial: Trial, steps: int) -> int:
    """Samples that all processes together have trained on in their first `steps` steps."""
    total = 0
    for name in trial.process_names:
        found = read_steps(folder.steps(name))
        total += 0 if found is None else int(found["count"][:steps].sum())
    return total


def _parameters(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is trained: a BatchNorm's count of batches would be longer than all weights together."""
    return {name: tensors[name] for name, _ in model.named_parameters()}


def _distance(models: Sequence[dict[str, Tensor]], mean: dict[str, Tensor]) -> float:
    """Mean distance of the models from their mean, relative to the norm of the mean."""
    norm = torch.stack([value.norm() for value in mean.values()]).norm().item()
    distances = [
        torch.stack([(model[name].double() - value).norm() for name, value in mean.items()]).norm().item()
        for model in models
    ]
    return 0.0 if norm == 0 else float(np.mean(distances)) / norm


def _worker(
    folder: TrialFolder, trial: Trial, name: str, model: nn.Module, data: DataSet | None
) -> dict[str, Any] | None:
    """What is measured of one process; without data, all but its accuracy."""
    newest = _newest(folder, trial, name)
    if newest is None:
        return None
    unmerged = read_snapshot(folder.before_merge(name))
    return {
        "name": name,
        "samples": round(newest.header["samples"]),
        "steps": round(newest.header["step"]),
        "training_s": newest.header["training_s"],
        "accuracy": _accuracy(newest, model, data),
        "accuracy_before_merge": None if unmerged is None else _accuracy(unmerged, model, data),
    }


def _accuracy(saved: RoundModel, model: nn.Module, data: DataSet | None) -> float | None:
    if data is None:
        return None
    model.load_state_dict(saved.tensors)
    accuracy: float = accuracy_of(model, data.held_out, data.prepare)
    return accuracy


def _batches(
    folder: TrialFolder, names: Sequence[str], most_points: int, *, labels_of_one: int
) -> dict[str, list[float]]:
    """Loss and accuracy of training batches, the mean over these workers at equal shares of their steps."""
    found = []
    for name in names:
        steps = read_steps(folder.steps(name))
        if steps is not None and len(steps["loss"]):
            found.append(steps)
    if not found:
        return {"samples": [], "loss": [], "accuracy": []}
    points = min(most_points, *(len(steps["loss"]) for steps in found), most_points)
    samples, loss, right = np.zeros(points), np.zeros(points), np.zeros(points)
    for steps in found:
        # The same number of pieces for each worker, even for one with fewer steps.
        begins = np.arange(points) * len(steps["loss"]) // points
        samples += np.add.reduceat(steps["count"].astype(float), begins)
        right += np.add.reduceat(steps["right"].astype(float), begins)
        loss += np.add.reduceat(steps["loss"] * steps["count"].astype(float), begins)
    return {
        "samples": np.cumsum(samples).tolist(),
        "loss": np.round(loss / samples, 5).tolist(),
        "accuracy": np.round(right / (samples * labels_of_one), 5).tolist(),
    }


if __name__ == "__main__":
    main()
