"""Which samples belong to which node: disjoint shards of one data set.

Every node computes its own shard from the same seed, so that the nodes agree without talking to each other.

Must not know: models, adapters, data formats. Runs in: the training thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from dpwa.config import ClusterConfig

__all__ = ["Place", "shard_by_class", "shard_evenly"]


@dataclass(frozen=True)
class Place:
    """Where a node stands among the nodes that share a data set.

    Attributes:
        index: this node's number, from 0.
        count: how many nodes there are.
    """

    index: int
    count: int

    @classmethod
    def of_this_node(cls) -> Place:
        """The place that `dpwa launch` gave to this process, or the only place when it runs alone.

        Raises:
            ConfigError: the cluster file cannot be used, or does not know this node.
        """
        path, name = os.environ.get("DPWA_CONFIG"), os.environ.get("DPWA_NODE")
        if not path or not name:
            return cls(index=0, count=1)
        config = ClusterConfig.load(path)
        return cls(index=config.nodes.index(config.node(name)), count=len(config.nodes))

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place written as "K/N", counted from 1: "2/4" is the second of four.

        Raises:
            ValueError: the text is something else.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise ValueError(f'reading a shard: expected "K/N" with 1 <= K <= N, such as "2/4", got "{text}"')
        return cls(index=int(first) - 1, count=int(second))


def shard_evenly(sample_count: int, place: Place, *, seed: int) -> torch.Tensor:
    """The samples of one node when all are dealt out at random, in equal parts.

    Args:
        sample_count: how many samples there are for all nodes together.
        place: the node whose shard is wanted.
        seed: the same number on every node.

    Returns:
        The indices of the samples, in random order.
    """
    order = torch.randperm(sample_count, generator=torch.Generator().manual_seed(seed))
    return order[place.index :: place.count]


def shard_by_class(
    labels: torch.Tensor, classes_of_nodes: Sequence[Collection[int]], index: int, *, seed: int
) -> torch.Tensor:
    """The samples of one node when each node holds some classes only.

    The samples of a class are dealt out in equal parts among the nodes that hold this class.

    Args:
        labels: the class of each sample.
        classes_of_nodes: for each node, the classes that it holds.
        index: the number of the node whose shard is wanted, from 0.
        seed: the same number on every node.

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
        if index in holders:
            parts.append(members[holders.index(index) :: len(holders)])
    return torch.cat(parts)
