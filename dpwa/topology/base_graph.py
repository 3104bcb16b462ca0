"""The base-(k+1) graph: exact averaging of any number of nodes in few rounds, with at most k partners per round.

From Takezawa et al. 2023, "Beyond Exponential Graph" (arXiv 2305.11420), section 4: the k-peer hyper-hypercube graph
(algorithm 1), the simple base-(k+1) graph (algorithm 2) and the base-(k+1) graph (algorithm 3). The number of rounds is
at most 2 log(n) / log(k + 1) + 2.

Must not know: anything else of topologies. Runs in: any thread; pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeAlias

__all__ = ["Pairs", "base_graph"]

Pairs: TypeAlias = dict[tuple[int, int], float]
"""One round: pairs of nodes and the weight that each of the two gives the other."""


def base_graph(count: int, most_partners: int) -> list[Pairs]:
    """The rounds after which `count` nodes have exactly their mean.

    Args:
        count: number of nodes.
        most_partners: k, the most partners that a node has in one round.

    Returns:
        One mapping per round; their matrices are symmetric and doubly stochastic. One node alone needs no round.
    """
    nodes = range(count)
    simple = _simple(nodes, most_partners)
    factors, rest = _smooth_part(count, most_partners + 1)
    if factors == 1 or rest == 1:
        return simple
    # First within parts of `rest` nodes, then across the parts, which are `factors` many (algorithm 3).
    parts = [nodes[start : start + rest] for start in range(0, count, rest)]
    within = _side_by_side(_simple(part, most_partners) for part in parts)
    across = _side_by_side(_hyper_hypercube(group, most_partners) for group in zip(*parts, strict=True))
    composed = within + across
    return composed if len(composed) < len(simple) else simple


def _smooth_part(number: int, largest: int) -> tuple[int, int]:
    """`number` as a product: of what its prime factors up to `largest` make, and the rest."""
    rest = number
    for factor in range(2, largest + 1):
        while rest % factor == 0:
            rest //= factor
    return number // rest, rest


@cache
def _fewest_factors(number: int, largest: int) -> tuple[int, ...] | None:
    """The fewest whole numbers from 2 to `largest` with this product; None if there are none."""
    if number == 1:
        return ()
    ways = [
        (*others, factor)
        for factor in range(2, min(number, largest) + 1)
        if number % factor == 0 and (others := _fewest_factors(number // factor, largest)) is not None
    ]
    return min(ways, key=len, default=None)


def _hyper_hypercube(nodes: Sequence[int], most_partners: int) -> list[Pairs]:
    """Algorithm 1, for numbers of nodes without a prime factor above `most_partners` + 1.

    A node's place is written in a mixed base. There is one round per digit; nodes that differ in this digit alone
    average.
    """
    rounds = []
    stride = 1
    for factor in _fewest_factors(len(nodes), most_partners + 1) or ():
        pairs: Pairs = {}
        for place, node in enumerate(nodes):
            digit = place // stride % factor
            for step in range(1, factor - digit):
                pairs[node, nodes[place + step * stride]] = 1 / factor
        rounds.append(pairs)
        stride *= factor
    return rounds


def _simple(nodes: Sequence[int], most_partners: int) -> list[Pairs]:
    """Algorithm 2, for any number of nodes.

    The number is written in base k + 1; each digit a_l makes a group of a_l (k + 1)^p_l nodes, in a_l blocks.

    Every group first averages by itself. Then each group in turn, the largest first, gives the smaller ones together
    the right mean: each of their nodes meets one node of each of its blocks, with a weight that leaves the mean of
    everything both to the blocks and to the rest. Last, each block averages by itself again.
    """
    if _fewest_factors(len(nodes), most_partners + 1) is not None:
        return _hyper_hypercube(nodes, most_partners)
    groups = _groups(nodes, most_partners + 1)
    apart = _side_by_side(_hyper_hypercube(_joined(blocks), most_partners) for blocks in groups)
    tracks = []
    for index, blocks in enumerate(groups[:-1]):
        rest = _joined(map(_joined, groups[index + 1 :]))
        size = sum(map(len, blocks))
        weight = size / (len(blocks) * (size + len(rest)))
        meeting = {(block[place], node): weight for place, node in enumerate(rest) for block in blocks}
        settling = _side_by_side(_hyper_hypercube(block, most_partners) for block in blocks)
        waiting: list[Pairs] = [{} for _ in range(index)]
        tracks.append([*waiting, meeting, *settling])
    return apart + _side_by_side(tracks)


def _groups(nodes: Sequence[int], base: int) -> list[list[Sequence[int]]]:
    """The nodes in groups of equal blocks whose sizes are powers of `base`, the largest first."""
    powers = [1]
    while powers[-1] * base <= len(nodes):
        powers.append(powers[-1] * base)
    groups = []
    start = 0
    for size in reversed(powers):
        blocks = []
        while len(nodes) - start >= size:
            blocks.append(nodes[start : start + size])
            start += size
        if blocks:
            groups.append(blocks)
    return groups


def _joined(parts: Iterable[Iterable[int]]) -> list[int]:
    return [node for part in parts for node in part]


def _side_by_side(tracks: Iterable[Sequence[Pairs]]) -> list[Pairs]:
    """The rounds of nodes that do not meet, made at the same time."""
    rounds: list[Pairs] = []
    for track in tracks:
        rounds += ({} for _ in range(len(track) - len(rounds)))
        for round_, pairs in enumerate(track):
            rounds[round_] |= pairs
    return rounds
