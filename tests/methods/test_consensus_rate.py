"""How fast nodes come to agree, and at what: measured on running nodes, and compared with the matrices' own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support import Cluster, VectorModel

pytestmark = pytest.mark.heavy

JOINED = 6

# Models that are only averaged, and whose mean is near zero, become smaller than they are apart: no training does that.
NOT_CUT = {"guard": "finite"}
"""Sweeps after which every node has joined."""


def joined_at(cluster: Cluster, start: np.ndarray, *, align: int = 1, **settings: object) -> np.ndarray:
    """Begin with given models, of shape (nodes, size), when all nodes have joined and nothing is under way.

    Nodes that join at zeros have only differences of zero under way when the models are set.

    Args:
        cluster: an empty one.
        start: the models.
        align: the next round to be published is a multiple of it.
        settings: of the cluster.

    Returns:
        The mixing matrix of the round, shape (nodes, nodes).
    """
    nodes = cluster.start([VectorModel(np.zeros(start.shape[1])) for _ in start], **{**NOT_CUT, **settings})
    cluster.step_all(JOINED)
    while (nodes[0].method.round + 1) % align:
        cluster.step_all()
    assert len({node.method.round for node in nodes}) == 1
    for model, vector in zip(cluster.models, start, strict=True):
        model.vector[:] = vector
    cluster.step_all()  # applies zeros, and publishes the start
    return cluster.config.topology_of_nodes.matrix(nodes[0].method.round)


def distance(vectors: np.ndarray) -> float:
    """How far the models are from their mean."""
    return float(np.linalg.norm(vectors - vectors.mean(axis=0)))


STATIC = [("ring", 8, 40), ("ring", 5, 16), ("torus", 9, 14), ("torus", 12, 18), ("hypercube", 8, 12), ("star", 6, 60)]


@pytest.mark.parametrize(("graph", "count", "late"), STATIC)
def test_the_consensus_distance_shrinks_per_round_by_the_second_largest_singular_value(in_memory, graph, count, late):
    start = np.random.default_rng(1).normal(size=(count, 400))
    matrix = joined_at(in_memory, start, method="dpsgd", topology={"graph": graph, "weights": "metropolis"})
    assert matrix == pytest.approx(matrix.T)
    second = np.linalg.svd(matrix, compute_uv=False)[1]
    in_memory.step_all(late)
    assert in_memory.vectors() == pytest.approx(np.linalg.matrix_power(matrix, late) @ start, abs=1e-12)
    earlier, rounds = distance(in_memory.vectors()), late // 2
    in_memory.step_all(rounds)
    assert (distance(in_memory.vectors()) / earlier) ** (1 / rounds) == pytest.approx(second, rel=0.02)
    assert in_memory.vectors().mean(axis=0) == pytest.approx(start.mean(axis=0), abs=1e-14)
    assert sum(node.method.statistics()["missed"] for node in in_memory.nodes) == 0


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_one_peer_exponential_is_exact_after_log2_n_rounds_whichever_is_the_first(in_memory, count):
    start = np.random.default_rng(count).normal(size=(count, 30))
    joined_at(in_memory, start, method="dpsgd", topology="one_peer_exponential")
    in_memory.step_all(int(math.log2(count)))
    assert distance(in_memory.vectors()) < 1e-12 * distance(start)
    assert in_memory.vectors()[0] == pytest.approx(start.mean(axis=0), abs=1e-14)


def test_one_peer_exponential_is_exact_over_real_sockets(zeromq):
    start = np.random.default_rng(4).normal(size=(4, 30))
    joined_at(zeromq, start, method="dpsgd", topology="one_peer_exponential")
    zeromq.step_all(2)
    assert distance(zeromq.vectors()) < 1e-12 * distance(start)


@pytest.mark.parametrize("partners", [1, 2])
@pytest.mark.parametrize("count", [5, 6, 7, 12, 96])
def test_the_base_graph_is_exact_within_its_period(in_memory, count, partners):
    topology = {"graph": "base_graph", "k": partners}
    period = Cluster("in_memory")
    period.start([VectorModel([0.0]) for _ in range(count)], method="dpsgd", topology=topology, **NOT_CUT)
    rounds = period.config.topology_of_nodes.period
    period.close()
    start = np.random.default_rng(count).normal(size=(count, 10))
    joined_at(in_memory, start, align=rounds, method="dpsgd", topology=topology, **NOT_CUT)
    in_memory.step_all(rounds - 1)
    assert distance(in_memory.vectors()) > 1e-3
    in_memory.step_all()
    assert distance(in_memory.vectors()) < 1e-12 * distance(start)
    assert in_memory.vectors()[0] == pytest.approx(start.mean(axis=0), abs=1e-14)


# ---- Where pulling nodes agree ---------------------------------------------------------------------------------------


def expected_weights(matrix: np.ndarray, factor: float) -> np.ndarray:
    """The stationary weights of a round in which each node goes the share `factor` towards one in-neighbour.

    Node i pulls j with the probability that W_ij has among the other entries of its row, so that the expected matrix of
    a round has 1 - factor on its diagonal and `factor` times these probabilities beside it. Rounds are independent, so
    the expected limit is that of its powers.

    Args:
        matrix: W, shape (nodes, nodes).
        factor: of the interpolation.
    """
    chances = matrix - np.diag(np.diag(matrix))
    chances /= chances.sum(axis=1, keepdims=True)
    expected = (1 - factor) * np.eye(len(matrix)) + factor * chances
    return np.linalg.matrix_power(expected, 10_000)[0]


def pulled_weights(seed: int, count: int, factor: float, rounds: int, topology: object) -> tuple[np.ndarray, ...]:
    """The weights of the nodes' first models in the model that one run agrees at, and W."""
    cluster = Cluster("in_memory")
    # With scores that grow with every success, the choice among neighbours would drift.
    settings = {"constant": {"value": factor}, "flow_control": {"success": 0}, "topology": topology, "seed": seed}
    cluster.start([VectorModel(np.zeros(count)) for _ in range(count)], **{**NOT_CUT, **settings})
    for _ in range(JOINED):
        synchronous_round(cluster)
    for index, model in enumerate(cluster.models):
        model.vector[index] = 1.0
    for _ in range(rounds):
        synchronous_round(cluster)
    cluster.close()
    assert np.ptp(cluster.vectors(), axis=0).max() < 1e-3
    return cluster.vectors().mean(axis=0), cluster.config.topology_of_nodes.matrix(0)


def synchronous_round(cluster: Cluster) -> None:
    """All publish, then all blend a snapshot of this round."""
    for node in cluster.nodes:
        node.update_send(1.0)
    for node in cluster.nodes:
        node.update_wait(1.0)


@pytest.mark.slow
def test_pulling_nodes_agree_at_the_stationary_weights_of_a_row_stochastic_topology():
    """Two hundred runs; the mean of their limits lies within the confidence interval, and equal weights do not."""
    count, factor, runs = 4, 0.5, 200
    # The seed of the topology stays, so that all runs have one matrix.
    topology = {"graph": "complete", "weights": "random_row", "seed": 5}
    found = [pulled_weights(seed, count, factor, 30, topology) for seed in range(runs)]
    weights = np.stack([weights for weights, _ in found])
    expected = expected_weights(found[0][1], factor)
    error = weights.std(axis=0, ddof=1) / math.sqrt(runs)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert (np.abs(weights.mean(axis=0) - expected) < 3 * error).all()
    assert np.abs(weights.mean(axis=0) - 1 / count).max() > 6 * error.max()


@pytest.mark.slow
def test_pulling_nodes_of_a_complete_cluster_agree_at_the_mean_in_expectation():
    count, runs = 4, 100
    weights = np.stack([pulled_weights(seed, count, 0.5, 30, "complete")[0] for seed in range(runs)])
    error = weights.std(axis=0, ddof=1) / math.sqrt(runs)
    assert (np.abs(weights.mean(axis=0) - 1 / count) < 3 * error).all()
    assert error.max() < 0.02


def test_pulling_along_a_directed_ring_ends_at_the_mean_exactly():
    """Each node has one whom it can hear, so that nothing is left to chance, and the matrix is doubly stochastic."""
    weights, matrix = pulled_weights(0, 5, 0.5, 60, "directed_ring")
    assert expected_weights(matrix, 0.5) == pytest.approx(0.2)
    assert weights == pytest.approx(0.2, abs=1e-3)
