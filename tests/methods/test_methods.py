"""What each averaging method promises, over both transports: agreement, and what its exchanges conserve."""

from __future__ import annotations

import random

import numpy as np
import pytest
from method_support import (
    METHODS,
    PAIRING,
    PUSHING,
    anchors_with_momentum,
    begin,
    begin_dpsgd_again,
    conservation,
    first_total,
    masses,
    settle,
    spread,
    starts,
    weighted_sum,
)

from dpwa.config.cluster import ClusterConfig
from dpwa.methods.adpsgd import ADPSGD
from dpwa.methods.base import Conservation
from dpwa.methods.pull import Pull
from dpwa.methods.registry import METHODS as REGISTERED
from dpwa.topology.neighbourhood import Neighbourhood
from support import VectorModel, wait_until

pytestmark = pytest.mark.seconds

SWEEPS = {"elastic": 120, "noloco": 160, "sparta": 160, "sparta in pairs": 240}
"""Steps of every node after which their distance is below a thousandth of the first one; 60 for most methods."""


def test_every_method_is_in_this_suite():
    assert {str(settings["method"]) for settings in METHODS.values()} == {*REGISTERED, "sparta"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.heavy
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
    if name == "dpsgd":
        begin_dpsgd_again(cluster, start)
    cluster.step_all(20)
    settle(cluster)
    bias = np.abs(cluster.vectors().mean(axis=0) - start.mean(axis=0)).max()
    assert spread(cluster.vectors()) < 0.9 * spread(start)
    if conservation(cluster) is Conservation.DOUBLY:
        assert bias < 1e-13
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
    # By default sgp rather loses progress than makes a step more than twice as long.
    exact = {"topology": "directed_ring", "sgp": {"least_weight": 0.01}}
    begin(cluster, start, name, **(exact if name == "sgp" else {}))
    if name == "dpsgd":
        begin_dpsgd_again(cluster, start)
    cluster.step_all(8)  # a push to a node that has not joined comes back, and with it what was trained meanwhile
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
    """Without training a pair keeps the sum of phi + mu m / (1 - mu), whoever else each of the two has met."""
    start = starts(4)
    begin(cluster, start, "noloco", noloco={"every": 5})
    kept = start.mean(axis=0)
    for sweeps in (40, 500):
        cluster.step_all(sweeps)
        settle(cluster)
        assert anchors_with_momentum(cluster) == pytest.approx(kept, abs=1e-12)
    assert cluster.vectors() == pytest.approx(np.tile(kept, (4, 1)), abs=1e-5)


def test_a_node_of_noloco_that_has_fallen_behind_finds_partners_again(cluster):
    """Others make many outer steps meanwhile, more than the window; that must not shut it out for ever."""
    start = starts(5)
    begin(cluster, start, "noloco")
    cluster.step_all(6)
    slow = cluster.nodes[4]
    others = cluster.nodes[:4]
    while min(node.method.round for node in others) < slow.method.round + 6:
        for node in others:
            node.step(1.0)
    before = slow.statistics().method["outer_steps"]

    def has_met() -> bool:
        cluster.step_all()
        return slow.statistics().method["outer_steps"] >= before + 5

    wait_until(has_met, "five outer steps of the one that was behind")
    assert slow.method.round > before + 6  # its first partner has taken it along


def test_a_step_after_a_snapshot_that_could_not_be_taken_is_not_measured_from_an_older_one(in_memory):
    """Sgp scales each step by the way from the last snapshot; blends since then are no steps."""
    start = starts(2)
    first, _ = in_memory.start([VectorModel(vector) for vector in start], method="sgp", topology="directed_ring")
    in_memory.step_all(6)
    settle(in_memory)
    sums = weighted_sum(in_memory)
    slow_readers = []
    for _ in range(8):
        slow_readers.append(first._service.serving.snapshot.memory)
        in_memory.step_all()
    assert first.statistics().publish_skipped > 3
    slow_readers.clear()
    in_memory.step_all(4)
    settle(in_memory)
    assert weighted_sum(in_memory) == pytest.approx(sums, abs=1e-9)


def test_a_pair_that_is_always_refused_is_proposed_eight_more_times_and_no_more():
    links = Neighbourhood(ClusterConfig.for_localhost(2).topology_of_nodes, ["w1", "w2"], 0)
    method, rng, plans = ADPSGD(links, 2, 1.0), random.Random(0), 0
    for _ in range(100):
        if method.plan(rng) is not None:
            plans += 1
            method.refused(by_peers=True)
            for _ in range(20):
                if method.plan(rng) is not None:
                    method.refused(by_peers=False)  # costs nothing, and does not count
        method.probability = 1e-12
    assert plans == 1 + 8


def test_a_pull_that_brought_nothing_new_is_made_up_for_by_the_next_step_and_one_that_came_is_not():
    links = Neighbourhood(ClusterConfig.for_localhost(2).topology_of_nodes, ["w1", "w2"], 0)
    method, rng = Pull(links, 2, 1.0), random.Random(0)
    assert method.plan(rng) is not None
    method.probability = 1e-12
    method.refused(by_peers=True)
    plans = [method.plan(rng) for _ in range(100)]
    assert [index for index, plan in enumerate(plans) if plan is not None] == [0]


def test_a_peer_that_never_has_anything_new_is_asked_eight_more_times_and_no_more():
    links = Neighbourhood(ClusterConfig.for_localhost(2).topology_of_nodes, ["w1", "w2"], 0)
    method, rng, plans = Pull(links, 2, 1.0), random.Random(0), 0
    for _ in range(100):
        if method.plan(rng) is not None:
            plans += 1
            method.refused(by_peers=True)
        method.probability = 1e-12
    assert plans == 1 + 8


def test_a_pair_that_has_met_is_not_proposed_again():
    links = Neighbourhood(ClusterConfig.for_localhost(2).topology_of_nodes, ["w1", "w2"], 0)
    method, rng = ADPSGD(links, 2, 1.0), random.Random(0)
    assert method.plan(rng) is not None
    method.probability = 1e-12
    method.refused(by_peers=True)
    plans = [method.plan(rng) for _ in range(100)]
    assert sum(plan is not None for plan in plans) == 1


def test_nothing_is_made_up_for_while_a_schedule_says_that_nothing_is_exchanged():
    links = Neighbourhood(ClusterConfig.for_localhost(2).topology_of_nodes, ["w1", "w2"], 0)
    method, rng = ADPSGD(links, 2, 1.0), random.Random(0)
    assert method.plan(rng) is not None
    method.probability = 0.0
    method.refused(by_peers=True)
    assert [method.plan(rng) for _ in range(100)] == [None] * 100
