"""The training that the image examples share: one loop, one line of dpwa in it.

Must not know: which data set, which model. Runs in: the training thread.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.examples.evaluation import accuracy_of, report_average
from dpwa.examples.progress import TrainingProgress
from dpwa.examples.samples import Samples, Transform, unchanged
from dpwa.examples.shards import Place

__all__ = ["Recipe", "Task", "argument_parser", "device_of_node", "run_node", "train"]

# Enough for a curve that is steady to a point or two; the whole set is measured once, at the end.
SAMPLES_OF_AN_ESTIMATE = 1000


@dataclass(frozen=True)
class Task:
    """What one node learns.

    Attributes:
        title: its name in messages.
        model: with the same first weights on every node.
        shard: this node's own samples.
        held_out: samples that no node trains on.
        prepare: turns stored images into the model's input.
        augment: changes the prepared images of a training batch at random.
    """

    title: str
    model: nn.Module
    shard: Samples
    held_out: Samples
    prepare: Transform = unchanged
    augment: Transform = unchanged


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the shard.
        batch_size: samples per step; an incomplete last batch is left out.
        learning_rate: of every step.
        momentum: of every step.
        weight_decay: of every step.
        measure_every_steps: how often the accuracy is estimated.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    measure_every_steps: int = 20


def argument_parser(description: str, *, epochs: int) -> argparse.ArgumentParser:
    """The command line that all examples share.

    Args:
        description: what the example does.
        epochs: the default number of passes over the shard.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("DPWA_DATA_DIR"),
        help="folder with the data (default: the variable DPWA_DATA_DIR, else ./data)",
    )
    parser.add_argument("--epochs", type=_positive, default=epochs, help="passes over the shard (default: %(default)s)")
    parser.add_argument(
        "--shard",
        type=_place,
        metavar="K/N",
        help="train on part K of N (default: the part of this node among the nodes of the cluster)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number of at least 1, got "{text}"')
    return int(text)


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_node(task: Task, recipe: Recipe, *, seed: int) -> None:
    """Trains one node from start to end, and prints how good it and the averaged model are.

    Args:
        task: what to learn.
        recipe: how.
        seed: of the order of the samples; another one on every node, so that equal shards are not learned in step.
    """
    with DpwaPyTorchAdapter(task.model) as dpwa:
        train(dpwa, task, recipe, seed=seed)
        dpwa.finish()
        accuracy = accuracy_of(task.model, task.held_out, task.prepare)
        dpwa.log(test_accuracy=accuracy)
        print(f"{task.title}: test accuracy of {dpwa.name}: {accuracy:.1%}", flush=True)
        report_average(dpwa, task.model, lambda: accuracy_of(task.model, task.held_out, task.prepare))


def train(dpwa: DpwaPyTorchAdapter, task: Task, recipe: Recipe, *, seed: int) -> None:
    """The training loop.

    Args:
        dpwa: shares the model with the other nodes.
        task: what to learn.
        recipe: how.
        seed: of the order of the samples.
    """
    optimizer = torch.optim.SGD(
        task.model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    loss_of = nn.CrossEntropyLoss()
    order = torch.Generator().manual_seed(seed)
    steps_per_epoch = max(1, len(task.shard) // recipe.batch_size)
    total_steps = recipe.epochs * steps_per_epoch
    estimate = task.held_out.first(SAMPLES_OF_AN_ESTIMATE)
    accuracy = accuracy_of(task.model, estimate, task.prepare)
    dpwa.log(epochs=recipe.epochs, test_accuracy=accuracy, training_started_s=time.time())
    step = 0
    task.model.train()
    with TrainingProgress(task.title, total_steps) as progress:
        for _ in range(recipe.epochs):
            batches = torch.split(torch.randperm(len(task.shard), generator=order), recipe.batch_size)
            for batch in batches[:steps_per_epoch]:
                images = task.augment(task.prepare(task.shard.images[batch]))
                loss = loss_of(task.model(images), task.shard.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                dpwa.step(loss)
                step += 1
                if step % recipe.measure_every_steps == 0 or step == total_steps:
                    accuracy = accuracy_of(task.model, estimate, task.prepare)
                    progress.show(step, epoch=step / steps_per_epoch, loss=loss.item(), accuracy=accuracy)
                dpwa.log(epoch=step / steps_per_epoch, test_accuracy=accuracy)
    dpwa.log(training_ended_s=time.time())


def device_of_node(place: Place) -> torch.device:
    """The device that a node trains on: one of the GPUs in turn, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", place.index % torch.cuda.device_count())
    return torch.device("cpu")
