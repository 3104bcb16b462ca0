"""Numbers that cannot be: of a peer that lies within the protocol, of your own rule or method, and of the own model."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

import numpy as np
import pytest

from dpwa.errors import ConfigError
from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome
from dpwa.methods.gosgd import GoSGD
from dpwa.methods.noloco import NoLoCo
from dpwa.snapshot.state import MAX_COUNTER, MAX_MASS, State
from support import Cluster, VectorModel, step_until, wait_until

MOST = float(MAX_COUNTER)
FLOW = {"flow_control": {"probe_s": 0.01, "probe_max_s": 0.02}}
HONEST = slice(0, 3)


def with_a_liar(cluster: Cluster, steps: int, **settings: object) -> None:
    """Three honest nodes and a fourth that says it is as old as can be, whatever it has blended."""
    nodes = cluster.start([VectorModel([float(value)]) for value in (1, 2, 3, 1000)], **FLOW, **settings)
    for _ in range(steps):
        for node in nodes[HONEST]:
            node.step(1.0)
        liar = nodes[3]
        liar._boundary.state = replace(liar._boundary.state, clock=MOST)
        liar.step(1.0)


# ---- What peers say --------------------------------------------------------------------------------------------------


def test_a_listed_peer_of_an_impossible_age_neither_moves_nor_splits_the_honest_nodes(cluster):
    with_a_liar(cluster, 40)
    honest = cluster.nodes[HONEST]
    assert sum(node.statistics().exchanges.get("protocol_error", 0) for node in honest) >= 1, "it was asked"
    assert max(node.statistics().clock for node in honest) < 100
    assert max(node.method.round for node in honest) <= 40
    assert np.ptp(cluster.vectors()[HONEST]) < 1e-3
    assert cluster.vectors()[HONEST].max() <= 3.0


def test_the_warning_names_the_peer_and_what_would_be_believed(cluster, caplog):
    with caplog.at_level(logging.WARNING):
        with_a_liar(cluster, 30)
    assert "peer w4: claims a clock of 9.0072e+15" in caplog.text


def test_a_round_beyond_reason_is_not_taken_over(in_memory):
    nodes = in_memory.start([VectorModel([0.0]) for _ in range(2)], method="dpsgd", **FLOW)
    nodes[1].method.round = MAX_COUNTER - 100
    in_memory.step_all(10)
    assert nodes[0].method.round == 10
    assert nodes[0].statistics().exchanges["protocol_error"] >= 1


def test_clocks_that_have_come_to_the_limit_stay_legal_and_exchanges_go_on(cluster):
    nodes = cluster.start([VectorModel([0.0]), VectorModel([4.0])], pull_probability=0.5, **FLOW)
    cluster.step_all(6)
    for _ in range(40):
        for node, behind in zip(nodes, (0.0, 100.0), strict=True):
            # As if the exchange under way had taken dozens of steps, each of which counts, beside the peer's lead.
            clock = node._boundary.state.clock
            node._boundary.state = replace(node._boundary.state, clock=max(clock, MOST - behind) + 60.0)
            node._boundary.advance(1.0)
            node._boundary.publish_and_ask()
    assert all(node.statistics().clock == MOST for node in nodes)
    assert all(node.statistics().failures == 0 for node in nodes)
    assert np.ptp(cluster.vectors()) < 1e-3


def test_masses_and_rounds_stop_at_what_may_be_sent(in_memory):
    (node,) = in_memory.start([VectorModel([0.0])], method="gosgd")
    method = node.method
    assert isinstance(method, GoSGD)
    for _ in range(3):
        pushed = ExchangeResult(Outcome.BLENDED, ExchangeKind.PUSH, weight=MAX_MASS)
        assert 0.0 <= method.blend(pushed, State(None, 1.0)) <= 1.0
    assert method.mass == MAX_MASS
    method.round = MAX_COUNTER
    method.advance()
    assert method.round == MAX_COUNTER


def test_the_round_of_noloco_stops_at_what_may_be_sent(in_memory):
    in_memory.start([VectorModel([0.0]), VectorModel([4.0])], method="noloco", noloco={"every": 1})
    for node in in_memory.nodes:
        assert isinstance(node.method, NoLoCo)
        node.method.round = MAX_COUNTER
        node._boundary.state = replace(node._boundary.state, round=MAX_COUNTER)
    in_memory.step_all(8)
    assert all(node.statistics().method["outer_steps"] >= 1 for node in in_memory.nodes)
    assert all(node.method.round == MAX_COUNTER for node in in_memory.nodes)


def test_a_snapshot_that_was_blended_is_not_blended_again_by_a_peer_that_repeats_it(in_memory):
    first, liar = in_memory.start([VectorModel([0.0]), VectorModel([4.0])], constant={"value": 0.5}, **FLOW)
    in_memory.step_all(4)
    old = liar._service.serving.snapshot
    in_memory.step_all(3)
    blended, before = first.statistics().blended, in_memory.models[0].vector.copy()
    in_memory.models[0].vector[:] = before = np.array([50.0])
    for _ in range(20):
        liar._service.tell(snapshot=old)
        first.step(1.0)
    assert first.statistics().exchanges["protocol_error"] >= 1
    assert first.statistics().blended <= blended + 1, "but for the one that was under way"
    assert in_memory.models[0].vector[0] > before[0] / 2 - 3


def test_a_life_of_a_peer_that_was_replaced_does_not_come_back(in_memory):
    first, liar = in_memory.start([VectorModel([0.0]), VectorModel([4.0])], **FLOW)
    lives = [bytes([life]) * 8 for life in (1, 2)]
    for step in range(40):
        liar._service._incarnation = lives[step % 2]
        liar.step(1.0)
        first.step(1.0)
    exchanges = first.statistics().exchanges
    assert exchanges["protocol_error"] >= 1
    known = first._parts.wiring.exchanger.context.fetcher.history._given["w2"]
    assert len(known.former) == 1
    liar._service._incarnation = known.incarnation
    blended = first.statistics().blended
    wait_until(lambda: in_memory.step_all() or first.statistics().blended > blended + 3, "the present life is heard")


# ---- The own model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pull", "adpsgd", "dpsgd"])
def test_a_node_whose_own_weights_are_nan_blames_no_peer_and_is_told_once_which_tensor(cluster, caplog, method):
    cluster.start([VectorModel([1.0, 2.0], "head"), VectorModel([1.0, 2.0], "head")], method=method, **FLOW)
    cluster.step_all(4)
    sick = cluster.nodes[0]
    cluster.models[0].vector[1] = np.nan
    before = dict(sick.statistics().scores), sick.statistics().failures

    def has_been_told() -> bool:
        cluster.nodes[1].step(1.0)
        return sick.statistics().exchanges.get("own_not_finite", 0) >= 3

    with caplog.at_level(logging.WARNING):
        step_until(sick, has_been_told, "it is told that its own model is not finite")
    assert all(score >= before[0][peer] for peer, score in sick.statistics().scores.items())
    assert sick.statistics().failures == before[1]
    told = [record.message for record in caplog.records if "its own model holds NaN" in record.message]
    assert len(told) == 1
    assert "node w1" in told[0]
    assert "first in head" in told[0]
    assert list(cluster.models[1].vector) == [1.0, 2.0]


def test_a_rejected_snapshot_names_the_first_tensor_that_is_not_finite(cluster, caplog):
    cluster.start([VectorModel([1.0, 2.0], "head"), VectorModel([1.0, np.inf], "head")], **FLOW)
    with caplog.at_level(logging.WARNING):
        wait_until(
            lambda: cluster.step_all() or cluster.nodes[0].statistics().exchanges.get("rejected", 0) >= 1, "a rejection"
        )
    assert "the snapshot of peer w2 holds NaN or infinite values, first in head" in caplog.text


# ---- Your own rules and methods --------------------------------------------------------------------------------------


OWN = """
import numpy as np
from dpwa.methods.base import Plan, ExchangeKind
from dpwa.methods.pull import Pull


class Raises:
    def factor(self, own, peer):
        raise KeyError("accuracy")


class RaisesInPlan(Pull):
    def plan(self, rng):
        raise RuntimeError("no such round")


class RaisesInBlend(Pull):
    def blend(self, result, own_state):
        raise KeyError("w9")


class NoFactor(Pull):
    def blend(self, result, own_state):
        return None


class AsksAStranger(Pull):
    def plan(self, rng):
        return Plan(ExchangeKind.PULL, peers={"w9": 1.0})


class WholeNumbers(Pull):
    mass = 1

    def advance(self):
        self.round = np.int64(self.round + 1)


class NoNumber(Pull):
    mass = float("nan")


class BelowNothing(Pull):
    mass = -1
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.seconds
@pytest.mark.usefixtures("own_code")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interpolation": "own_code:Raises"}, r"interpolation Raises of module own_code: .*KeyError\('accuracy'\)"),
        ({"method": "own_code:RaisesInPlan"}, r"RaisesInPlan.* of module own_code: plan raised .*no such round"),
        ({"method": "own_code:RaisesInBlend"}, r"RaisesInBlend.* of module own_code: blend raised KeyError\('w9'\)"),
        ({"method": "own_code:NoFactor"}, r"NoFactor.*blend\(\) answered None: expected a finite number"),
        (
            {"method": "own_code:AsksAStranger"},
            r"AsksAStranger.*there is no peer 'w9' in the cluster file.*peers are w[12]",
        ),
        ({"method": "own_code:NoNumber"}, r"NoNumber.*mass: expected a number from 0 to 1\.04858e\+06, got nan"),
        ({"method": "own_code:BelowNothing"}, r"BelowNothing.*mass: expected a number from 0 .*got -1"),
    ],
)
def test_a_mistake_in_your_own_rule_or_method_is_a_config_error_that_names_it(cluster, settings, words):
    nodes = cluster.start([VectorModel([0.0]), VectorModel([4.0])], **FLOW, **settings)

    def step_and_fail() -> bool:
        for node in nodes:
            node.step(1.0)
        return False

    with pytest.raises(ConfigError, match=words) as raised:
        wait_until(step_and_fail, "an error")
    assert "report it" not in str(raised.value)
    for node in nodes:
        with contextlib.suppress(ConfigError):  # once more, if it came from a background thread
            node.close()


@pytest.mark.usefixtures("own_code")
def test_whole_numbers_of_your_own_method_travel_as_what_peers_expect(cluster):
    cluster.start([VectorModel([0.0]), VectorModel([4.0])], method="own_code:WholeNumbers", **FLOW)
    wait_until(lambda: cluster.step_all() or all(node.statistics().blended >= 3 for node in cluster.nodes), "exchanges")
    assert sum(node.statistics().failures for node in cluster.nodes) == 0


# ---- Waiting ---------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_its_exchange_once_however_many_of_peers_come_meanwhile(in_memory, monkeypatch):
    now_s = [0.0]
    first, _ = in_memory.start([VectorModel([0.0]), VectorModel([4.0])], wait_ms=100)
    boundary = first._boundary
    monkeypatch.setattr(boundary, "_monotonic_s", lambda: now_s[0])
    peers = iter([ExchangeResult(Outcome.TOLD, None, None, "w2")] * 10)

    def take(wait_s: float) -> ExchangeResult | None:
        passed_s = min(wait_s, 0.04)
        now_s[0] += passed_s
        return next(peers, None) if passed_s > 0 else None

    monkeypatch.setattr(boundary._transport, "take", take)
    first.step(1.0)
    assert boundary.in_flight
    first.step(1.0)
    assert now_s[0] == pytest.approx(0.1)
