"""How good a model is.

Must not know: how the models were trained. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import nn

from dpwa.examples.samples import Samples, Transform, unchanged

__all__ = ["accuracy_and_loss_of", "accuracy_of"]

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
