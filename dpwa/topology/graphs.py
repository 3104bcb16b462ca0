"""The named graphs: who hears whom, without weights.

Symmetric graphs come with both directions of each edge. Random ones are drawn from a seed and are the same in every
process and on every platform, as long as the version of networkx is the same.

Must not know: weights, rounds, names of nodes. Runs in: any thread; pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dpwa.topology.mixing import Edges

__all__ = [
    "RANDOM",
    "REGULAR",
    "SYMMETRIC",
    "GraphOptions",
    "complete",
    "edges_of",
    "exponential_offsets",
    "is_strongly_connected",
    "most_square",
    "sorted_edges",
    "strong_groups",
]

RANDOM = frozenset({"random_regular", "erdos_renyi", "small_world"})
"""Graphs that are drawn."""

SYMMETRIC = RANDOM | {"complete", "ring", "grid", "torus", "star", "hypercube"}
"""Graphs in which nodes hear each other or not at all."""

REGULAR = frozenset({"complete", "ring", "directed_ring", "torus", "hypercube", "exponential", "random_regular"})
"""Graphs in which all nodes hear, and are heard by, equally many others."""

_MOST_DRAWS = 100
"""How often a random graph is drawn again, at most, until one is connected; for graphs that stay the same."""


@dataclass(frozen=True)
class GraphOptions:
    """Options of those graphs that have some.

    Attributes:
        degree: neighbours of each node in random_regular, and in small_world before the rewiring.
        probability: of each edge in erdos_renyi.
        rewiring: probability in small_world that an edge gets another end.
        edges: pairs [sender, receiver] of the graph edges; shape (m, 2).
        directed: whether those hold in one direction only.
    """

    degree: int = 0
    probability: float = 0.0
    rewiring: float = 0.0
    edges: tuple[tuple[int, int], ...] = ()
    directed: bool = False


def edges_of(
    graph: str, count: int, options: GraphOptions, seed: Sequence[int] = (0,), *, until_connected: bool = True
) -> Edges:
    """The edges of a graph of `count` nodes.

    Args:
        graph: its name.
        count: number of nodes; one that the graph exists for.
        options: of the graph.
        seed: for random graphs.
        until_connected: draw a random graph again if it is not connected. It may still not be, at a low probability.
    """
    if graph in RANDOM:
        return _drawn(graph, count, options, seed, until_connected=until_connected)
    if graph == "edges":
        pairs = [(receiver, sender) for sender, receiver in options.edges]
        return sorted_edges(pairs if options.directed else _both(pairs))
    if graph == "complete":
        return complete(count)
    every = range(count)
    if graph == "directed_ring":
        return sorted_edges((node, (node - 1) % count) for node in every)
    if graph == "exponential":
        offsets = exponential_offsets(count)
        return sorted_edges((node, (node - offset) % count) for node in every for offset in offsets)
    if graph == "ring":
        return sorted_edges(_both((node, (node + 1) % count) for node in every))
    if graph == "star":
        return sorted_edges(_both((0, node) for node in every))
    if graph == "hypercube":
        bits = [1 << bit for bit in range(count.bit_length() - 1)]
        return sorted_edges((node, node ^ bit) for node in every for bit in bits)
    return _lattice(count, wrapped=graph == "torus")


def sorted_edges(pairs: Iterable[tuple[int, int]]) -> Edges:
    """Pairs (receiver, sender) as edges; doubles and pairs of a node with itself are left out."""
    distinct = sorted({pair for pair in pairs if pair[0] != pair[1]})
    return np.array(distinct, np.int64).reshape(-1, 2)


def _both(pairs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    for first, second in pairs:
        yield first, second
        yield second, first


def complete(count: int) -> Edges:
    """All edges that there can be."""
    return np.argwhere(~np.eye(count, dtype=bool)).astype(np.int64)


def exponential_offsets(count: int) -> list[int]:
    """1, 2, 4 … below `count`: how far away a node of the exponential graphs listens.

    Ying et al. 2021, arXiv 2110.13363, section 3.
    """
    return [1 << power for power in range((count - 1).bit_length())]


def most_square(count: int) -> tuple[int, int]:
    """Rows and columns of a grid of `count` nodes, as equal as they can be: rows <= columns."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def _lattice(count: int, *, wrapped: bool) -> Edges:
    _, columns = most_square(count)
    rows = count // columns
    pairs = []
    for node in range(count):
        row, column = divmod(node, columns)
        if wrapped or column + 1 < columns:
            pairs.append((node, row * columns + (column + 1) % columns))
        if wrapped or row + 1 < rows:
            pairs.append((node, (row + 1) % rows * columns + column))
    return sorted_edges(_both(pairs))


def _drawn(graph: str, count: int, options: GraphOptions, seed: Sequence[int], *, until_connected: bool) -> Edges:
    edges = sorted_edges(())
    for attempt in range(_MOST_DRAWS if until_connected else 1):
        (number,) = np.random.SeedSequence((*seed, attempt)).generate_state(1)
        edges = _draw_once(graph, count, options, int(number))
        if until_connected and is_strongly_connected(edges, count):
            break
    return edges


def _draw_once(graph: str, count: int, options: GraphOptions, seed: int) -> Edges:
    import networkx  # noqa: PLC0415 - an import of 0.2 s that only some topologies need

    if graph == "random_regular":
        drawn = networkx.random_regular_graph(options.degree, count, seed=seed)
    elif graph == "erdos_renyi":
        drawn = networkx.fast_gnp_random_graph(count, options.probability, seed=seed)
    else:
        drawn = networkx.watts_strogatz_graph(count, options.degree, options.rewiring, seed=seed)
    return sorted_edges(_both(drawn.edges()))


def is_strongly_connected(edges: Edges, count: int) -> bool:
    """Whether what any node knows reaches every other in the end."""
    return len(strong_groups(edges, count)) == 1


def strong_groups(edges: Edges, count: int) -> list[list[int]]:
    """The largest groups of nodes within which everyone reaches everyone; each in order, the first node's first."""
    import networkx  # noqa: PLC0415 - see _draw_once

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges[:, ::-1].tolist())
    return sorted(sorted(group) for group in networkx.strongly_connected_components(graph))
