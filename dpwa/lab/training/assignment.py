"""What each process of a trial trains on and how: its data, its recipe, the seed for its order of samples.

Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import nn

from dpwa.examples.command_line import data_dir_of_environment
from dpwa.examples.samples import Samples
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.data import DataSet, load, with_wrong_labels
from dpwa.lab.training.handicaps import shares_of_work
from dpwa.lab.training.loop import Recipe
from dpwa.lab.training.models import build, check_scores
from dpwa.lab.training.partition import partition
from dpwa.lab.training.precision import multiply_in_bfloat16

__all__ = ["data_of", "model_of", "order_seed", "parts_of_nodes", "recipe_of", "samples_of_node"]

_ORDERS_APART = 1_000_000_007  # no two usual seeds are as far apart


def data_of(trial: Trial, folder: TrialFolder) -> DataSet:
    """The data set of a trial, from the folder that the variable DPWA_DATA_DIR names."""
    return load(trial.settings.data, data_dir_of_environment(), folder.data_cache(trial.settings.data))


def model_of(trial: Trial, data: DataSet) -> nn.Module:
    """The network of a trial with its initial weights, tried on the data."""
    name = trial.settings.model
    model = build(name, data.shape, data.classes, seed=trial.seed)
    few = data.held_out.first(2)
    if trial.settings.precision == "bfloat16":
        multiply_in_bfloat16(model)
    check_scores(name, model, data.prepare(few.images), few.labels, data.classes, seed=trial.seed)
    return model


def parts_of_nodes(trial: Trial, data: DataSet) -> list[torch.Tensor]:
    """Indices of the training samples that each node holds, the same in every process."""
    parts = partition(data.groups.numpy(), trial.settings.partition, trial.settings.nodes, seed=trial.seed)
    return [torch.from_numpy(part) for part in parts]


def samples_of_node(trial: Trial, data: DataSet, rank: int) -> Samples:
    """What one process trains on: its part, or all data where there is only one model."""
    kind, wrong = trial.kind, trial.settings.wrong_labels
    is_whole = kind.splits_batch or kind.is_one_process or trial.settings.sampler
    if is_whole and wrong is None:
        return data.train
    parts = parts_of_nodes(trial, data)
    if is_whole and wrong is not None:
        part = parts[wrong.node - 1]
        labels = data.train.labels.clone()
        labels[part] = _worsened(trial, data, part).labels
        return Samples(data.train.images, labels)
    if wrong is not None and wrong.node == rank + 1:
        return _worsened(trial, data, parts[rank])
    return data.train.select(parts[rank])


def _worsened(trial: Trial, data: DataSet, part: torch.Tensor) -> Samples:
    wrong = trial.settings.wrong_labels
    share = 0.0 if wrong is None else wrong.share
    return with_wrong_labels(data.train.select(part), share, data.classes, seed=trial.seed)


def recipe_of(trial: Trial, shard_size: int, rank: int) -> Recipe:
    """How a process with this many samples trains."""
    settings, kind = trial.settings, trial.kind
    epochs = settings.n_epochs
    if kind.has_server:
        epochs = Schedule.of(settings, trial.seed).epochs_of(rank)
    if settings.sampler:
        shard_size //= settings.nodes  # about as many as it will train
    steps = epochs * max(1, shard_size // settings.batch_size)
    if not (kind.splits_batch or kind.is_one_process):
        # Even a very slow node makes one step; a client that is never chosen makes none.
        steps = max(min(1, steps), round(steps * shares_of_work(settings, waits=kind.waits)[rank]))
    return Recipe(
        epochs=epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        total_steps=steps,
        optimizer=settings.optimizer.kind,
        options=settings.optimizer.options,
        decay_at=settings.decay_at,
        decay_factor=settings.decay_factor,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
    )


def order_seed(trial: Trial, rank: int) -> int:
    """Seed for the order of samples: the same for all processes that share each batch, otherwise one for each."""
    other = _ORDERS_APART * trial.settings.data_order
    if trial.kind.splits_batch or trial.kind.is_one_process:
        return other + trial.seed
    return other + 1000 * (trial.seed + 1) + rank
