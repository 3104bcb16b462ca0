"""The mixing matrix of one round, kept sparse: who hears whom with which weight, x <- W x.

Must not know: which graph or schedule a matrix comes from, names of nodes. Runs in: any thread; a mixing never changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TOLERANCE",
    "CompleteMixing",
    "Conservation",
    "Edges",
    "Matrix",
    "Mixing",
    "SparseMixing",
    "conservation_of",
    "is_column_stochastic",
    "is_row_stochastic",
    "sums_at",
]

Matrix: TypeAlias = NDArray[np.float64]
"""Shape (n, n); entry [i, j] is the weight that node i, the receiver, gives to node j."""

Edges: TypeAlias = NDArray[np.int64]
"""Shape (m, 2): rows [receiver, sender], each once, never with receiver == sender, in ascending order."""

Conservation: TypeAlias = Literal["row", "column", "doubly"]
"""What a matrix conserves: "row" (its rows sum to 1), models that are equal; "column" (its columns sum to 1), the sum
of the models; "doubly", both."""

TOLERANCE = 1e-9
"""How far a sum of weights may be from 1."""


def sums_at(nodes: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """For each of `count` nodes the sum of the values beside its number; shapes (m,), (m,) and (count,)."""
    return np.bincount(nodes, values, count).astype(np.float64)


def is_row_stochastic(matrix: Matrix) -> bool:
    """Whether every row sums to 1 and nothing is negative. For matrices of shape (n, n)."""
    return bool((matrix >= 0).all() and (np.abs(matrix.sum(axis=1) - 1) <= TOLERANCE).all())


def is_column_stochastic(matrix: Matrix) -> bool:
    """Whether every column sums to 1 and nothing is negative. For matrices of shape (n, n)."""
    return is_row_stochastic(matrix.T)


class Mixing(ABC):
    """W of one round.

    Attributes:
        count: n, the number of nodes.
    """

    count: int

    @abstractmethod
    def matrix(self) -> Matrix:
        """The whole of W, made anew."""

    @abstractmethod
    def row(self, node: int) -> Mapping[int, float]:
        """The others that `node` hears, with the weights that it gives them."""

    @abstractmethod
    def column(self, node: int) -> Mapping[int, float]:
        """The others that hear `node`, with the weights that they give it."""

    @abstractmethod
    def own(self, node: int) -> float:
        """The weight that `node` gives itself."""

    @property
    @abstractmethod
    def edges(self) -> Edges:
        """Who hears whom."""

    @property
    @abstractmethod
    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums of the rows and those of the columns, each of shape (n,)."""


class SparseMixing(Mixing):
    """W as a list of its positive entries.

    Args:
        edges: who hears whom.
        weights: the weight of each edge, above 0; shape (m,).
        own_weights: the diagonal of W; shape (n,).
    """

    def __init__(self, edges: Edges, weights: NDArray[np.float64], own_weights: NDArray[np.float64]) -> None:
        self.count = len(own_weights)
        self._own = own_weights
        self._edges = edges
        self._weights = weights
        every = np.arange(self.count + 1)
        self._row_starts = np.searchsorted(edges[:, 0], every)
        self._by_sender = np.lexsort((edges[:, 0], edges[:, 1]))
        self._column_starts = np.searchsorted(edges[self._by_sender, 1], every)

    @classmethod
    def of(cls, matrix: Matrix) -> SparseMixing:
        """The same matrix. Its shape is (n, n), its entries are finite and not negative."""
        edges = np.argwhere(matrix > 0).astype(np.int64)
        edges = edges[edges[:, 0] != edges[:, 1]]
        return cls(edges, matrix[edges[:, 0], edges[:, 1]], np.diagonal(matrix).copy())

    @property
    def edges(self) -> Edges:
        """Who hears whom."""
        return self._edges

    @property
    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums of the rows and those of the columns, each of shape (n,)."""
        receivers, senders = self._edges.T
        rows = self._own + sums_at(receivers, self._weights, self.count)
        return rows, self._own + sums_at(senders, self._weights, self.count)

    def matrix(self) -> Matrix:
        """The whole of W, made anew."""
        matrix: Matrix = np.diag(self._own)
        matrix[self._edges[:, 0], self._edges[:, 1]] = self._weights
        return matrix

    def row(self, node: int) -> Mapping[int, float]:
        """The others that `node` hears, with the weights that it gives them."""
        part = slice(self._row_starts[node], self._row_starts[node + 1])
        return _read_only(self._edges[part, 1], self._weights[part])

    def column(self, node: int) -> Mapping[int, float]:
        """The others that hear `node`, with the weights that they give it."""
        part = self._by_sender[self._column_starts[node] : self._column_starts[node + 1]]
        return _read_only(self._edges[part, 0], self._weights[part])

    def own(self, node: int) -> float:
        """The weight that `node` gives itself."""
        return float(self._own[node])


def _read_only(nodes: NDArray[np.int64], weights: NDArray[np.float64]) -> Mapping[int, float]:
    return MappingProxyType(dict(zip(nodes.tolist(), weights.tolist(), strict=True)))


class CompleteMixing(Mixing):
    """Every node hears every other with weight 1/n. Needs no memory, however many nodes there are."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def edges(self) -> Edges:
        """Who hears whom."""
        return np.argwhere(~np.eye(self.count, dtype=bool)).astype(np.int64)

    @property
    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums of the rows and those of the columns, each of shape (n,)."""
        return np.ones(self.count), np.ones(self.count)

    def matrix(self) -> Matrix:
        """The whole of W, made anew."""
        return np.full((self.count, self.count), 1 / self.count)

    def row(self, node: int) -> Mapping[int, float]:
        """The others that `node` hears, with the weights that it gives them."""
        return _AllOthers(node, self.count)

    def column(self, node: int) -> Mapping[int, float]:
        """The others that hear `node`, with the weights that they give it."""
        return _AllOthers(node, self.count)

    def own(self, node: int) -> float:  # noqa: ARG002 - the same for all
        """The weight that `node` gives itself."""
        return 1 / self.count


class _AllOthers(Mapping[int, float]):
    """Weight 1/n for all nodes but one."""

    def __init__(self, node: int, count: int) -> None:
        self._node = node
        self._count = count

    def __getitem__(self, other: int) -> float:
        if other == self._node or not 0 <= other < self._count:
            raise KeyError(other)
        return 1 / self._count

    def __iter__(self) -> Iterator[int]:
        return (other for other in range(self._count) if other != self._node)

    def __len__(self) -> int:
        return self._count - 1


def conservation_of(mixings: tuple[Mixing, ...]) -> Conservation | None:
    """What all of the matrices conserve; None if they have nothing in common."""
    sums = [mixing.sums for mixing in mixings]
    rows = all((np.abs(row - 1) <= TOLERANCE).all() for row, _ in sums)
    columns = all((np.abs(column - 1) <= TOLERANCE).all() for _, column in sums)
    if rows and columns:
        return "doubly"
    return "row" if rows else "column" if columns else None
