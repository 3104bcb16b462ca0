"""Topologies: closed forms of the graphs, and what must hold for all graphs, weights, numbers of nodes and seeds."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.topology.base_graph import base_graph
from dpwa.topology.graphs import GraphOptions, edges_of, is_strongly_connected, most_square, sorted_edges
from dpwa.topology.mixing import SparseMixing, conservation_of, is_column_stochastic, is_row_stochastic
from dpwa.topology.schedule import Topology, TopologySpec, make_topology
from dpwa.topology.weights import weighted
from topology_support import ALL_WEIGHTS, SUMS, plans


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.eigvalsh(matrix))


def product_of_period(topology: Topology) -> np.ndarray:
    product = np.eye(topology.count)
    for round_ in range(topology.period):
        product = topology.matrix(round_) @ product
    return product


@pytest.mark.parametrize("count", [3, 4, 5, 6, 9, 32])
def test_a_ring_with_metropolis_weights_has_the_eigenvalues_of_the_circle(count):
    matrix = make_topology(TopologySpec("ring"), count).matrix(0)
    expected = np.sort([1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / count) for k in range(count)])
    assert eigenvalues(matrix) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dimension", range(6))
def test_a_hypercube_has_one_eigenvalue_per_number_of_bits(dimension):
    matrix = make_topology(TopologySpec("hypercube"), 1 << dimension).matrix(0)
    expected = [
        1 - 2 * bits / (dimension + 1) for bits in range(dimension + 1) for _ in range(math.comb(dimension, bits))
    ]
    assert eigenvalues(matrix) == pytest.approx(np.sort(expected), abs=1e-12)


def test_a_complete_graph_averages_at_once_and_builds_nothing():
    topology = make_topology(TopologySpec(), 4096)
    assert topology.is_complete
    assert topology.period == 1
    row = topology.row(7, 3)
    assert len(row) == 4095
    assert 7 not in row
    assert row[0] == row[4095] == topology.own(7, 3) == 1 / 4096
    assert 4096 not in topology.column(0, 0)
    assert (make_topology(TopologySpec(), 5).matrix(0) == 0.2).all()


def test_the_default_topology_of_a_config_is_complete():
    assert ClusterConfig.for_localhost(3).topology_of_nodes.is_complete
    assert not ClusterConfig.for_localhost(3, topology="ring").topology_of_nodes.is_complete


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32])
def test_one_peer_exponential_is_exact_after_log2_n_rounds_for_powers_of_two(count):
    topology = make_topology(TopologySpec("one_peer_exponential"), count)
    assert topology.period == count.bit_length() - 1
    assert np.abs(product_of_period(topology) - 1 / count).max() < 1e-15
    assert all(set(topology.row(node, round_).values()) == {0.5} for node in range(count) for round_ in range(3))


def test_one_peer_exponential_listens_2_to_the_t_places_back():
    topology = make_topology(TopologySpec("one_peer_exponential"), 6)
    assert topology.period == 3
    assert [list(topology.row(0, round_)) for round_ in range(4)] == [[5], [4], [2], [5]]


@pytest.mark.parametrize(("count", "rounds"), [(5, 5), (6, 4), (7, 5), (8, 3), (12, 5), (24, 6), (96, 8)])
def test_the_base_2_graph_is_exact_after_as_many_rounds_as_the_paper_says(count, rounds):
    topology = make_topology(TopologySpec("base_graph"), count)
    assert topology.period == rounds
    assert np.abs(product_of_period(topology) - 1 / count).max() < 1e-12


@given(st.integers(1, 130), st.integers(1, 6))
def test_a_base_graph_is_exact_symmetric_and_has_at_most_k_partners(count, partners):
    topology = make_topology(TopologySpec("base_graph", most_partners=partners), count)
    assert np.abs(product_of_period(topology) - 1 / count).max() < 1e-12
    assert len(base_graph(count, partners)) <= 2 * math.log(count) / math.log(partners + 1) + 2
    for round_ in range(topology.period):
        matrix = topology.matrix(round_)
        assert (matrix == matrix.T).all()
        assert is_row_stochastic(matrix)
        assert max(len(topology.row(node, round_)) for node in range(count)) <= partners


def test_a_star_gives_everyone_the_weight_1_over_n_of_the_hub():
    matrix = make_topology(TopologySpec("star"), 5).matrix(0)
    assert matrix[0] == pytest.approx([0.2] * 5)
    assert matrix[3] == pytest.approx([0.2, 0, 0, 0.8, 0])


@pytest.mark.parametrize(("graph", "heard"), [("grid", {1, 3, 6}), ("torus", {1, 3, 5, 2, 6, 10})])
def test_a_lattice_is_as_square_as_it_can_be(graph, heard):
    assert most_square(12) == (3, 4)
    assert most_square(7) == (1, 7)
    topology = make_topology(TopologySpec(graph), 12)
    assert set(topology.row(2, 0)) == heard - {5, 2} | ({10} if graph == "torus" else set())


def test_an_exponential_graph_hears_powers_of_two_places_back():
    topology = make_topology(TopologySpec("exponential", "uniform"), 16)
    assert set(topology.row(0, 0)) == {15, 14, 12, 8}
    assert topology.conservation == "doubly"


def test_a_directed_ring_hears_the_one_before():
    topology = make_topology(TopologySpec("directed_ring", "uniform"), 4)
    assert dict(topology.row(0, 0)) == {3: 0.5}
    assert dict(topology.column(0, 0)) == {1: 0.5}


def test_of_a_directed_edge_the_second_hears_the_first():
    options = GraphOptions(edges=((0, 1), (1, 2), (2, 0)), directed=True)
    topology = make_topology(TopologySpec("edges", "uniform", options=options), 3)
    assert [list(topology.row(node, 0)) for node in range(3)] == [[2], [0], [1]]


def test_an_undirected_edge_goes_both_ways():
    topology = make_topology(TopologySpec("edges", options=GraphOptions(edges=((0, 1), (1, 0), (1, 2)))), 3)
    assert dict(topology.row(1, 0)) == pytest.approx({0: 1 / 3, 2: 1 / 3})


def test_a_row_cannot_be_changed():
    row = make_topology(TopologySpec("ring"), 4).row(0, 0)
    with pytest.raises(TypeError):
        row[1] = 0.9


@settings(deadline=None)
@given(plans(), st.integers(0, 2**40))
def test_every_matrix_keeps_its_promise_and_its_rows_and_columns_agree(made, round_):
    plan, count = made
    topology = make_topology(plan, count)
    matrix = topology.matrix(round_)
    assert matrix.shape == (count, count)
    assert (matrix >= 0).all()
    assert np.diagonal(matrix).min() > 0
    assert topology.conservation in ("doubly", SUMS[plan.weights])
    assert topology.conservation == "column" or is_row_stochastic(matrix)
    assert topology.conservation == "row" or is_column_stochastic(matrix)
    for node in range(count):
        others = {other: matrix[node, other] for other in range(count) if other != node and matrix[node, other] > 0}
        assert dict(topology.row(node, round_)) == others
        hearers = {other: matrix[other, node] for other in range(count) if other != node and matrix[other, node] > 0}
        assert dict(topology.column(node, round_)) == hearers
        assert topology.own(node, round_) == matrix[node, node]


@settings(deadline=None)
@given(plans(), st.integers(0, 1000))
def test_equal_plans_have_equal_matrices_and_fingerprints_and_repeat_after_their_period(made, round_):
    plan, count = made
    first, second = make_topology(plan, count), make_topology(plan, count)
    assert (first.matrix(round_) == second.matrix(round_)).all()
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != make_topology(plan, 2 * count).fingerprint
    if first.period is not None:
        assert (first.matrix(round_) == first.matrix(round_ + 3 * first.period)).all()


@settings(deadline=None)
@given(plans())
def test_the_union_of_all_rounds_of_a_named_graph_is_strongly_connected(made):
    plan, count = made
    if plan.graph == "erdos_renyi" and not plan.is_random and count > 1:
        count = max(count, 6)  # below, a hundred draws may all miss an edge that is needed
    assert is_strongly_connected(make_topology(plan, count).support, count)


@settings(deadline=None)
@given(plans())
def test_the_support_holds_every_edge_of_every_round(made):
    plan, count = made
    topology = make_topology(plan, count)
    support = set(map(tuple, topology.support.tolist()))
    assert all(set(map(tuple, topology.mixing(round_).edges.tolist())) <= support for round_ in range(12))


@settings(deadline=None)
@given(st.integers(2, 16), st.data())
def test_any_graph_can_have_any_weights_but_doubly_stochastic_ones_on_one_way_edges(count, data):
    pair = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = sorted_edges(data.draw(st.lists(pair, max_size=60)))
    weights = data.draw(st.sampled_from(ALL_WEIGHTS))
    back = sorted_edges((sender, receiver) for receiver, sender in edges.tolist())
    if weights == "random_doubly":
        edges = sorted_edges(map(tuple, [*edges.tolist(), *back.tolist()]))
    mixing = weighted(edges, count, weights, (3, 4))
    assert conservation_of((mixing,)) in ("doubly", SUMS[weights])
    assert (mixing.edges == edges).all()


def test_doubly_stochastic_weights_are_found_on_a_ring_too_long_for_sinkhorns_sweeps():
    mixing = weighted(edges_of("ring", 400, GraphOptions()), 400, "random_doubly", (1,))
    rows, columns = mixing.sums
    assert max(np.abs(rows - 1).max(), np.abs(columns - 1).max()) < 1e-12


def test_one_way_edges_have_no_doubly_stochastic_weights():
    with pytest.raises(ConfigError, match="no weights were found on these edges"):
        weighted(sorted_edges([(0, 1)]), 2, "random_doubly", (1,))


def test_each_round_of_a_random_schedule_is_another_one():
    topology = make_topology(TopologySpec("random_regular", is_random=True, options=GraphOptions(degree=3), seed=5), 10)
    assert topology.period is None
    drawn = {topology.matrix(round_).tobytes() for round_ in range(20)}
    assert len(drawn) == 20


def test_a_random_schedule_of_given_matrices_uses_all_of_them():
    matrices = (np.eye(2), np.full((2, 2), 0.5), np.array([[0.9, 0.1], [0.1, 0.9]]))
    topology = make_topology(TopologySpec("matrix", is_random=True, matrices=matrices, seed=1), 2)
    drawn = [topology.matrix(round_).tobytes() for round_ in range(300)]
    assert min(drawn.count(matrix.tobytes()) for matrix in matrices) > 70


def test_a_random_schedule_does_not_depend_on_which_rounds_were_looked_at():
    plan = TopologySpec("erdos_renyi", "random_row", is_random=True, options=GraphOptions(probability=0.4), seed=9)
    first, second = make_topology(plan, 8), make_topology(plan, 8)
    backwards = [second.matrix(round_) for round_ in range(40, -1, -1)][::-1]
    assert all((first.matrix(round_) == backwards[round_]).all() for round_ in range(41))


def test_drawn_weights_are_the_same_in_another_process():
    plan = 'TopologySpec("small_world", "random_doubly", options=GraphOptions(degree=4, rewiring=0.3), seed=11)'
    code = (
        "from dpwa.topology.schedule import TopologySpec, make_topology\n"
        "from dpwa.topology.graphs import GraphOptions\n"
        f"print(make_topology({plan}, 12).matrix(0).round(9).tolist())"
    )
    own = make_topology(
        TopologySpec("small_world", "random_doubly", options=GraphOptions(degree=4, rewiring=0.3), seed=11), 12
    ).matrix(0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(own.round(9).tolist())


def test_the_numbers_of_a_drawn_matrix_never_change():
    """They must be the same on hosts with other platforms and versions, so they may not change unnoticed."""
    matrix = make_topology(TopologySpec("ring", "random_row", seed=1), 3).matrix(0)
    assert matrix.round(6).tolist() == [
        [0.357872, 0.23746, 0.404668],
        [0.139086, 0.283495, 0.577419],
        [0.261385, 0.33029, 0.408325],
    ]


def test_a_sparse_mixing_is_the_matrix_that_it_was_made_from():
    matrix = np.array([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    mixing = SparseMixing.of(matrix)
    assert (mixing.matrix() == matrix).all()
    assert mixing.edges.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


@pytest.mark.parametrize(
    ("matrix", "row", "column"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], True, True),
        ([[0.5, 0.5], [0.1, 0.9]], True, False),
        ([[0.5, 0.1], [0.5, 0.9]], False, True),
        ([[1.5, -0.5], [-0.5, 1.5]], False, False),
        ([[1.0, 2e-9], [0.0, 1.0]], False, False),
        ([[1.0, 5e-10], [0.0, 1.0]], True, True),
        ([[float("nan"), 1.0], [0.5, 0.5]], False, False),
    ],
)
def test_a_stochastic_matrix_has_sums_of_1_and_nothing_negative(matrix, row, column):
    assert is_row_stochastic(np.array(matrix)) is row
    assert is_column_stochastic(np.array(matrix)) is column


def test_the_start_of_a_node_imports_no_networkx():
    code = """
import sys
from dpwa.config.cluster import ClusterConfig
for topology in ("complete", "ring", "exponential", "base_graph"):
    ClusterConfig.for_localhost(4, topology=topology).topology_of_nodes.row(0, 0)
print("networkx" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
