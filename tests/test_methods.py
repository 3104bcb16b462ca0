"""What each averaging method promises, over both transports: agreement, and what its exchanges conserve."""

from __future__ import annotations

import numpy as np
import pytest
from method_support import (
    METHODS,
    PAIRING,
    PUSHING,
    begin,
    conservation,
    counted,
    first_total,
    masses,
    settle,
    spread,
    starts,
    weighted_sum,
)

from dpwa.methods.base import Conservation
from dpwa.methods.registry import METHODS as REGISTERED
from support import Cluster, VectorModel, step_until

SWEEPS = {"elastic": 80, "noloco": 160, "sparta": 120, "sparta in pairs": 200}
"""Steps of every node after which their distance is a thousandth of the first one; 40 for most methods."""


def test_every_method_is_in_this_suite():
    assert {str(settings["method"]) for settings in METHODS.values()} == {*REGISTERED, "sparta"}


@pytest.mark.parametrize("name", METHODS)
def test_nodes_that_do_not_train_come_to_agree(cluster, name):
    start = starts(5)
    begin(cluster, start, name)
    cluster.step_all(SWEEPS.get(name, 60))
    settle(cluster)
    assert spread(cluster.vectors()) < 1e-3 * spread(start)
    assert (cluster.vectors() > start.min(axis=0) - 1e-9).all()
    assert (cluster.vectors() < start.max(axis=0) + 1e-9).all()
    assert sum(node.statistics().failures for node in cluster.nodes) == 0


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("noloco", *PUSHING)])
def test_the_mean_of_all_models_is_conserved_to_rounding_by_symmetric_methods_and_by_no_other(cluster, name):
    start = starts(5)
    begin(cluster, start, name)
    cluster.step_all(20)
    settle(cluster)
    bias = np.abs(cluster.vectors().mean(axis=0) - start.mean(axis=0)).max()
    if conservation(cluster) is Conservation.DOUBLY:
        assert bias < 1e-13
        assert spread(cluster.vectors()) < 0.5 * spread(start)
    else:
        assert bias > 1e-3  # what `pull` has is a mean by chance, so that nobody takes it for more


@pytest.mark.parametrize("name", PUSHING)
def test_a_push_method_conserves_its_mass_and_the_mean_by_mass(cluster, name):
    start = starts(5)
    begin(cluster, start, name)
    for _ in range(30):
        cluster.step_all()
        held = masses(cluster).sum()
        assert held <= first_total(cluster) + 1e-12  # what is under way is no node's
    settle(cluster)
    total = masses(cluster).sum()
    assert total == pytest.approx(first_total(cluster), abs=1e-9)
    bias = np.abs(weighted_sum(cluster) / total - start.mean(axis=0)).max()
    assert bias < 1e-12
    assert masses(cluster, "mass_lost").sum() == 0
    assert spread(cluster.vectors()) < 1e-2 * spread(start)


@pytest.mark.parametrize("name", [*PUSHING, *PAIRING, "dpsgd"])
def test_what_the_nodes_train_meanwhile_is_conserved_too(cluster, name):
    """Each step of a node adds its own constant, so that the sum of all progress is known."""
    start = starts(4)
    begin(cluster, start, name)
    steps = np.random.default_rng(1).normal(size=start.shape)
    sweeps = 25
    shares = np.ones((sweeps, len(start)))

    for sweep in range(sweeps):
        if name == "gosgd":  # a step counts by the mass of its node, which nobody changes between two steps
            shares[sweep] = masses(cluster)
        cluster.step_all(update=lambda index, model: np.add(model.vector, steps[index], out=model.vector))
    settle(cluster)
    if name in PUSHING:
        expected = first_total(cluster) * start.mean(axis=0) + shares.sum(axis=0) @ steps
        assert weighted_sum(cluster) == pytest.approx(expected, abs=1e-9)
    else:
        expected = start.mean(axis=0) + sweeps * steps.mean(axis=0)
        assert cluster.vectors().mean(axis=0) == pytest.approx(expected, abs=1e-11)


def test_the_anchors_of_noloco_keep_their_mean_when_momentum_has_died_down(cluster):
    """Of two nodes in a pair, phi + mu m / (1 - mu) keeps its sum without training, whoever else each of them has met."""
    start = starts(4)
    begin(cluster, start, "noloco")
    cluster.step_all(20)
    kept = start.mean(axis=0)
    assert _anchors_with_momentum(cluster) == pytest.approx(kept, abs=1e-12)
    cluster.step_all(200)
    assert _anchors_with_momentum(cluster) == pytest.approx(kept, abs=1e-12)
    assert cluster.vectors() == pytest.approx(np.tile(kept, (4, 1)), abs=1e-6)


def _anchors_with_momentum(cluster: Cluster) -> np.ndarray:
    mu = cluster.config.noloco.momentum
    states = [node.state_dict()["of_method"]["outer"] for node in cluster.nodes]
    return np.mean([state["anchor.0"] + mu / (1 - mu) * state["momentum.0"] for state in states], axis=0)


def test_two_nodes_of_noloco_make_one_outer_step_over_the_mean_of_their_progress(in_memory):
    start = np.zeros((2, 3))
    options = {"every": 6, "beta": 0.7, "gamma": 0.7, "momentum": 0.5}
    nodes = in_memory.start([VectorModel(vector) for vector in start], method="noloco", noloco=options)
    step_until(nodes[1], lambda: _stepped(in_memory, 0), "the first has joined")
    steps = np.array([[1.0, 0.0, 2.0], [3.0, 0.0, -1.0]])

    def train(index: int, model: VectorModel) -> None:
        model.vector += steps[index]

    while sum(node.method.round for node in nodes) < 2:
        in_memory.step_all(update=train)
    anchors = np.stack([node.state_dict()["of_method"]["outer"]["anchor.0"] for node in nodes])
    assert anchors[0] == pytest.approx(anchors[1])


def _stepped(cluster: Cluster, index: int) -> bool:
    cluster.nodes[index].step(1.0)
    return cluster.nodes[index].statistics().blended > 0
