"""Local steps by speed, with nodes of unequal pace in virtual time: outer steps are made together, nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from method_support import anchors_with_momentum, settle

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.exchange.propose import Proposer
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.observe.bounded_file import read_records
from support import Cluster, VectorModel

pytestmark = pytest.mark.seconds

EVERY = 40
SLOW = (1, 1, 1, 4)
"""Ticks that a step of each node takes."""


def begin(cluster: Cluster, paces: Sequence[int], **settings: object) -> None:
    cluster.start([VectorModel(np.zeros(3)) for _ in paces], **settings)


def train(cluster: Cluster, paces: Sequence[int], ticks: int, gradients: np.ndarray | None = None) -> np.ndarray:
    """So many ticks; each node's step adds its own gradient, or 1. What each has added, shape (nodes, size)."""
    added = np.zeros(cluster.vectors().shape)
    for tick in range(ticks):
        for index, (node, pace) in enumerate(zip(cluster.nodes, paces, strict=True)):
            if tick % pace == 0:
                gradient = 1.0 if gradients is None else gradients[index]
                cluster.models[index].vector += gradient
                added[index] += gradient
                node.step(1.0)
    return added


def numbers(cluster: Cluster, key: str) -> list[float]:
    return [node.statistics().method[key] for node in cluster.nodes]


def in_vain(cluster: Cluster) -> int:
    """Steps in which a node that was ready found no partner, or one whose model was refused."""
    counts = [node.statistics().exchanges for node in cluster.nodes]
    return sum(count.get(outcome, 0) for count in counts for outcome in ("busy", "aborted", "rejected", "no_peer"))


@pytest.mark.parametrize("paces", [SLOW, (4, 1, 1, 1), (1, 2, 3, 4), (1, 1, 8, 8)])
def test_nodes_of_unequal_pace_make_their_outer_steps_together(in_memory, paces):
    begin(in_memory, paces, method="noloco", noloco={"every": EVERY, "by_speed": True})
    train(in_memory, paces, 25 * EVERY)
    made = numbers(in_memory, "outer_steps")
    assert 22 <= min(made) <= max(made) <= 28
    rounds = [node.method.round for node in in_memory.nodes]
    assert max(rounds) - min(rounds) <= 1
    assert numbers(in_memory, "local_steps") == pytest.approx([EVERY / pace for pace in paces], rel=0.2)
    assert in_vain(in_memory) <= 0.3 * sum(made)


def test_without_it_a_slow_node_finds_few_partners(in_memory):
    begin(in_memory, SLOW, method="noloco", noloco={"every": EVERY})
    train(in_memory, SLOW, 25 * EVERY)
    made = numbers(in_memory, "outer_steps")
    assert numbers(in_memory, "local_steps") == [EVERY] * 4
    assert made[3] <= 0.5 * 25


def test_equal_nodes_keep_every(in_memory):
    begin(in_memory, (1, 1, 1, 1), method="noloco", noloco={"every": EVERY, "by_speed": True})
    train(in_memory, (1, 1, 1, 1), 10 * EVERY)
    assert numbers(in_memory, "local_steps") == [EVERY] * 4
    assert numbers(in_memory, "outer_steps") == [10] * 4


@pytest.mark.parametrize("late", [(0, 0, 20, 20), (0, 10, 20, 30)])
def test_nodes_that_begin_one_after_the_other_all_meet_each_other(in_memory, tmp_path, late):
    """Else two that have met would be ready at the same moment for ever, and a cluster of four would be two of two."""
    in_memory.start([VectorModel(row) for row in np.eye(4)], run_dir=tmp_path, method="noloco", noloco={"every": EVERY})
    in_memory.step_all(3)  # they have joined
    for tick in range(12 * EVERY):
        for node, begins in zip(in_memory.nodes, late, strict=True):
            if tick >= begins:
                node.step(1.0)
    vectors = in_memory.vectors()
    in_memory.close()
    events = [(path.parent.name, read_records(path)) for path in tmp_path.glob("nodes/*/events.jsonl")]
    met = {frozenset((node, event["peer"])) for node, lines in events for event in lines if event.get("kind") == "pair"}
    assert len(met) == 6
    assert np.abs(vectors - vectors.mean(axis=0)).max() < 0.15  # 0.25 and more in fixed pairs


def gone_on(cluster: Cluster) -> np.ndarray:
    """How far each model is from its anchor: steps that went into no outer step yet; shape (nodes, size)."""
    anchors = np.stack([node.state_dict()["of_method"]["outer"]["anchor.0"] for node in cluster.nodes])
    return cluster.vectors() - anchors


def train_until_all_are_one(cluster: Cluster, gradients: np.ndarray) -> None:
    """Until all models are of one lineage: nobody takes over another's any more, and anchors move by pairs alone."""
    for _ in range(50):
        train(cluster, SLOW, EVERY, gradients)
        settle(cluster)
        boundaries = [node._boundary for node in cluster.nodes]
        if len({one.state.lineage for one in boundaries}) == 1 and not any(one.joining.is_on for one in boundaries):
            return
    pytest.fail("the nodes never became one cluster")


@pytest.mark.parametrize("by_speed", [True, False])
def test_each_local_step_of_each_node_moves_the_mean_by_the_same_amount_however_many_it_makes(in_memory, by_speed):
    """A pair moves the mean of phi + mu m / (1 - mu) by beta / (1 - mu) times its share of the mean D, exactly.

    So a node that makes fewer steps is not scaled up.
    """
    gradients = np.random.default_rng(3).normal(1.0, 0.3, size=(4, 3))
    begin(in_memory, SLOW, method="noloco", noloco={"every": EVERY, "by_speed": by_speed})
    train_until_all_are_one(in_memory, gradients)
    before, gone_on_before = anchors_with_momentum(in_memory), gone_on(in_memory)
    added = train(in_memory, SLOW, 15 * EVERY, gradients)
    settle(in_memory)
    options = in_memory.config.noloco
    spent = added - (gone_on(in_memory) - gone_on_before)
    expected = options.beta / (1 - options.momentum) * spent.mean(axis=0)
    np.testing.assert_allclose(anchors_with_momentum(in_memory) - before, expected, rtol=1e-9)


@pytest.mark.parametrize(("by_speed", "of_slow"), [(False, 2), (True, 10)])
def test_outer_momentum_of_a_slow_node_steps_as_often_as_that_of_the_others(in_memory, by_speed, of_slow):
    outer = {"every": EVERY, "learning_rate": 0.7, "momentum": 0.5, "by_speed": by_speed}
    begin(in_memory, SLOW, method="pull", pull_probability=0.2, outer=outer)
    train(in_memory, SLOW, 10 * EVERY)
    made = [int(node.state_dict()["of_outer"]["outer"]["steps"]) for node in in_memory.nodes]
    assert made[:3] == [10] * 3
    assert abs(made[3] - of_slow) <= 1


def test_a_node_that_is_slow_for_a_while_makes_fewer_steps_for_that_while(in_memory):
    begin(in_memory, SLOW, method="noloco", noloco={"every": EVERY, "by_speed": True})
    train(in_memory, SLOW, 10 * EVERY)
    assert numbers(in_memory, "local_steps")[3] == pytest.approx(EVERY / 4, rel=0.2)
    train(in_memory, (1, 1, 1, 1), 10 * EVERY)
    assert numbers(in_memory, "local_steps") == [EVERY] * 4


def test_when_the_fast_ones_have_gone_the_others_make_as_many_steps_as_they_did(in_memory):
    paces = (1, 4, 4)
    begin(in_memory, paces, method="noloco", noloco={"every": EVERY, "by_speed": True})
    train(in_memory, paces, 10 * EVERY)
    assert numbers(in_memory, "local_steps")[1:] == pytest.approx([EVERY / 4] * 2, rel=0.2)
    in_memory.nodes.pop(0).close()
    in_memory.models.pop(0)
    train(in_memory, paces[1:], 10 * EVERY)
    assert numbers(in_memory, "local_steps") == [EVERY] * 2


@pytest.mark.parametrize("by_speed", [True, False])
def test_questions_are_few_and_no_exchanges_and_nobody_asks_without_the_option(in_memory, monkeypatch, by_speed):
    asked: list[str] = []
    settle = Proposer.settle

    def counted(self, peer, exchange_id, *rest, **options):
        if exchange_id == NO_EXCHANGE:
            asked.append(peer)
        return settle(self, peer, exchange_id, *rest, **options)

    monkeypatch.setattr(Proposer, "settle", counted)
    begin(in_memory, (1, 1), method="noloco", noloco={"every": 80, "by_speed": by_speed})
    train(in_memory, (1, 1), 10 * 80)
    assert {outcome for node in in_memory.nodes for outcome in node.statistics().exchanges} == {"blended"}
    assert len(asked) <= 2 * 10 * 16
    assert bool(asked) == by_speed


def test_the_journal_says_when_the_speed_changes_and_who_is_faster(in_memory, tmp_path):
    in_memory.start(
        [VectorModel(np.zeros(3)) for _ in SLOW],
        run_dir=tmp_path,
        method="noloco",
        noloco={"every": EVERY, "by_speed": True},
    )
    train(in_memory, SLOW, 10 * EVERY)
    in_memory.close()
    events = list(read_records(tmp_path / "nodes" / "w4" / "events.jsonl"))
    (speed,) = [event for event in events if event["event"] == "speed"]
    assert speed["speed"] == pytest.approx(0.25, rel=0.2)
    assert speed["fastest"] in ("w1", "w2", "w3")


@pytest.mark.parametrize(("settings", "word"), [({"method": "noloco"}, "noloco"), ({}, "outer")])
def test_check_says_that_local_steps_go_by_speed(settings, word):
    with_it, without = (
        describe(ClusterConfig.for_localhost(2, **settings, **{word: {"every": 40, "by_speed": by_speed}}), ["w1"])
        for by_speed in (True, False)
    )
    assert "slower nodes fewer" in with_it
    assert "slower nodes fewer" not in without
