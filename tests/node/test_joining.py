"""A node that was started again and knows nothing takes a trained model over, and no trained one takes any of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from support import Cluster, VectorModel, events_of

pytestmark = pytest.mark.heavy

QUICK = {"flow_control": {"probe_s": 1e-6, "probe_max_s": 1e-6}}
"""A peer that could not be reached is asked again in the next step."""
EARLY = {"noloco": {"every": 4}}
METHODS = ["pull", "gosgd", "sgp", "adpsgd", "elastic", "dpsgd", "noloco"]
LEAD = 50


def trained(cluster: Cluster, count: int, method: str = "pull", **settings: object) -> None:
    """A cluster whose models are at 1.0, after so many steps that a new node is far behind."""
    models = [VectorModel([1.0, 1.0]) for _ in range(count)]
    cluster.start(models, method=method, **EARLY, **QUICK, **settings)
    while min(node.statistics().clock for node in cluster.nodes) < 2 * LEAD:
        cluster.step_all()


def restart(cluster: Cluster, index: int) -> None:
    """A node ends, and begins again at 100.0."""
    cluster.nodes[index].close()
    cluster.add(f"w{index + 1}", VectorModel([100.0, 100.0]))
    cluster.nodes[index], cluster.models[index] = cluster.nodes.pop(), cluster.models.pop()


@contextmanager
def out_of_reach(cluster: Cluster, *indices: int) -> Iterator[None]:
    """These nodes cannot be reached meanwhile."""
    there = {f"w{index + 1}": cluster.nodes[index]._transport for index in indices}
    for name in there:
        cluster.network.leave(name)
    yield
    for name, transport in there.items():
        cluster.network.join(name, transport)


def step(cluster: Cluster, *indices: int, times: int = 1, loss: float = 1.0) -> None:
    for _ in range(times):
        for index in indices:
            cluster.nodes[index].step(loss)


def counted(cluster: Cluster, index: int, outcome: str) -> int:
    return cluster.nodes[index].statistics().exchanges.get(outcome, 0)


@pytest.mark.parametrize("asks", [1, 20])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_node_that_can_reach_nobody_for_a_while_takes_the_trained_model_over_afterwards(in_memory, count, asks):
    trained(in_memory, count)
    restart(in_memory, 1)
    others = [index for index in range(count) if index != 1]
    with out_of_reach(in_memory, *others):
        step(in_memory, 1, times=asks + 1)
        assert counted(in_memory, 1, "unreachable") >= 1, "the fault happened"
    in_memory.step_all(60)
    assert (in_memory.vectors() == 1.0).all()
    assert in_memory.nodes[1].statistics().clock > LEAD


@pytest.mark.parametrize("method", METHODS)
def test_it_does_so_with_every_method(in_memory, method):
    trained(in_memory, 4, method)
    restart(in_memory, 1)
    with out_of_reach(in_memory, 0, 2, 3):
        step(in_memory, 1, times=20)
        assert counted(in_memory, 1, "unreachable") >= 1, "the fault happened"
    in_memory.step_all(60)
    assert in_memory.vectors() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 30])
def test_two_that_restart_together_and_meet_first_take_the_trained_model_over_both(in_memory, method, steps):
    trained(in_memory, 4, method)
    restart(in_memory, 1)
    restart(in_memory, 2)
    with out_of_reach(in_memory, 0, 3):
        step(in_memory, 1, 2, times=steps)
        assert (in_memory.vectors()[1:3] == 100.0).all(), "they have met nobody else"
    in_memory.step_all(150)
    assert in_memory.vectors() == pytest.approx(1.0, abs=1e-12)
    assert len({node._boundary.state.lineage for node in in_memory.nodes}) == 1


def test_a_first_peer_whose_loss_is_nan_does_not_end_the_joining(in_memory):
    trained(in_memory, 3)
    restart(in_memory, 1)
    with out_of_reach(in_memory, 2):
        step(in_memory, 0, times=2, loss=float("nan"))
        step(in_memory, 1, times=4)
        assert counted(in_memory, 1, "blended") >= 1, "it has met the one that has diverged"
        assert (in_memory.vectors()[1] == 100.0).all()
    step(in_memory, 1, 2, times=40)
    assert (in_memory.vectors()[1:] == 1.0).all()


def test_a_trained_node_gives_a_young_model_the_factor_0_and_the_journal_says_why(in_memory, tmp_path):
    in_memory.start([VectorModel([1.0]), VectorModel([1.0])], run_dir=tmp_path, **QUICK)
    in_memory.step_all(2 * LEAD)
    in_memory.nodes[1].close()
    young = in_memory.add("w2", VectorModel([100.0]))
    young.step(1.0)
    elder = in_memory.nodes[0]
    elder.step(1.0)
    elder.step(1.0)
    assert in_memory.models[0].vector == [1.0]
    in_memory.close()
    told = [event for event in events_of(tmp_path, "w1") if event.get("reason", "").startswith("the model of peer w2")]
    assert told, "the two have met"
    assert {event["factor"] for event in told} == {0.0}
    assert all("updates behind" in event["reason"] for event in told)
    assert elder.statistics().failures == 0
    assert elder.statistics().scores["w2"] > elder.config.flow_control.score_start  # of its new life: two good answers


@pytest.mark.parametrize("method", METHODS)
def test_a_node_that_is_alone_trains_on(in_memory, method):
    model = VectorModel([0.0])
    first, second = in_memory.start([model, VectorModel([0.0])], method=method, outer={"every": 1000}, **QUICK)
    second.close()
    for _ in range(30):
        model.vector += 1.0
        first.step(1.0)
    assert model.vector == [30.0]
    assert first.statistics().clock == 30.0


@pytest.mark.parametrize("method", ["pull", "adpsgd", "elastic", "noloco"])
def test_a_node_that_had_no_buffer_when_it_joined_joins_at_a_later_step(in_memory, monkeypatch, method):
    in_memory.start([VectorModel([1.0]), VectorModel([2.0])], method=method, **EARLY, **QUICK)
    publisher = in_memory.nodes[0]._boundary._publisher
    refused = []
    with monkeypatch.context() as patch:
        for name in ("take", "take_aside"):
            patch.setattr(publisher, name, lambda **what: refused.append(what))
        step(in_memory, 0, 1, times=2)
    assert refused, "what was to happen did"
    step(in_memory, 0, 1, times=4)
    assert counted(in_memory, 0, "blended") >= 1
    assert not in_memory.nodes[0]._boundary._joining.is_on


def test_outer_steps_are_made_also_by_a_node_that_has_met_nobody(in_memory):
    outer = {"every": 10, "learning_rate": 0.5, "momentum": 0.0}
    model = VectorModel([0.0])
    first, second = in_memory.start([model, VectorModel([0.0])], outer=outer, **QUICK)
    second.close()
    for _ in range(10):
        model.vector += 1.0
        first.step(1.0)
    assert model.vector == [5.0]


def test_a_node_that_resumes_where_its_peers_are_averages_with_them_as_before(in_memory):
    trained(in_memory, 2)
    kept = in_memory.nodes[1].state_dict()
    restart(in_memory, 1)
    in_memory.nodes[1].load_state_dict(kept)
    in_memory.models[1].vector[:] = 3.0
    step(in_memory, 1, 0, times=3)
    assert 1.0 < in_memory.vectors().min() < in_memory.vectors().max() < 3.0, "they average as before"


@pytest.mark.parametrize("method", METHODS)
def test_a_node_that_resumes_far_behind_its_peers_spoils_none_of_them(in_memory, method):
    old, ahead_updates = 30, 1000
    first, second = in_memory.start([VectorModel([0.0]), VectorModel([0.0])], method=method, **QUICK)
    for _ in range(old):
        for node, model in zip((first, second), list(in_memory.models), strict=True):
            model.vector += 1.0
            node.step(1.0)
    kept, vector = second.state_dict(), in_memory.models[1].vector.copy()
    second.close()
    for _ in range(ahead_updates):
        in_memory.models[0].vector += 1.0
        first.step(1.0)
    before = float(in_memory.models[0].vector[0])
    model = VectorModel(vector)
    second = in_memory.add("w2", model)
    second.load_state_dict(kept)
    for _ in range(20):
        model.vector += 1.0
        second.step(1.0)
        for _ in range(3):
            in_memory.models[0].vector += 1.0
            first.step(1.0)
    assert in_memory.models[0].vector[0] > before
    assert first.statistics().clock > ahead_updates
    assert model.vector[0] > before, "it has taken over its peer's model"


def test_a_whole_cluster_that_starts_at_once_becomes_one_lineage(cluster):
    cluster.start([VectorModel([float(value)]) for value in range(6)], **QUICK)
    cluster.step_all(25)
    assert len({node._boundary.state.lineage for node in cluster.nodes}) == 1
    assert np.ptp(cluster.vectors()) < 0.1
    assert max(cluster.vectors()) < 5.0
