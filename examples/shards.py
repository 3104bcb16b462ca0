"""A part of a data set, for comparing: what `--shard K/N` leaves of it.

Must not know: models, adapters. Runs in: the main thread.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, DistributedSampler, Subset

__all__ = ["parse_shard", "part_of"]


def part_of(data: Dataset[Any], shard: tuple[int, int] | None) -> Dataset[Any]:
    """The samples that a node of this rank in a cluster of this world size would have; None: all samples."""
    if shard is None:
        return data
    rank, world_size = shard
    return Subset(data, list(DistributedSampler(data, num_replicas=world_size, rank=rank)))


def parse_shard(text: str) -> tuple[int, int]:
    """Rank and world size of a part that is written "K/N", counted from 1: "2/4" is (1, 4), the second of four.

    Raises:
        ValueError: the text is something else.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise ValueError(f'reading a shard: expected "K/N" with 1 <= K <= N, such as "2/4", got "{text}"')
    return int(first) - 1, int(second)
