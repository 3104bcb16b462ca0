"""The digits, and which of them each node sees.

Must not know: models, adapters. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from sklearn.datasets import load_digits

from dpwa.examples.samples import Samples

__all__ = ["digits_of_node", "load_split", "shard_by_class", "shard_of_node"]

SPLIT_SEED = 0
HELD_OUT_PARTS = 5  # one part of five, 20 %, is held out

# No node sees all ten digits, every digit is seen by two nodes, and no two nodes hold the same five.
DIGIT_GROUPS = (range(5), range(5, 10), range(0, 10, 2), range(1, 10, 2))


def load_split() -> tuple[Samples, Samples]:
    """The images that may be trained on, and the held-out ones; the same split every time."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # pixels come as 0..16
    everything = Samples(images, torch.from_numpy(digits.target).long())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out, *trainable = [order[part::HELD_OUT_PARTS] for part in range(HELD_OUT_PARTS)]
    return everything.select(torch.cat(trainable)), everything.select(held_out)


def digits_of_node(rank: int, world_size: int) -> tuple[int, ...]:
    """The digits that a node holds: all when it is the only one, otherwise one of the four groups in turn."""
    if world_size == 1:
        return tuple(range(10))
    return tuple(DIGIT_GROUPS[rank % len(DIGIT_GROUPS)])


def shard_of_node(samples: Samples, rank: int, world_size: int) -> Samples:
    """The samples of one node: disjoint from those of all others, its digits only."""
    classes = [digits_of_node(other, world_size) for other in range(world_size)]
    return samples.select(shard_by_class(samples.labels, classes, rank, seed=SPLIT_SEED))


def shard_by_class(
    labels: torch.Tensor, classes_of_nodes: Sequence[Collection[int]], rank: int, *, seed: int
) -> torch.Tensor:
    """The samples of one node when each node holds some classes only.

    The samples of a class are dealt out in equal parts among the nodes that hold this class.

    Args:
        labels: the class of each sample.
        classes_of_nodes: for each node, the classes that it holds.
        rank: of the node, from 0.
        seed: the same number on every node, so that the nodes agree without talking to each other.

    Returns:
        The indices of the samples, grouped by class.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.empty(0, dtype=torch.int64)]
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        # Drawn for every class on every node, also when not needed here: the nodes must agree on the order.
        members = members[torch.randperm(len(members), generator=generator)]
        holders = [node for node, classes in enumerate(classes_of_nodes) if label in classes]
        if rank in holders:
            parts.append(members[holders.index(rank) :: len(holders)])
    return torch.cat(parts)
