"""Topologies of all kinds for the tests, by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from dpwa.topology.graphs import SYMMETRIC, GraphOptions
from dpwa.topology.schedule import OWN_ROUNDS, RANDOM_WEIGHTS, TopologySpec

FIXED = [*sorted(SYMMETRIC - {"random_regular", "erdos_renyi", "small_world"}), "directed_ring", "exponential"]
ALL_WEIGHTS = ["uniform", "uniform_column", *sorted(RANDOM_WEIGHTS)]
SUMS = {
    "metropolis": "doubly",
    "random_doubly": "doubly",
    "uniform": "row",
    "random_row": "row",
    "uniform_column": "column",
    "random_column": "column",
}


@st.composite
def plans(draw: st.DrawFn, *, most: int = 24) -> tuple[TopologySpec, int]:
    """A plan and a number of nodes for which it exists."""
    count = draw(st.integers(1, most))
    kinds = [*FIXED, *sorted(OWN_ROUNDS), "erdos_renyi"]
    if count >= 4:
        kinds += ["random_regular", "small_world"]
    graph = draw(st.sampled_from(kinds))
    if graph == "hypercube":
        count = 1 << draw(st.integers(0, most.bit_length() - 1))
    weights = draw(st.sampled_from([*ALL_WEIGHTS, "metropolis"] if graph in SYMMETRIC else ALL_WEIGHTS))
    drawable = graph in OWN_ROUNDS or graph in ("random_regular", "erdos_renyi", "small_world")
    is_random = draw(st.booleans()) if drawable or weights in RANDOM_WEIGHTS else False
    options = GraphOptions(degree=2, probability=draw(st.floats(0.3, 1)), rewiring=draw(st.floats(0, 1)))
    seed = draw(st.integers(0, 2**32 - 1))
    partners = draw(st.integers(1, 4))
    return TopologySpec(graph, weights, is_random, options, partners, seed=seed), count
