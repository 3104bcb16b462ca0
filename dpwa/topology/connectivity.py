"""Whether a topology can bring all nodes together, and who is cut off if it cannot.

Must not know: how a topology is configured. Runs in: any thread; pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dpwa.topology.graphs import strong_groups
from dpwa.topology.mixing import Edges, Mixing

__all__ = ["can_average", "cut_off", "named", "one_way"]

_MOST_NAMED = 8
_MOST_GROUPS = 4
_LARGEST_MULTIPLIED = 1024


def named(nodes: Sequence[int], names: Sequence[str]) -> str:
    """Nodes by name, the first of them if they are many."""
    shown = ", ".join(names[node] for node in nodes[:_MOST_NAMED])
    return shown + (f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else "")


def cut_off(edges: Edges, names: Sequence[str]) -> Iterator[str]:
    """Who is cut off, in words; nothing if everyone reaches everyone.

    Args:
        edges: who hears whom in some round.
        names: of the nodes.
    """
    count = len(names)
    groups = strong_groups(edges, count)
    if len(groups) == 1:
        return
    deaf = set(range(count)) - set(edges[:, 0].tolist())
    unheard = set(range(count)) - set(edges[:, 1].tolist())
    if alone := sorted(deaf & unheard):
        yield f"nobody hears {named(alone, names)}, and {_who(alone)} nobody"
    if only_deaf := sorted(deaf - unheard):
        yield f"{named(only_deaf, names)} {'hears' if len(only_deaf) == 1 else 'hear'} nobody"
    if only_unheard := sorted(unheard - deaf):
        yield f"nobody hears {named(only_unheard, names)}"
    if deaf or unheard:
        return
    group_of = np.empty(count, np.int64)
    for index, group in enumerate(groups):
        group_of[group] = index
    receivers, senders = group_of[edges].T
    heard_outside = set(senders[receivers != senders].tolist())
    closed = [group for index, group in enumerate(groups) if index not in heard_outside]
    for group in closed[:_MOST_GROUPS]:
        learn = "learns" if len(group) == 1 else "learn"
        yield f"what {named(group, names)} {learn} never reaches the other nodes"


def _who(nodes: Sequence[int]) -> str:
    return "it hears" if len(nodes) == 1 else "they hear"


def one_way(edges: Edges, count: int) -> tuple[int, int] | None:
    """An edge (receiver, sender) from which no way leads back, or None if there is none."""
    group_of = np.empty(count, np.int64)
    for index, group in enumerate(strong_groups(edges, count)):
        group_of[group] = index
    found = edges[group_of[edges[:, 0]] != group_of[edges[:, 1]]]
    return (int(found[0, 0]), int(found[0, 1])) if len(found) else None


def can_average(rounds: Sequence[Mixing], *, in_turn: bool) -> bool:
    """Whether models come together, given that in some round everyone can be reached by everyone.

    They always do if every node gives itself a weight in every round. Otherwise rounds may only pass models on: with
    the matrix [[0, 1], [1, 0]] two nodes swap their models forever.

    Args:
        rounds: the matrices.
        in_turn: used one after the other; otherwise drawn.

    Returns:
        Whether some power of the period's product, or of the mean matrix, has all entries above 0 (Perron and
        Frobenius). With more than 1024 nodes this is not looked at.
    """
    count = rounds[0].count
    if count > _LARGEST_MULTIPLIED or all(mixing.own(node) > 0 for mixing in rounds for node in range(count)):
        return True
    patterns = [(mixing.matrix() > 0).astype(np.float32) for mixing in rounds]
    if in_turn:
        reached = patterns[0]
        for pattern in patterns[1:]:
            reached = np.minimum(pattern @ reached, 1)
    else:
        if all((pattern.sum(axis=1) == 1).all() for pattern in patterns):
            return count == 1
        reached = np.minimum(sum(patterns[1:], patterns[0]), 1)
    # A matrix with one such power has all entries above 0 from the power (n - 1)^2 + 1 on (Wielandt 1950).
    for _ in range(2 * count.bit_length()):
        reached = np.minimum(reached @ reached, 1)
    return bool(reached.all())
