"""How fast a topology brings all nodes together, and to which mean: numbers, and the same in sentences.

Must not know: the cluster file, what is exchanged. Runs in: any thread; pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpwa.topology.connectivity import cut_off
from dpwa.topology.graphs import is_strongly_connected
from dpwa.topology.mixing import Conservation, Matrix
from dpwa.topology.schedule import Topology

__all__ = ["Report", "largest_singular_value", "report"]

SHRUNK = 1e-6
"""Models count as equal when their distance has shrunk to this share."""

DRAWN_ROUNDS = 20
"""Rounds that stand for a schedule that draws each round."""

MOST_NODES = 600
"""Rates are computed for up to so many nodes, which takes about a second; beyond, minutes."""

_EXACT = 1e-12
_FLOOR = 1e-9  # below this a product of drawn matrices shows rounding, not the rate
_LEAST_RATE = 1e-9


@dataclass(frozen=True)
class Report:
    """What follows from a topology's matrices.

    Attributes:
        conservation: what every matrix keeps.
        rounds: of the period, or how many were drawn.
        is_drawn: whether the schedule is random, so that all numbers belong to the rounds that were drawn.
        connected_rounds: how many of the matrices are strongly connected by themselves.
        is_connected: whether the union of all rounds is.
        cut_off: who is cut off if it is not, in words.
        contraction: share of the distance from consensus that is left after a round, as the geometric mean over
            `rounds`: from the second largest singular value of their product where that is doubly stochastic, else
            from the second largest modulus of its eigenvalues. None if there are too many nodes to compute it.
        exact_after: rounds after which all nodes have exactly the limit; None: never.
        stationary: weights of the nodes in the limit, shape (n,): the left Perron vector of the product. None if there
            are too many nodes, or several limits.
    """

    conservation: Conservation
    rounds: int
    is_drawn: bool
    connected_rounds: int
    is_connected: bool
    cut_off: tuple[str, ...]
    contraction: float | None
    exact_after: int | None
    stationary: NDArray[np.float64] | None

    @property
    def spectral_gap(self) -> float | None:
        """1 minus the contraction."""
        return None if self.contraction is None else 1 - self.contraction

    @property
    def rounds_to_consensus(self) -> int | None:
        """Rounds until the distance has shrunk to a millionth; None if it never does or nothing is known."""
        if self.exact_after is not None:
            return self.exact_after
        if self.contraction is None or self.contraction >= 1 - _LEAST_RATE:
            return None
        if self.contraction <= 0:  # one node alone
            return 1
        return math.ceil(math.log(SHRUNK) / math.log(self.contraction))


def report(topology: Topology, names: Sequence[str]) -> Report:
    """Look at a period of a topology, or at 20 rounds of a random one.

    Args:
        topology: of any schedule.
        names: of its nodes.
    """
    if topology.is_complete:
        uniform = np.full(topology.count, 1 / topology.count)
        return Report("doubly", 1, False, 1, True, (), 0.0, 1, uniform)  # noqa: FBT003 - in the order of the class
    rounds = DRAWN_ROUNDS if topology.period is None else topology.period
    connected = [is_strongly_connected(topology.mixing(round_).edges, topology.count) for round_ in range(rounds)]
    cut = tuple(cut_off(topology.support, names))
    contraction, exact_after, stationary = None, None, None
    if topology.count <= MOST_NODES:
        contraction, exact_after, stationary = _limits(topology, rounds)
    return Report(
        conservation=topology.conservation,
        rounds=rounds,
        is_drawn=topology.period is None,
        connected_rounds=sum(connected),
        is_connected=not cut,
        cut_off=cut,
        contraction=contraction,
        exact_after=exact_after,
        stationary=None if cut else stationary,
    )


def largest_singular_value(matrix: Matrix) -> float:
    """The largest singular value of W - 1 1^T / n, which is the second largest of a doubly stochastic W."""
    return float(np.linalg.norm(matrix - 1 / len(matrix), 2))


def _limits(topology: Topology, rounds: int) -> tuple[float, int | None, NDArray[np.float64]]:
    """Contraction per round, rounds until exact, stationary weights."""
    product = np.eye(topology.count)
    used = 0
    for round_ in range(rounds):
        following = topology.matrix(round_) @ product
        if topology.period is None and used and _left(following, topology.conservation) < _FLOOR:
            break
        product, used = following, round_ + 1
    left = _left(product, topology.conservation)
    exact_after = None
    if topology.period is not None:
        exact_after = _exact_after(product, topology.conservation, rounds)
        if exact_after is not None:
            left = 0.0
    return min(1.0, left) ** (1 / used), exact_after, _stationary(product, topology.conservation)


def _left(product: Matrix, conservation: Conservation) -> float:
    """The share of the distance that a product of matrices leaves."""
    if len(product) == 1:
        return 0.0
    if conservation == "doubly":
        return largest_singular_value(product)
    return float(np.sort(np.abs(np.linalg.eigvals(product)))[-2])


def _exact_after(product: Matrix, conservation: Conservation, rounds: int) -> int | None:
    """After how many rounds all rows (of a column-stochastic matrix: all columns) are equal, if they ever are."""
    power = product
    for periods in range(1, len(product).bit_length() + 1):
        spread = np.ptp(power, axis=1 if conservation == "column" else 0)
        if spread.max() <= _EXACT:
            return periods * rounds
        power = product @ power
    return None


def _stationary(product: Matrix, conservation: Conservation) -> NDArray[np.float64]:
    """The weights with which the nodes count in the limit.

    With a column-stochastic matrix the sum is conserved, and methods that divide by the mass get the mean itself.
    """
    count = len(product)
    if conservation != "row":
        return np.full(count, 1 / count)
    # pi (P - I) = 0 and sum(pi) = 1, in the sense of least squares.
    equations = np.vstack([product.T - np.eye(count), np.ones(count)])
    found = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
    weights = np.clip(found, 0, None)
    stationary: NDArray[np.float64] = weights / weights.sum()
    return stationary
