"""Weights for the edges of a graph.

Must not know: which graph it is, rounds, names of nodes. Runs in: any thread; pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpwa.errors import ConfigError
from dpwa.topology.mixing import Edges, SparseMixing, sums_at

__all__ = ["weighted"]

_LEAST_DRAWN = 0.1
"""Random weights are drawn from 0.1 to 1 before they are scaled: convergence needs weights bounded away from 0."""

_SWEEPS = 50
_NEWTON_STEPS = 40
_LARGEST_STEP = 1.0
_RIDGE = 1e-9
_ENOUGH = 1e-14
"""Sinkhorn: sweeps before and between the Newton steps, the number of these, their largest change of a logarithm, what
keeps their system regular, and the error to stop at."""

_VANISHED = 1e-9
"""The sweeps drive the weight of an edge without a way back to 0."""


def weighted(edges: Edges, count: int, weights: str, seed: Sequence[int]) -> SparseMixing:
    """The mixing matrix of a graph.

    Args:
        edges: who hears whom.
        count: number of nodes.
        weights: uniform: a node divides 1 equally among itself and those that it hears. uniform_column: among itself
            and those that hear it. metropolis: 1 / (1 + the larger number of neighbours of the two), for symmetric
            graphs (Xiao, Boyd and Lall 2005, "A scheme for robust distributed sensor fusion", equation 8).
            random_row, random_column, random_doubly: drawn, then scaled so that rows, columns or both sum to 1.
        seed: for random weights.

    Raises:
        ConfigError: random_doubly, and no matrix on these edges has rows and columns that sum to 1.
    """
    receivers, senders = edges.T
    heard = np.bincount(receivers, minlength=count)
    hearers = np.bincount(senders, minlength=count)
    if weights == "uniform":
        return SparseMixing(edges, 1 / (1.0 + heard[receivers]), 1 / (1.0 + heard))
    if weights == "uniform_column":
        return SparseMixing(edges, 1 / (1.0 + hearers[senders]), 1 / (1.0 + hearers))
    if weights == "metropolis":
        values = 1 / (1.0 + np.maximum(heard[receivers], heard[senders]))
        return SparseMixing(edges, values, 1 - sums_at(receivers, values, count))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    drawn = _LEAST_DRAWN + (1 - _LEAST_DRAWN) * rng.random(len(edges) + count)
    values, own = drawn[: len(edges)], drawn[len(edges) :]
    if weights == "random_row":
        sums = own + sums_at(receivers, values, count)
        return SparseMixing(edges, values / sums[receivers], own / sums)
    if weights == "random_column":
        sums = own + sums_at(senders, values, count)
        return SparseMixing(edges, values / sums[senders], own / sums)
    return _balanced(edges, values, own)


def _balanced(edges: Edges, values: NDArray[np.float64], own: NDArray[np.float64]) -> SparseMixing:
    """Scale rows and columns until all of them sum to 1 (Sinkhorn and Knopp 1967).

    Their alternating sweeps need thousands of rounds on a long ring. So Newton steps for the logarithms of the column
    factors are made between them (Knight and Ruiz 2013, "A fast algorithm for matrix balancing"); the linear system is
    that of the Laplacian of W^T W.
    """
    for _ in range(_NEWTON_STEPS):
        for _ in range(_SWEEPS):
            values, own = _swept(edges, values, own)
        mixing = SparseMixing(edges, values, own)
        rows, columns = mixing.sums
        off = max(np.abs(rows - 1).max(), np.abs(columns - 1).max())
        if off <= _ENOUGH:
            break
        matrix = mixing.matrix()
        # Within a connected part a constant added to all logarithms changes nothing; the ridge takes this freedom away.
        laplacian = np.diag(columns + _RIDGE) - matrix.T @ (matrix / rows[:, None])
        change = np.linalg.solve(laplacian, (1 - columns) - matrix.T @ ((1 - rows) / rows))
        factors = np.exp(np.clip(change, -_LARGEST_STEP, _LARGEST_STEP))
        values, own = values * factors[edges[:, 1]], own * factors
    if off > _ENOUGH * 100 or values.min(initial=1.0) < _VANISHED:
        raise ConfigError(
            "weights random_doubly: no weights were found on these edges with which all rows and all columns sum to 1; "
            "choose another graph or other weights"
        )
    return mixing


def _swept(
    edges: Edges, values: NDArray[np.float64], own: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for end in edges.T:  # the receivers, whose rows get the sum 1, then the senders with their columns
        sums = own + sums_at(end, values, len(own))
        values, own = values / sums[end], own / sums
    return values, own
