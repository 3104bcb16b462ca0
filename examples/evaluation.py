"""How good a model is, and the average of several models.

Must not know: how the models were trained. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from dpwa import MODEL_FILE, DpwaPyTorchAdapter, average_models, node_folder
from dpwa.examples.samples import Samples, Transform, unchanged

__all__ = ["accuracy_and_loss_of", "accuracy_of", "final_models", "report_average"]

EVALUATION_BATCH = 128  # the activations of 500 fit into no cache, and take two thirds more time


def accuracy_of(model: nn.Module, samples: Samples, prepare: Transform = unchanged) -> float:
    """The share of the samples that the model classifies rightly, 0..1: see `accuracy_and_loss_of`."""
    return accuracy_and_loss_of(model, samples, prepare)[0]


@torch.no_grad()
def accuracy_and_loss_of(model: nn.Module, samples: Samples, prepare: Transform = unchanged) -> tuple[float, float]:
    """The share of the samples that the model classifies rightly, 0..1, and its mean cross-entropy.

    The model is left in the mode (training or evaluation) that it was in.

    Args:
        model: gives one score per class.
        samples: images and their classes, or sequences with a label for each place.
        prepare: turns stored images into the model's input.
    """
    was_training = model.training
    model.eval()
    right, loss = 0, 0.0
    for start in range(0, len(samples), EVALUATION_BATCH):
        images = prepare(samples.images[start : start + EVALUATION_BATCH])
        labels = samples.labels[start : start + EVALUATION_BATCH]
        scores = model(images)
        right += int((scores.argmax(dim=1) == labels).sum())
        loss += nn.functional.cross_entropy(scores, labels, reduction="sum").item()
    model.train(was_training)
    return right / samples.labels.numel(), loss / samples.labels.numel()


def final_models(run_dir: Path, names: Sequence[str]) -> list[Path]:
    """The saved models of those of the named nodes that have ended well so far, in the order of the names."""
    paths = [node_folder(run_dir, name) / MODEL_FILE for name in names]
    return [path for path in paths if path.exists()]


def report_average(node: DpwaPyTorchAdapter, model: nn.Module, accuracy: Callable[[], float]) -> None:
    """Closes the node and prints the accuracy of the mean of all models that are saved by now.

    Whoever ends last has them all, and nobody waits for a node that was killed. Prints nothing for a node alone.

    Args:
        node: shares the model with the others.
        model: its model; holds the mean afterwards.
        accuracy: measures that model, 0..1.
    """
    node.close()
    if node.run_dir is None or node.world_size == 1:
        return
    paths = final_models(node.run_dir, [each.name for each in node.config.nodes])
    model.load_state_dict(average_models(paths))
    print(f"averaged model of {len(paths)} of {node.world_size} nodes: {accuracy():.1%}", flush=True)
