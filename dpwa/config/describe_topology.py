"""What `dpwa check` says of the topology.

Must not know: the command line, the terminal. Runs in: any thread; pure functions from options and matrices to text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dpwa.config.topology import TopologyOptions
from dpwa.topology.graphs import most_square
from dpwa.topology.schedule import OWN_ROUNDS, Topology, default_weights
from dpwa.topology.spectrum import DRAWN_ROUNDS, MOST_NODES, Report, report

__all__ = ["describe_topology"]

_MOST_MEANS = 8
_EQUAL = 1e-9


def describe_topology(options: TopologyOptions, topology: Topology, names: Sequence[str]) -> list[str]:
    """What `dpwa check` says of a topology: sentences that begin with what it is."""
    return [_headline(options, topology), *sentences(report(topology, names), names)]


def _headline(options: TopologyOptions, topology: Topology) -> str:
    rounds = range(DRAWN_ROUNDS if topology.period is None else topology.period)
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
    if len(names) > MOST_NODES and found.contraction is None:
        yield f"Rates are computed for up to {MOST_NODES} nodes; this cluster has {len(names)}."
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
    if np.ptp(stationary) < _EQUAL:
        return f"{when.capitalize()} all nodes weigh the same."
    if len(names) <= _MOST_MEANS:
        shares = ", ".join(f"{name} {weight:.1%}" for name, weight in zip(names, stationary, strict=True))
        return f"{when.capitalize()} the nodes weigh: {shares}."
    most, least = int(stationary.argmax()), int(stationary.argmin())
    return (
        f"{when.capitalize()} {names[most]} weighs most ({stationary[most]:.2%}) and {names[least]} least "
        f"({stationary[least]:.2%}); equal would be {1 / len(names):.2%}."
    )
