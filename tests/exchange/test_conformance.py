"""What every transport must do: one suite, run over the in-memory transport and over ZeroMQ."""

from __future__ import annotations

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import NodeClosed
from support import VectorModel, step_until

SIZES = [1, 1000, 300_000]  # the last takes five chunks


@pytest.mark.parametrize("size", SIZES)
def test_nodes_that_do_not_train_come_to_consensus(cluster, size):
    cluster.start([VectorModel(np.full(size, float(value))) for value in (0, 4)], constant={"value": 0.5})
    cluster.step_all(40)
    vectors = cluster.vectors()
    assert np.ptp(vectors, axis=0).max() < 1e-3
    assert vectors.min() > 0
    assert vectors.max() < 4


def test_a_blend_is_the_convex_combination_that_the_factor_says(cluster):
    first, _ = cluster.start([VectorModel([0.0, 8.0]), VectorModel([4.0, 0.0])], constant={"value": 0.25})
    step_until(first, lambda: first.statistics().exchanges.get("not_ready"), "the peer has published nothing yet")
    cluster.nodes[1].step(1.0)
    before = cluster.vectors()
    step_until(first, lambda: first.statistics().blended == 1, "first blend")
    assert cluster.models[0].vector == pytest.approx(0.75 * before[0] + 0.25 * before[1])


def test_state_travels_with_the_snapshot(cluster):
    nodes = cluster.start([VectorModel([0.0]), VectorModel([0.0])], interpolation="loss")
    for _ in range(10):
        nodes[0].step(3.0)
        nodes[1].step(1.0)
    assert nodes[0].statistics().last_factor == pytest.approx(0.75)
    assert nodes[1].statistics().last_factor == pytest.approx(0.25)
    assert nodes[0].statistics().clock == pytest.approx(10, abs=3)


def test_the_same_snapshot_is_not_blended_twice(cluster):
    first, second = cluster.start([VectorModel([0.0]), VectorModel([4.0])])
    cluster.step_all(5)
    empty = _empty_answers(first)
    # The first of two may answer an ask from before the peer's last step.
    step_until(first, lambda: _empty_answers(first) >= empty + 2, "two answers without a snapshot")
    settled = cluster.models[0].vector.copy()
    blended = first.statistics().blended
    for _ in range(5):
        first.step(1.0)
    assert first.statistics().blended == blended
    assert cluster.models[0].vector == settled
    assert second.statistics().failures == 0


def test_where_one_peer_has_nothing_new_another_is_asked_in_the_same_step(cluster):
    models = [VectorModel([0.0]), VectorModel([4.0]), VectorModel([8.0])]
    first, _, trains = cluster.start(models, timeout_ms=5000)  # a peer that is given up is not asked for a while
    cluster.step_all(5)
    for _ in range(120):
        trains.step(1.0)
        first.step(1.0)
    done = first.statistics()
    # Over sockets a pull may come before the snapshot of the step; half of all would if nobody else was asked.
    assert done.step - done.blended < 36, done.exchanges


def test_a_pull_that_brought_nothing_new_is_made_up_for(in_memory):
    first, second = in_memory.start([VectorModel([0.0]), VectorModel([4.0])], pull_probability=0.2)
    for step in range(2000):
        first.step(1.0)
        if step % 3 == 0:
            second.step(1.0)
    done = first.statistics()
    assert _empty_answers(first) > 50, "it has asked between two steps of its peer"
    assert done.completed == pytest.approx(0.2 * done.step, rel=0.1)


def _empty_answers(node):
    return node.statistics().exchanges.get("not_modified", 0)


def test_another_layout_is_refused_with_the_first_differing_tensor_and_never_blended(cluster, caplog):
    models = [VectorModel([1.0, 2.0], name="weight"), VectorModel([3.0, 4.0, 5.0], name="weight")]
    first, _ = cluster.start(models)
    cluster.step_all(3)
    step_until(first, lambda: first.statistics().exchanges.get("mismatch", 0) >= 1, "a refusal")
    assert [list(model.vector) for model in models] == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert "weight float64 [2] parameter here, weight float64 [3] parameter there" in caplog.text


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_snapshot_that_is_not_finite_leaves_the_own_model_bit_identical(cluster, poison):
    healthy, sick = VectorModel([1.0, 2.0, 3.0]), VectorModel([1.0, poison, 3.0])
    first, _ = cluster.start([healthy, sick])
    cluster.step_all(3)
    step_until(first, lambda: first.statistics().exchanges.get("rejected", 0) >= 1, "a rejection")
    assert list(healthy.vector) == [1.0, 2.0, 3.0]
    assert first.statistics().blended == 0


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_peer_that_reports_a_diverged_loss_gets_no_share(cluster, loss):
    nodes = cluster.start([VectorModel([1.0]), VectorModel([9.0])], factor_min=0.3)
    for _ in range(6):
        nodes[0].step(1.0)
        nodes[1].step(loss)
    assert nodes[0].statistics().last_factor == 0
    assert cluster.models[0].vector == [1.0]


def test_nodes_of_another_run_are_refused(cluster):
    models = [VectorModel([1.0]), VectorModel([2.0])]
    first, _ = cluster.start(models)
    other = ClusterConfig.from_text(cluster.config.to_yaml().replace("run: dpwa", "run: another"))
    cluster.nodes[1].close()
    cluster.add("w2", models[1], config=other)
    for _ in range(3):
        cluster.nodes[2].step(1.0)
    step_until(first, lambda: first.statistics().exchanges.get("refused", 0) >= 1, "a refusal")
    assert first.statistics().blended == 0


def test_training_goes_on_without_peers_and_finds_them_when_they_come(cluster):
    model = VectorModel([0.0])
    config = {"flow_control": {"probe_s": 0.05, "probe_max_s": 0.1}, "connect_timeout_ms": 50}
    (first, second) = cluster.start([model, VectorModel([4.0])], **config)
    second.close()
    step_until(first, lambda: first.statistics().exchanges.get("unreachable", 0) >= 1, "the peer is missed")
    assert first.statistics().step > 0
    returned = cluster.add("w2", VectorModel([4.0]))
    del cluster.nodes[1], cluster.models[1]

    def met() -> bool:
        returned.step(1.0)
        return first.statistics().blended > 0

    step_until(first, met, "the returned peer is found")


@pytest.mark.seconds
def test_a_node_that_joins_late_takes_the_trained_model_and_spreads_nothing_untrained(cluster):
    models = [VectorModel([0.0]), VectorModel([0.0])]
    cluster.start([*models, VectorModel([100.0])])
    cluster.nodes.pop().close()
    cluster.models.pop()
    # Both train to 7 and are far ahead when the third comes, with a model that is far off.
    cluster.step_all(60, update=lambda _, model: model.vector.__setitem__(0, 7.0))
    late = VectorModel([100.0])
    newcomer = cluster.add("w3", late)

    def joined() -> bool:
        for node in cluster.nodes[:2]:
            node.step(1.0)
        return newcomer.statistics().blended > 0

    step_until(newcomer, joined, "the newcomer's first blend")
    assert late.vector == pytest.approx([7.0])
    assert newcomer.statistics().clock > 50
    cluster.step_all(20)
    assert cluster.vectors().ravel() == pytest.approx(7.0)


def test_a_closed_node_says_so(cluster):
    (node, _) = cluster.start([VectorModel([0.0]), VectorModel([0.0])])
    node.close()
    node.close()
    with pytest.raises(NodeClosed, match="w1 is closed"):
        node.step(1.0)
    with pytest.raises(NodeClosed):
        node.start()
    assert node.statistics().step == 0


def test_a_node_alone_trains_and_finishes_at_once(cluster):
    (node,) = cluster.start([VectorModel([1.0])])
    for _ in range(3):
        node.step(0.5)
    assert node.finish(timeout_s=5.0)
    assert node.statistics().step == 3
    assert node.statistics().exchanges == {}


def test_pull_probability_zero_never_asks_after_joining(cluster):
    nodes = cluster.start([VectorModel([0.0]), VectorModel([4.0])], pull_probability=0.0)
    cluster.step_all(20)
    assert all(sum(node.statistics().exchanges.values()) <= 2 for node in nodes)
