"""The digits, and which of them each node sees.

Must not know: models, adapters. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from dpwa.examples.samples import Samples
from dpwa.examples.shards import Place, shard_by_class, shard_evenly

__all__ = ["digits_of_node", "load_split", "shard_of_node"]

SPLIT_SEED = 0
HELD_OUT_PARTS = 5  # one part of five, 20 %, is held out

# No node sees all ten digits, every digit is seen by two nodes, and no two nodes hold the same five.
DIGIT_GROUPS = (range(5), range(5, 10), range(0, 10, 2), range(1, 10, 2))


def load_split() -> tuple[Samples, Samples]:
    """The images that may be trained on, and the held-out ones; the same split every time."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # pixels come as 0..16
    everything = Samples(images, torch.from_numpy(digits.target).long())
    parts = [
        shard_evenly(len(everything), Place(index, HELD_OUT_PARTS), seed=SPLIT_SEED) for index in range(HELD_OUT_PARTS)
    ]
    return everything.select(torch.cat(parts[1:])), everything.select(parts[0])


def digits_of_node(place: Place) -> tuple[int, ...]:
    """The digits that a node holds: all when it is the only one, otherwise one of the four groups in turn."""
    if place.count == 1:
        return tuple(range(10))
    return tuple(DIGIT_GROUPS[place.index % len(DIGIT_GROUPS)])


def shard_of_node(samples: Samples, place: Place) -> Samples:
    """The samples of one node: disjoint from those of all others, its digits only."""
    classes = [digits_of_node(Place(index, place.count)) for index in range(place.count)]
    return samples.select(shard_by_class(samples.labels, classes, place.index, seed=SPLIT_SEED))
