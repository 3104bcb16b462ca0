"""A pair whose peer vanishes between its decision and its word: this node's half is late, and not lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scheduled_network import Fate, Life, ScheduledCluster

from dpwa.errors import PeerUnreachable
from dpwa.exchange.messages import Propose, Settle, Verdict
from dpwa.methods.exchange import NO_EXCHANGE
from support import VectorModel

START = [np.zeros(4), np.full(4, 8.0), np.full(4, 4.0)]


@pytest.fixture
def cut(in_memory, monkeypatch):
    """Names of nodes whose words about their pairs get lost on the way, after they have acted on the question."""
    names: set[str] = set()
    request = in_memory.network.request

    def lose_words(peer, message):
        answer = request(peer, message)
        if peer in names and isinstance(message, Settle) and message.exchange_id != NO_EXCHANGE:
            raise PeerUnreachable(peer, "cut off by the test")
        return answer

    monkeypatch.setattr(in_memory.network, "request", lose_words)
    return names


def _lost(cluster) -> int:
    return sum(node.statistics().exchanges.get("lost", 0) for node in cluster.nodes)


def _begin(cluster, start=START, **settings) -> None:
    cluster.start([VectorModel(vector) for vector in start], method="adpsgd", **settings)
    for node in cluster.nodes:
        node.method.probability = 0.0
    cluster.step_all(6)  # all have joined
    np.testing.assert_array_equal(cluster.vectors(), start)


def _lose_one(cluster, cut) -> None:
    """The first node proposes to one of the others, who moves; the first does not hear of it."""
    cut.update(("w2", "w3"))
    cluster.nodes[0].method.probability = 1.0
    cluster.nodes[0].step(1.0)
    cluster.nodes[0].method.probability = 0.0
    cluster.step_all()
    assert _lost(cluster) == 1, "the fault happened"
    assert cluster.vectors()[0] == pytest.approx(START[0]), "without its peer's word it has not moved"
    assert np.mean(cluster.vectors()) < np.mean(START), "the peer has"


def test_the_half_is_applied_when_the_peer_is_back_and_the_mean_is_made_good(in_memory, cut):
    _begin(in_memory)
    _lose_one(in_memory, cut)
    in_memory.step_all(3)
    assert np.mean(in_memory.vectors()) < np.mean(START), "still cut off"
    cut.clear()
    in_memory.step_all(3)
    assert in_memory.vectors().mean(axis=0) == pytest.approx(np.mean(START, axis=0))
    assert in_memory.vectors()[0].max() > 0


def test_the_node_goes_on_with_others_meanwhile_and_leaves_its_creditor_alone(in_memory, cut):
    _begin(in_memory)
    _lose_one(in_memory, cut)
    first = in_memory.nodes[0]
    creditor = next(
        name for name in ("w2", "w3") if in_memory.vectors()[int(name[1]) - 1].max() != START[int(name[1]) - 1][0]
    )
    other = "w3" if creditor == "w2" else "w2"
    cut.remove(other)
    first.method.probability = 1.0
    in_memory.step_all(6)
    first.method.probability = 0.0
    in_memory.step_all(2)
    assert first.statistics().last_peer == other
    cut.clear()
    in_memory.step_all(3)
    assert in_memory.vectors().mean(axis=0) == pytest.approx(np.mean(START, axis=0))


def test_a_peer_that_comes_back_in_another_life_has_taken_its_half_with_it(in_memory, cut):
    _begin(in_memory)
    _lose_one(in_memory, cut)
    before = in_memory.models[0].vector.copy()
    for name in ("w2", "w3"):
        index = int(name[1]) - 1
        in_memory.nodes[index].close()
        in_memory.nodes[index] = in_memory.add(name, VectorModel(START[index]))
        in_memory.nodes.pop()
        in_memory.models[index] = in_memory.models.pop()
        in_memory.nodes[index].method.probability = 0.0
    cut.clear()
    in_memory.step_all(5)
    np.testing.assert_array_equal(in_memory.models[0].vector, before)


def _has_decided(life: Life, sent: Propose | Settle) -> bool:
    return isinstance(sent, Propose) and life.transport.service.proposals.verdict(sent) is Verdict.TAKEN


def test_the_half_is_kept_for_an_hour_and_no_longer():
    """It is as large as the model, and a peer that has gone for good would keep it for ever."""
    cluster = ScheduledCluster(np.array(START[:2]), method="adpsgd")
    try:
        cluster.set_probability(0.0)
        first, second = cluster.living
        cluster.step_all()
        cluster.network.sent.clear()
        first.node.method.probability = 1.0
        first.node.step(1.0)
        first.node.method.probability = 0.0
        working = itertools.cycle([first, second])
        while not any(_has_decided(second, sent) for _, sent in cluster.network.sent):
            if (life := next(working)).transport.has_work:
                life.transport.go_on(Fate.ARRIVES)
        first.transport.go_on(Fate.IS_LOST)  # its word, and with it
        cluster.end(1)
        began_s = cluster.network.now_s
        pairer = first.node._parts.wiring.exchanger._pairer

        def go_on_until(end_s: float) -> None:
            while cluster.network.now_s < end_s:
                cluster.network.now_s += 30.0
                cluster.run_all()
                first.node.step(1.0)

        go_on_until(began_s + 3500.0)
        assert pairer.creditor == "w2"
        assert first.node.statistics().exchanges["lost"] == 1
        go_on_until(began_s + 3800.0)
        assert pairer.creditor is None
        assert pairer.deadline_s is None
        assert first.node.statistics().exchanges["lost"] == 1, "it was counted when the peer vanished"
    finally:
        cluster.close()


def test_a_peer_that_was_not_asked_because_this_node_is_in_a_pair_is_no_healthier_for_it(in_memory, monkeypatch):
    _begin(in_memory, flow_control={"probe_s": 1e-6, "probe_max_s": 1e-6})
    node = in_memory.nodes[1]
    flow_control, asked = node._parts.context.flow_control, []
    in_memory.network.leave("w3")
    node.method.probability = 1.0
    while not flow_control.is_failing("w3"):
        node.step(1.0)
    request = in_memory.network.request
    monkeypatch.setattr(
        in_memory.network, "request", lambda peer, message: asked.append(message) or request(peer, message)
    )
    monkeypatch.setattr(node._parts.context.proposals, "address", lambda *_, **__: False)
    busy = node.statistics().exchanges.get("busy", 0)
    for _ in range(20):
        node.step(1.0)
    assert node.statistics().exchanges["busy"] > busy, "what was to happen did"
    assert not any(isinstance(message, Propose) for message in asked)
    assert flow_control.is_failing("w3")


def test_a_pull_that_finds_no_room_is_tried_again(in_memory):
    cluster = in_memory
    cluster.start([VectorModel(vector) for vector in START], method="gosgd")
    node = cluster.nodes[0]
    stagings = node._parts.context.stagings
    for staging in stagings:
        staging.is_free = False
    for index in (1, 2, 0, 0):
        cluster.nodes[index].step(1.0)
    assert node.statistics().exchanges.get("not_ready", 0) >= 1, "what was to happen did"
    for staging in stagings:
        staging.is_free = True
    cluster.step_all(6)
    assert node.statistics().exchanges["blended"] >= 1
