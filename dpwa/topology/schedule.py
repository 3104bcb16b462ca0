"""A topology: the mixing matrix of every round, as a pure function of the options, the number of nodes and the seed.

Must not know: names of nodes, the cluster file, what is exchanged. Runs in: any thread; a topology never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from dpwa.topology.base_graph import Pairs, base_graph
from dpwa.topology.graphs import (
    RANDOM,
    REGULAR,
    SYMMETRIC,
    GraphOptions,
    complete,
    edges_of,
    exponential_offsets,
    sorted_edges,
)
from dpwa.topology.mixing import (
    CompleteMixing,
    Conservation,
    Edges,
    Matrix,
    Mixing,
    SparseMixing,
    conservation_of,
    sums_at,
)
from dpwa.topology.weights import weighted

__all__ = ["OWN_ROUNDS", "RANDOM_WEIGHTS", "Topology", "TopologySpec", "default_weights", "make_topology", "union_of"]

OWN_ROUNDS = frozenset({"one_peer_exponential", "base_graph"})
"""Graphs that differ from round to round and have weights of their own."""

RANDOM_WEIGHTS = frozenset({"random_row", "random_column", "random_doubly"})
"""Weights that are drawn."""

_KEPT_ROUNDS = 16
"""How many drawn rounds stay in memory; methods look at the newest few."""

_EQUAL_WEIGHTS = ("uniform", "uniform_column", "metropolis")


@dataclass(frozen=True)
class TopologySpec:
    """What a topology is made from; checked before.

    Attributes:
        graph: name of the graph; "matrix" for given matrices.
        weights: name of the weights; ignored where the graph has weights of its own.
        is_random: whether every round is drawn: the graph, the weights, or which one of the matrices.
        options: of the graph.
        most_partners: k of base_graph.
        matrices: the given ones.
        seed: of all that is drawn.
    """

    graph: str = "complete"
    weights: str = "metropolis"
    is_random: bool = False
    options: GraphOptions = field(default_factory=GraphOptions)
    most_partners: int = 1
    matrices: tuple[Matrix, ...] = ()
    seed: int = 0


def default_weights(graph: str, *, directed: bool = False) -> str:
    """The weights of a graph for which none are given. `directed` concerns the graph edges."""
    symmetric = graph in SYMMETRIC or (graph == "edges" and not directed)
    return "metropolis" if symmetric else "uniform"


class Topology:
    """Which nodes hear which others in each round, and with which weights.

    Nodes are numbered from 0 in the order of the cluster file.

    Args:
        rounds: the matrices that are used in turn; with `draw`, those that it draws from, if any.
        draw: the matrix of a round of a random schedule.
        conservation: what every matrix keeps.
        support: who may ever hear whom.
        fingerprint: equal for equal topologies.
    """

    def __init__(
        self,
        rounds: Sequence[Mixing],
        *,
        draw: Callable[[int], Mixing] | None = None,
        conservation: Conservation,
        support: Callable[[], Edges],
        count: int,
        fingerprint: str = "",
    ) -> None:
        self._rounds = tuple(rounds)
        self._draw = None if draw is None else lru_cache(maxsize=_KEPT_ROUNDS)(draw)
        self._support = support
        self._count = count
        self._conservation = conservation
        self._fingerprint = fingerprint

    @property
    def count(self) -> int:
        """n, the number of nodes."""
        return self._count

    @property
    def is_complete(self) -> bool:
        """Whether every node always hears every other with weight 1/n; then nothing of size n x n exists."""
        return self._draw is None and all(isinstance(mixing, CompleteMixing) for mixing in self._rounds)

    @property
    def period(self) -> int | None:
        """Rounds after which the matrices repeat, 1 for a static topology; None if each round is drawn."""
        return len(self._rounds) if self._draw is None else None

    @property
    def conservation(self) -> Conservation:
        """What every matrix keeps: "row" keeps consensus, "column" the sum of the models, "doubly" both."""
        return self._conservation

    @property
    def fingerprint(self) -> str:
        """Equal for topologies that are equal in every round; nodes can exchange only if theirs are."""
        return self._fingerprint

    @property
    def support(self) -> Edges:
        """Who hears whom in some round: in a period, or with a probability above 0. Made anew."""
        return self._support()

    @property
    def draws_from(self) -> tuple[Mixing, ...]:
        """The matrices of a period; for a random schedule, those that it draws from, unless it makes new ones."""
        return self._rounds

    def mixing(self, round_: int) -> Mixing:
        """The matrix of a round, sparse.

        Args:
            round_: from 0.
        """
        return self._rounds[round_ % len(self._rounds)] if self._draw is None else self._draw(round_)

    def matrix(self, round_: int) -> Matrix:
        """W of a round, made anew: shape (n, n), [i, j] is the weight that i, the receiver, gives to j; x <- W x."""
        return self.mixing(round_).matrix()

    def row(self, node: int, round_: int) -> Mapping[int, float]:
        """The others that `node` hears in a round, with the weights that it gives them, all above 0.

        In a row-stochastic matrix the rest up to 1 is the node's own weight.
        """
        return self.mixing(round_).row(node)

    def column(self, node: int, round_: int) -> Mapping[int, float]:
        """The others that hear `node` in a round, with the weights that they give it, all above 0.

        In a column-stochastic matrix the rest up to 1 is the node's own weight.
        """
        return self.mixing(round_).column(node)

    def own(self, node: int, round_: int) -> float:
        """The weight that `node` gives itself in a round."""
        return self.mixing(round_).own(node)


def make_topology(spec: TopologySpec, count: int) -> Topology:
    """The topology of `count` nodes.

    Raises:
        ConfigError: such weights do not exist on this graph.
    """
    fingerprint = _fingerprint(spec, count)
    if spec.is_random:
        return _random(spec, count, fingerprint)
    rounds = _rounds(spec, count)
    conservation = conservation_of(tuple(rounds))
    if conservation is None:
        raise ValueError("expected matrices that all keep the same, rows or columns")

    def support() -> Edges:
        return union_of(rounds)

    return Topology(rounds, conservation=conservation, support=support, count=count, fingerprint=fingerprint)


def _rounds(spec: TopologySpec, count: int) -> list[Mixing]:
    """The matrices of a period."""
    if spec.graph == "matrix":
        return [SparseMixing.of(matrix) for matrix in spec.matrices]
    if spec.graph == "one_peer_exponential":
        return [_one_peer(count, offset) for offset in exponential_offsets(count) or [0]]
    if spec.graph == "base_graph":
        return [_symmetric(pairs, count) for pairs in base_graph(count, spec.most_partners) or [{}]]
    if spec.graph == "complete" and spec.weights in _EQUAL_WEIGHTS:
        return [CompleteMixing(count)]
    seed = (spec.seed, 0)
    return [weighted(edges_of(spec.graph, count, spec.options, seed), count, spec.weights, seed)]


def _random(spec: TopologySpec, count: int, fingerprint: str) -> Topology:
    """A topology whose rounds are drawn."""
    if spec.graph in OWN_ROUNDS or spec.graph == "matrix":
        choices = _rounds(spec, count)

        def choose(round_: int) -> Mixing:
            (drawn,) = np.random.SeedSequence((spec.seed, round_)).generate_state(1, np.uint64)
            return choices[int(drawn) % len(choices)]

        conservation = conservation_of(tuple(choices)) or "row"
        return Topology(
            choices,
            draw=choose,
            conservation=conservation,
            support=lambda: union_of(choices),
            count=count,
            fingerprint=fingerprint,
        )
    fixed = None if spec.graph in RANDOM else edges_of(spec.graph, count, spec.options)

    def draw(round_: int) -> Mixing:
        seed = (spec.seed, round_)
        edges = fixed
        if edges is None:
            edges = edges_of(spec.graph, count, spec.options, seed, until_connected=False)
        return weighted(edges, count, spec.weights, seed)

    return Topology(
        (),
        draw=draw,
        conservation=_promised(spec),
        support=lambda: complete(count) if fixed is None else fixed,
        count=count,
        fingerprint=fingerprint,
    )


def _promised(spec: TopologySpec) -> Conservation:
    """What every matrix will keep that such a spec draws."""
    if spec.weights in ("metropolis", "random_doubly"):
        return "doubly"
    if spec.weights in ("uniform", "uniform_column") and spec.graph in REGULAR:
        return "doubly"
    return "column" if spec.weights in ("uniform_column", "random_column") else "row"


def _one_peer(count: int, offset: int) -> Mixing:
    """Everyone hears the one that is `offset` before it, half and half.

    Ying et al. 2021, arXiv 2110.13363, section 4; Assran et al. 2019, arXiv 1811.10792, appendix A.
    """
    edges = sorted_edges((node, (node - offset) % count) for node in range(count))
    return SparseMixing(edges, np.full(len(edges), 0.5), np.full(count, 1 - 0.5 * (len(edges) > 0)))


def _symmetric(pairs: Pairs, count: int) -> Mixing:
    """The matrix of one round of the base graph."""
    weights = pairs | {(second, first): weight for (first, second), weight in pairs.items()}
    edges = sorted_edges(weights)
    values = np.array([weights[receiver, sender] for receiver, sender in edges.tolist()], np.float64)
    return SparseMixing(edges, values, 1 - sums_at(edges[:, 0], values, count))


def union_of(rounds: Sequence[Mixing]) -> Edges:
    """Who hears whom in any of the rounds."""
    if len(rounds) == 1:
        return rounds[0].edges
    return np.unique(np.concatenate([mixing.edges for mixing in rounds]), axis=0)


def _fingerprint(spec: TopologySpec, count: int) -> str:
    """A hash of all that the matrices follow from; cheap, unlike a hash of the matrices."""
    hashed = hashlib.sha256(repr((count, spec.graph, spec.weights, spec.is_random, spec.options)).encode())
    hashed.update(repr((spec.most_partners, spec.seed, len(spec.matrices))).encode())
    for matrix in spec.matrices:
        hashed.update(np.ascontiguousarray(matrix, "<f8").tobytes())
    return hashed.hexdigest()[:16]
