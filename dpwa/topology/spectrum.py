"""How fast a topology brings all nodes together, and to which mean: numbers, and the same in sentences.

Must not know: the cluster file, what is exchanged. Runs in: any thread; pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpwa.config.topology import TopologyOptions
from dpwa.topology.connectivity import cut_off
from dpwa.topology.graphs import is_strongly_connected, most_square
from dpwa.topology.mixing import Conservation, Matrix
from dpwa.topology.schedule import OWN_ROUNDS, Topology, default_weights

__all__ = ["Report", "describe_topology", "largest_singular_value", "report", "sentences"]

SHRUNK = 1e-6
"""Models count as equal when their distance has shrunk to this share."""

_DRAWN_ROUNDS = 20
_MOST_NODES = 600  # a second or so; beyond, the numbers need minutes
_EXACT = 1e-12
_FLOOR = 1e-9  # below this a product of drawn matrices shows rounding, not the rate
_MOST_MEANS = 8
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
        cut_off: who is cut off otherwise, in words.
        contraction: share of the distance from consensus that is left after a round, as the geometric mean over
            `rounds`: from the second largest singular value of their product where that is doubly stochastic, else
            from the second largest modulus of its eigenvalues. None if there are too many nodes to compute it.
        exact_after: rounds after which all nodes have exactly the limit, or None.
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
    rounds = _DRAWN_ROUNDS if topology.period is None else topology.period
    connected = [is_strongly_connected(topology.mixing(round_).edges, topology.count) for round_ in range(rounds)]
    cut = tuple(cut_off(topology.support, names))
    contraction, exact_after, stationary = None, None, None
    if topology.count <= _MOST_NODES:
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

    With a column-stochastic matrix the sum is kept, and methods that divide by the mass get the mean itself.
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


def describe_topology(options: TopologyOptions, topology: Topology, names: Sequence[str]) -> list[str]:
    """What `dpwa check` says of a topology: sentences that begin with what it is."""
    return [_headline(options, topology), *sentences(report(topology, names), names)]


def _headline(options: TopologyOptions, topology: Topology) -> str:
    rounds = range(_DRAWN_ROUNDS if topology.period is None else topology.period)
    mixings = {id(mixing): mixing for mixing in map(topology.mixing, rounds)}.values()
    degrees = [len(mixing.row(node)) for mixing in mixings for node in range(topology.count)]
    least, most = min(degrees), max(degrees)
    shape = f" of {' x '.join(map(str, most_square(topology.count)))}" if options.graph in ("grid", "torus") else ""
    own = options.graph == "matrix" or options.graph in OWN_ROUNDS
    weights = "its own" if own else options.weights or default_weights(options.graph, directed=bool(options.directed))
    if topology.period is None:
        schedule = "drawn in each round"
    else:
        schedule = "the same in each round" if topology.period == 1 else f"{topology.period} matrices in turn"
    hears = f"{least}" if least == most else f"at most {most}" if least == 0 else f"{least} to {most}"
    return (
        f"The topology: {options.graph}{shape} with weights {weights}, {schedule}. In a round a node hears {hears} "
        f"{'other' if most == 1 else 'others'}."
    )


def sentences(found: Report, names: Sequence[str]) -> Iterator[str]:
    """A report in words."""
    kinds = {
        "row": "Rows sum to 1: models that are equal stay equal, but the mean of all may move.",
        "column": "Columns sum to 1: the sum of all models is kept; methods that push divide by the mass they hold.",
        "doubly": "Rows and columns sum to 1: equal models stay equal, and the mean of all is kept.",
    }
    yield kinds[found.conservation]
    yield _connection(found)
    if len(names) > _MOST_NODES and found.contraction is None:
        yield f"Rates are computed for up to {_MOST_NODES} nodes; this cluster has {len(names)}."
    elif found.contraction is not None:
        yield _rate(found)
    if found.stationary is not None and found.conservation == "row":
        yield _limit(found.stationary, names, "after these rounds" if found.is_drawn else "in the limit")


def _connection(found: Report) -> str:
    if not found.is_connected:
        return f"Not connected: {'; '.join(found.cut_off)}."
    if found.rounds == 1:
        return "Everyone reaches everyone: strongly connected."
    which = f"{found.rounds} rounds that were drawn" if found.is_drawn else f"{found.rounds} rounds of a period"
    return f"Strongly connected over all rounds; by themselves are {found.connected_rounds} of the {which}."


def _rate(found: Report) -> str:
    if found.exact_after is not None:
        return f"All nodes have exactly the limit after {found.exact_after} {_rounds(found.exact_after)}."
    if found.contraction is None or found.rounds_to_consensus is None:
        return "The distance between the models does not shrink to nothing."
    source = f" (averaged over the first {found.rounds} drawn rounds)" if found.is_drawn else ""
    needed = found.rounds_to_consensus
    mean = " in the mean" if found.rounds > 1 else ""
    return (
        f"Spectral gap {found.spectral_gap:.3g}{source}: a round leaves {found.contraction:.3g} of the distance from "
        f"consensus{mean}, and {needed} {_rounds(needed)} leave a millionth."
    )


def _rounds(count: int) -> str:
    return "round" if count == 1 else "rounds"


def _limit(stationary: NDArray[np.float64], names: Sequence[str], when: str) -> str:
    if np.ptp(stationary) < _FLOOR:
        return f"{when.capitalize()} all nodes weigh the same."
    if len(names) <= _MOST_MEANS:
        shares = ", ".join(f"{name} {weight:.1%}" for name, weight in zip(names, stationary, strict=True))
        return f"{when.capitalize()} the nodes weigh: {shares}."
    most, least = int(stationary.argmax()), int(stationary.argmin())
    return (
        f"{when.capitalize()} {names[most]} weighs most ({stationary[most]:.2%}) and {names[least]} least "
        f"({stationary[least]:.2%}); equal would be {1 / len(names):.2%}."
    )
