"""What becomes of the others, of the mass and of the mean when a node ends, and when it comes back."""

from __future__ import annotations

import numpy as np
import pytest
from method_support import (
    METHODS,
    PAIRING,
    PUSHING,
    begin,
    masses,
    nobody_asking,
    settle,
    spread,
    starts,
    weighted_sum,
)

from dpwa.snapshot.state import State
from support import Cluster, VectorModel, wait_until

pytestmark = pytest.mark.heavy

SETTINGS = {"timeout_ms": 200, "connect_timeout_ms": 50, "flow_control": {"probe_s": 0.02, "probe_max_s": 0.05}}
LEAD = 50
"""Updates that the others must be ahead for a node that begins to take over a model."""


def crash(cluster: Cluster, index: int) -> None:
    """A node ends without a word."""
    cluster.nodes.pop(index).close()
    cluster.models.pop(index)


@pytest.mark.parametrize("name", METHODS)
def test_the_others_go_on_and_agree_when_a_node_ends(cluster, name):
    start = starts(4)
    begin(cluster, start, name, **SETTINGS)
    cluster.step_all(6)
    crash(cluster, 1)
    rng = np.random.default_rng(0)
    for model in cluster.models:
        model.vector += rng.normal(size=model.vector.shape)
    apart = spread(cluster.vectors())

    def agree() -> bool:
        cluster.step_all(5)
        return spread(cluster.vectors()) < 1e-2 * apart

    wait_until(agree, "the three that are left agree")


@pytest.mark.parametrize("name", PUSHING)
def test_the_mass_of_the_others_is_what_they_held_when_a_node_ends(cluster, name):
    start = starts(4)
    begin(cluster, start, name, **SETTINGS)
    cluster.step_all(10)
    settle(cluster)
    crash(cluster, 2)
    total, kept = masses(cluster).sum(), weighted_sum(cluster)
    cluster.step_all(30)
    settle(cluster, total)
    assert masses(cluster).sum() == pytest.approx(total, abs=1e-9)
    assert masses(cluster, "mass_lost").sum() == 0
    assert weighted_sum(cluster) == pytest.approx(kept, abs=1e-9)


@pytest.mark.parametrize("name", PAIRING)
def test_the_mean_of_the_others_is_conserved_when_a_node_ends(cluster, name):
    start = starts(4)
    begin(cluster, start, name, **SETTINGS)
    cluster.step_all(10)
    settle(cluster)
    crash(cluster, 2)
    mean = cluster.vectors().mean(axis=0)
    cluster.step_all(30)
    settle(cluster)
    assert cluster.vectors().mean(axis=0) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", PUSHING)
def test_a_node_that_comes_back_late_has_no_mass_but_what_the_others_give_it(cluster, name):
    start = starts(3)
    begin(cluster, start, name, **SETTINGS)
    cluster.step_all(10)
    settle(cluster)
    crash(cluster, 2)
    total, kept = masses(cluster).sum(), weighted_sum(cluster)
    while min(node.statistics().clock for node in cluster.nodes) < LEAD + 10:
        cluster.step_all()
    settle(cluster, total)
    for node in cluster.nodes:
        node.method.probability = 0.0
    returned = cluster.add("w3", VectorModel(np.full(start.shape[1], 1e6)))
    returned.method.probability = 0.0

    def has_joined() -> bool:
        cluster.step_all()
        return returned.statistics().blended > 0

    wait_until(has_joined, "the returned node has joined")
    assert masses(cluster)[-1] == 0.0
    assert np.abs(cluster.vectors()[-1]).max() < 1e3
    for node in cluster.nodes:
        node.method.probability = 1.0
    cluster.step_all(30)
    settle(cluster, total)
    assert masses(cluster)[-1] > 0
    assert masses(cluster).sum() == pytest.approx(total, abs=1e-9)
    assert weighted_sum(cluster) == pytest.approx(kept, abs=1e-9)


def test_a_round_of_dpsgd_without_a_neighbour_counts_it_and_leaves_its_weight_to_the_node(in_memory):
    start = starts(3)
    begin(in_memory, start, "dpsgd")
    in_memory.step_all(6)
    crash(in_memory, 2)
    in_memory.step_all(1)
    before = in_memory.vectors()
    in_memory.step_all(1)
    assert [node.statistics().method["missed"] > 0 for node in in_memory.nodes] == [True, True]
    own, other = 2 / 3, 1 / 3
    assert in_memory.vectors()[0] == pytest.approx(own * before[0] + other * before[1], abs=1e-9)


def test_a_node_without_mass_trains_at_the_usual_rate(in_memory):
    """Sgp scales a step by 1 / weight, which has no meaning at weight 0 and must not blow the model up."""
    begin(in_memory, starts(2), "sgp", topology="directed_ring")
    in_memory.step_all(6)
    settle(in_memory)
    node, model = in_memory.nodes[0], in_memory.models[0]
    node.method.joined(State(None, 100.0), takes_over=True)
    before = model.vector.copy()
    with nobody_asking(in_memory):
        model.vector += 1.0
        node.step(1.0)
    assert masses(in_memory)[0] == 0.0
    assert model.vector == pytest.approx(before + 1.0)
