"""What the report on a topology says: rates against closed forms and what really happens, limits, who is cut off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe_topology import describe_topology, sentences
from dpwa.topology.connectivity import can_average, cut_off, one_way
from dpwa.topology.graphs import GraphOptions, sorted_edges
from dpwa.topology.mixing import SparseMixing
from dpwa.topology.schedule import Topology, TopologySpec, make_topology
from dpwa.topology.spectrum import Report, largest_singular_value, report
from topology_support import plans


def names(count: int) -> list[str]:
    return [f"w{number}" for number in range(1, count + 1)]


def look(plan: TopologySpec, count: int) -> tuple[Topology, Report]:
    topology = make_topology(plan, count)
    return topology, report(topology, names(count))


def distance(models: np.ndarray) -> float:
    return float(np.linalg.norm(models - models.mean()))


def matrices(*given: list[list[float]]) -> tuple[np.ndarray, ...]:
    return tuple(map(np.array, given))


@pytest.mark.parametrize("count", [4, 5, 6, 12, 33])
def test_the_contraction_of_a_ring_is_its_second_eigenvalue(count):
    _, found = look(TopologySpec("ring"), count)
    expected = max(abs(1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / count)) for k in range(1, count))
    assert found.contraction == pytest.approx(expected)
    assert found.spectral_gap == pytest.approx(1 - expected)
    assert found.rounds_to_consensus == math.ceil(math.log(1e-6) / math.log(expected))


@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_the_contraction_of_a_hypercube_is_d_minus_1_over_d_plus_1(dimension):
    _, found = look(TopologySpec("hypercube"), 1 << dimension)
    assert found.contraction == pytest.approx((dimension - 1) / (dimension + 1))


@pytest.mark.parametrize("graph", ["complete", "star", "grid", "torus", "hypercube", "exponential", "directed_ring"])
@pytest.mark.parametrize("count", [4, 16])
def test_the_distance_shrinks_as_the_contraction_says(graph, count):
    weights = "uniform" if graph in ("exponential", "directed_ring") else "metropolis"
    topology, found = look(TopologySpec(graph, weights), count)
    matrix = topology.matrix(0)
    slowest = np.linalg.svd(matrix - 1 / count)[2][0]
    for models in (np.random.default_rng(3).normal(size=count), slowest):
        distances = [distance(models)]
        moved = models
        for _ in range(found.rounds_to_consensus):
            moved = matrix @ moved
            distances.append(distance(moved))
        assert distances[-1] <= 1e-6 * distances[0]
    if found.exact_after is None:
        measured = (distances[-1] / distances[0]) ** (1 / found.rounds_to_consensus)
        assert measured == pytest.approx(found.contraction, rel=0.02)


@settings(deadline=None)
@given(plans(most=12))
def test_no_rounds_of_a_doubly_stochastic_topology_keep_more_than_its_contraction_says(made):
    plan, count = made
    topology = make_topology(plan, count)
    found = report(topology, names(count))
    if found.conservation == "doubly" and not found.is_drawn:
        models = np.arange(count, dtype=np.float64)
        for round_ in range(found.rounds):
            models = topology.matrix(round_) @ models
        assert distance(models) <= found.contraction**found.rounds * distance(np.arange(count)) + 1e-9
    assert found.is_connected or plan.graph == "erdos_renyi"
    assert all(sentences(found, names(count)))


@settings(deadline=None)
@given(plans(most=12))
def test_models_end_at_the_stationary_weights(made):
    plan, count = made
    topology, found = look(plan, count)
    if found.is_drawn or not found.is_connected or found.conservation == "column":
        return
    product = np.linalg.matrix_power(
        np.linalg.multi_dot([*(topology.matrix(round_) for round_ in reversed(range(found.rounds))), np.eye(count)]),
        4096,
    )
    assert product == pytest.approx(np.tile(found.stationary, (count, 1)), abs=1e-6)


def test_a_complete_cluster_of_any_size_is_exact_at_once():
    _, found = look(TopologySpec(), 4096)
    assert (found.exact_after, found.contraction, found.rounds_to_consensus) == (1, 0.0, 1)


@pytest.mark.parametrize(
    ("plan", "count", "rounds"),
    [
        (TopologySpec("one_peer_exponential"), 16, 4),
        (TopologySpec("base_graph"), 7, 5),
        (TopologySpec("base_graph", most_partners=2), 7, 4),
        (TopologySpec("complete", "uniform"), 9, 1),
        (TopologySpec("ring"), 3, 1),
    ],
)
def test_a_topology_that_is_exact_in_the_end_says_after_how_many_rounds(plan, count, rounds):
    _, found = look(plan, count)
    assert found.exact_after == found.rounds_to_consensus == rounds


def test_a_matrix_whose_power_is_exact_says_so_although_it_is_not_itself():
    # The de Bruijn graph of four nodes: after two rounds everyone has heard everyone.
    shuffled = np.zeros((4, 4))
    for node in range(4):
        shuffled[node, [(2 * node) % 4, (2 * node + 1) % 4]] = 0.5
    _, found = look(TopologySpec("matrix", matrices=(shuffled,)), 4)
    assert found.exact_after == 2


def test_one_peer_exponential_of_six_nodes_is_not_exact():
    _, found = look(TopologySpec("one_peer_exponential"), 6)
    assert found.exact_after is None
    assert 0 < found.contraction < 1


def test_the_limit_of_a_row_stochastic_star_weighs_by_degree():
    _, found = look(TopologySpec("star", "uniform"), 5)
    assert found.conservation == "row"
    # Reversible: the limit is proportional to the number of nodes that a node hears, itself included.
    assert found.stationary == pytest.approx(np.array([5, 2, 2, 2, 2]) / 13)
    assert "In the limit the nodes weigh: w1 38.5%, w2 15.4%" in "\n".join(sentences(found, names(5)))


def test_the_limit_of_many_nodes_names_the_heaviest_and_the_lightest():
    _, found = look(TopologySpec("star", "uniform"), 30)
    assert "In the limit w1 weighs most" in "\n".join(sentences(found, names(30)))


def test_five_matrices_whose_union_is_a_ring_bring_all_together():
    pairs = []
    for first in range(5):
        matrix = np.eye(5)
        ends = [first, (first + 1) % 5]
        matrix[np.ix_(ends, ends)] = 0.5
        pairs.append(matrix)
    topology, found = look(TopologySpec("matrix", matrices=tuple(pairs)), 5)
    assert (found.rounds, found.connected_rounds, found.is_connected) == (5, 0, True)
    product = np.eye(5)
    for round_ in range(5):
        product = topology.matrix(round_) @ product
    assert found.contraction == pytest.approx(largest_singular_value(product) ** 0.2)


def test_a_random_schedule_is_averaged_over_twenty_rounds_and_says_so():
    plan = TopologySpec("random_regular", is_random=True, options=GraphOptions(degree=3), seed=2)
    _, found = look(plan, 12)
    assert (found.is_drawn, found.rounds, found.exact_after) == (True, 20, None)
    assert 0.2 < found.contraction < 0.8
    assert "averaged over the first 20 drawn rounds" in "\n".join(sentences(found, names(12)))
    # So fast a schedule that twenty rounds end in rounding is not called exact.
    _, fast = look(TopologySpec("complete", "random_doubly", is_random=True, seed=2), 12)
    assert 0 < fast.contraction < 0.2


def test_more_than_600_nodes_are_looked_at_without_rates():
    _, found = look(TopologySpec("ring"), 1000)
    assert (found.contraction, found.rounds_to_consensus, found.is_connected) == (None, None, True)
    assert "Rates are computed for up to 600 nodes; this cluster has 1000." in sentences(found, names(1000))


def test_a_disconnected_topology_names_who_is_cut_off_and_never_shrinks():
    config = ClusterConfig.for_localhost(4, topology={"edges": [["w1", "w2"]], "allow_disconnected": True})
    text = "\n".join(describe_topology(config.topology, config.topology_of_nodes, names(4)))
    assert "Not connected: nobody hears w3, w4, and they hear nobody." in text
    assert "The distance between the models does not shrink to nothing." in text


@pytest.mark.parametrize(
    ("edges", "texts"),
    [
        ([(0, 1), (1, 0), (2, 0), (0, 2)], []),
        ([(0, 1), (1, 0)], ["nobody hears w3, and it hears nobody"]),
        ([(0, 1), (1, 0), (2, 0)], ["nobody hears w3"]),
        ([(0, 1), (1, 0), (0, 2)], ["w3 hears nobody"]),
    ],
)
def test_who_is_cut_off_is_named(edges, texts):
    assert list(cut_off(sorted_edges(edges), names(3))) == texts


def test_a_group_that_nobody_outside_hears_is_named():
    edges = sorted_edges([(0, 1), (1, 0), (2, 3), (3, 2), (2, 0)])  # w3 hears w1, but nobody there hears w3 and w4
    assert list(cut_off(edges, names(4))) == ["what w3, w4 learn never reaches the other nodes"]


def test_an_edge_without_a_way_back_is_found():
    assert one_way(sorted_edges([(0, 1), (1, 0), (2, 0)]), 3) == (2, 0)
    assert one_way(sorted_edges([(0, 1), (1, 0)]), 3) is None


@pytest.mark.parametrize(
    ("given", "in_turn", "expected"),
    [
        (matrices([[0, 1], [1, 0]]), True, False),
        (matrices([[0.5, 0.5], [1, 0]]), True, True),
        (matrices([[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.5]]), True, True),
        (matrices([[0, 1], [1, 0]], [[1, 0], [0, 1]]), False, False),
        (matrices([[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.5]]), False, True),
        # A ring of three that passes on; twice around is still passing on.
        (matrices([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), True, False),
        (matrices([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), True, True),
    ],
)
def test_models_that_are_only_passed_on_never_come_together(given, in_turn, expected):
    assert can_average([SparseMixing.of(matrix) for matrix in given], in_turn=in_turn) is expected


def test_the_headline_says_what_the_topology_is():
    settings_and_texts = [
        (
            "torus",
            12,
            "The topology: torus of 3 x 4 with weights metropolis, the same in each round. In a round a node",
        ),
        (
            "base_graph",
            7,
            "base_graph with weights its own, 5 matrices in turn. In a round a node hears at most 1 other.",
        ),
        ("star", 5, "hears 1 to 4 others."),
        ({"graph": "erdos_renyi", "probability": 0.5, "schedule": "random"}, 9, "metropolis, drawn in each round."),
    ]
    for topology, count, text in settings_and_texts:
        config = ClusterConfig.for_localhost(count, topology=topology)
        assert text in describe_topology(config.topology, config.topology_of_nodes, names(count))[0]
