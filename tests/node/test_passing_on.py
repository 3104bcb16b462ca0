"""A node that has finished passes on what those that train push to it: a push for a push."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import pytest
from test_finish import Finishing

from dpwa.errors import ConfigError
from dpwa.methods.base import ExchangeKind, Plan
from dpwa.methods.gosgd import GoSGD
from dpwa.node.node import Node
from support import Cluster, VectorModel, step_until, wait_until

METHODS = ["gosgd", "sgp"]
MET = 5


def met(cluster: Cluster, count: int, method: object, **settings: object) -> list[Node]:
    """Nodes that have joined each other, and have pushed."""
    models = [VectorModel([float(index)]) for index in range(count)]
    nodes = cluster.start(models, method=method, pull_probability=1.0, **settings)
    cluster.step_all(MET)
    return nodes


def mass_of(nodes: Sequence[Node]) -> float:
    """All that there is, once nothing is on its way."""
    for node in nodes:
        node._boundary.collect(0.0)
    assert [node.statistics().method["mass_under_way"] for node in nodes] == [0.0] * len(nodes)
    return sum(node.method.mass for node in nodes)


def given(node: Node) -> int:
    """How many pushes of a node were taken."""
    return node.statistics().exchanges.get("pushed", 0)


def train_last(nodes: Sequence[Node], steps: int) -> None:
    """All but the first have finished; it makes so many steps, and each of the others a turn after each of them."""
    last, *others = nodes
    turns: list[Generator[None, None, bool]] = [node.finishing() for node in others]
    for _ in range(steps):
        last.step(1.0)
        for turn in turns:
            next(turn)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_node_that_trains_is_given_as_much_as_it_gives(in_memory, method):
    nodes = met(in_memory, 3, method)
    total, taken = mass_of(nodes), nodes[0].statistics().blended
    train_last(nodes, 100)
    assert mass_of(nodes) == pytest.approx(total, rel=1e-12)
    assert nodes[0].method.mass > 0.05 * total  # a half for each of 100 pushes would leave 2^-100
    assert nodes[0].statistics().blended - taken > 60


@pytest.mark.parametrize("method", METHODS)
def test_what_the_last_node_trains_reaches_those_that_have_finished(in_memory, method):
    nodes = met(in_memory, 3, method, **({"sgp": {"debias": False}} if method == "sgp" else {}))
    last, *others = nodes
    turns = [node.finishing() for node in others]
    for _ in range(200):
        in_memory.models[0].vector += 1.0
        last.step(1.0)
        for turn in turns:
            next(turn)
    # The mean by mass of all rises by the share of mass that the last one has, about a third, in each step. Without
    # mass it would rise by nothing.
    assert min(in_memory.vectors()[1:]) > 20.0


def test_each_push_is_passed_on_once_and_nothing_is_begun_without_one(in_memory):
    nodes = met(in_memory, 3, "gosgd")
    last, *others = nodes
    turns = [node.finishing() for node in others]
    before = sum(map(given, others))
    for _ in range(20):
        for turn in turns:
            next(turn)
    first = sum(map(given, others))
    assert first - before <= 3  # of what came while they finished
    came = given(last)
    for _ in range(30):
        last.step(1.0)
        for turn in turns:
            next(turn)
    for _ in range(10):
        for turn in turns:
            next(turn)
    came, passed = given(last) - came, sum(map(given, others)) - first
    assert came >= 25
    assert 0.8 * came <= passed <= came


def test_nothing_goes_to_those_that_have_finished(in_memory):
    nodes = met(in_memory, 4, "gosgd")
    blended = [node.statistics().blended for node in nodes]
    train_last(nodes, 60)
    gained = [node.statistics().blended - count for node, count in zip(nodes, blended, strict=True)]
    assert gained[0] > 40
    # They got what the last one gave, in 60 steps, and no more than a few from each other before all knew who trains.
    assert sum(gained[1:]) <= 60 + 2 * 3


def test_where_each_round_has_its_own_neighbour_the_one_that_trains_gets_its_turn(in_memory):
    topology = {"graph": "one_peer_exponential"}
    nodes = met(in_memory, 4, "sgp", topology=topology)
    total = mass_of(nodes)
    train_last(nodes, 100)
    assert nodes[0].method.mass > 0.05 * total
    assert mass_of(nodes) == pytest.approx(total, rel=1e-12)


def test_among_those_that_have_finished_nothing_goes_round_for_ever(in_memory):
    """With seven nodes, each has three neighbours in turn: by a fixed choice, what is passed on comes back to it."""
    nodes = met(in_memory, 7, "sgp", topology={"graph": "one_peer_exponential"})
    last, *others = nodes
    total, taken = mass_of(nodes), last.statistics().blended
    train_last(nodes, 100)
    assert last.statistics().blended - taken > 60
    assert last.method.mass > 0.02 * total
    turns = [node.finishing() for node in [last, *others]]
    for turn in turns:
        next(turn)
    pushed = sum(map(given, nodes))
    for _ in range(50):
        for turn in turns:
            next(turn, None)
    assert sum(map(given, nodes)) - pushed <= 7, "it has come to rest"
    assert mass_of(nodes) == pytest.approx(total, rel=1e-12)


def test_a_push_that_was_not_taken_is_made_again_after_a_pause(in_memory, monkeypatch):
    nodes = met(in_memory, 2, "gosgd")
    last, waiting = nodes
    turns = waiting.finishing()
    next(turns)
    last.step(1.0)
    service, taken = last._service, last.statistics().blended
    monkeypatch.setattr(service, "takes", lambda _peer: None)  # busy
    for _ in range(6):
        next(turns)
    busy = waiting.statistics().exchanges["busy"]
    assert busy == 1, "not at each turn"
    monkeypatch.setattr(service, "takes", lambda _peer: 1.0)
    wait_until(lambda: next(turns) is None and last._boundary.collect(0.0) is None and came(last) > taken, "it came")
    assert waiting.statistics().exchanges["busy"] == busy
    assert mass_of(nodes) == pytest.approx(1.0, rel=1e-12)


def came(node: Node) -> int:
    return node.statistics().blended


def test_what_is_left_when_the_model_is_let_be_for_a_merge_is_passed_on_no_more(in_memory, monkeypatch):
    waits, other = met(in_memory, 2, "gosgd")
    turns = [node.finishing(merge=True) for node in (other, waits)]
    for _ in range(50):
        for turn in turns:
            next(turn, None)
        if waits._boundary.merging.is_frozen:
            break
        waits._boundary._planner.took_pushes(1)  # in the last moment
    assert waits._boundary.merging.is_frozen
    monkeypatch.setattr(waits._boundary.farewell, "waited_for", lambda _now_s: ["w2"])  # it trains again
    assert not waits._boundary._planner.has_to_pass_on


def test_what_is_pushed_to_one_that_has_left_finish_stays_with_those_that_train(in_memory):
    last, left = met(in_memory, 2, "gosgd")
    assert mass_of([last, left]) == pytest.approx(1.0)
    assert left.finish(timeout_s=0.0) is False
    for _ in range(10):
        last.step(1.0)
        left._transport.take(0.0)  # its threads still run, perhaps for as long as an evaluation takes
    last._boundary.collect(0.0)
    assert last.statistics().exchanges["not_ready"] >= 8
    assert last.method.mass + left.method.mass == pytest.approx(1.0, rel=1e-12)


def test_one_that_waits_does_not_spin(in_memory):
    nodes = met(in_memory, 2, "gosgd")
    waiting, turns, collect = nodes[1], [], nodes[1]._boundary.collect
    waiting._boundary.collect = lambda wait_s: (turns.append(wait_s), collect(wait_s))[1]
    assert waiting.finish(0.3) is False
    assert 2 <= len(turns) <= 20  # one in 20 ms


class KeepsAll(GoSGD):
    """A push method that passes nothing on."""

    def pass_on(self) -> Plan | None:
        return None


class Pulls(GoSGD):
    """One that answers with something else than a push."""

    def pass_on(self) -> Plan | None:
        return Plan(ExchangeKind.PULL)


class ToNobody(GoSGD):
    """One that names a node that there is not."""

    def pass_on(self) -> Plan | None:
        return Plan(ExchangeKind.PUSH, peers={"nobody": 1.0}, mass=0.1)


def test_a_custom_method_may_keep_what_it_is_given(in_memory):
    nodes = met(in_memory, 2, f"{__name__}:KeepsAll")
    train_last(nodes, 20)
    assert nodes[0].method.mass < 1e-4


@pytest.mark.parametrize(("method", "problem"), [("Pulls", "expected a push"), ("ToNobody", "no peer 'nobody'")])
def test_what_a_custom_method_passes_on_is_checked(in_memory, method, problem):
    nodes = met(in_memory, 2, f"{__name__}:{method}")
    with pytest.raises(ConfigError, match=rf"{method}.*pass_on\(\).*{problem}"):
        train_last(nodes, 5)


@pytest.mark.seconds
@pytest.mark.parametrize("method", METHODS)
def test_over_sockets_the_mass_is_among_all_when_the_last_one_ends(zeromq, method):
    nodes = met(zeromq, 3, method)
    total = nodes[0].method.total_mass
    last = nodes[0]
    finishing = [Finishing(node) for node in nodes[1:]]
    wait_until(lambda: all(node._service.serving.finished for node in nodes[1:]), "two have finished")
    before = last.statistics().blended
    step_until(last, lambda: last.statistics().blended >= before + 30, "30 pushes came back")
    assert last.finish()
    assert all(one.ended() for one in finishing)
    statistics = [node.statistics().method for node in nodes]
    assert [one["mass_under_way"] for one in statistics] == [0.0] * 3
    assert [one["mass_lost"] for one in statistics] == [0.0] * 3
    assert sum(one["mass"] for one in statistics) == pytest.approx(total, rel=1e-9)


@pytest.mark.seconds
@pytest.mark.parametrize("count", [2, 3])
def test_nobody_leaves_while_it_takes_the_last_push_of_the_last_one(zeromq, count):
    base = np.arange(125_000.0)
    nodes = zeromq.start(
        [VectorModel(base) for _ in range(count)], method="gosgd", pull_probability=1.0, wait_ms=2000,
        shared_memory="off", codec="raw", timeout_ms=1000, faults={"bandwidth": "4 MB/s"},
    )  # fmt: skip
    last, *others = nodes
    wait_until(lambda: zeromq.step_all() or all(came(node) > 1 for node in nodes), "all have pushed")
    finishing = [Finishing(node) for node in others]
    before = came(last)
    step_until(last, lambda: came(last) > before, "they pass on")
    last.step(1.0)
    assert last._boundary.in_flight, "it has just begun a push"
    ended = Finishing(last)
    for one in finishing:
        assert one.ended()
        one.node.close()
    assert ended.ended()
    statistics = [node.statistics().method for node in nodes]
    assert [one["mass_lost"] for one in statistics] == [0.0] * count
    assert [one["mass_under_way"] for one in statistics] == [0.0] * count
    assert sum(one["mass"] for one in statistics) == pytest.approx(1.0, rel=1e-9)
    assert [node.statistics().exchanges.get("lost", 0) for node in nodes] == [0] * count


@pytest.mark.seconds
def test_the_one_that_waits_leaves_a_dead_trainer_and_keeps_its_mass(zeromq, monkeypatch):
    monkeypatch.setattr("dpwa.node.farewell.SILENT_S", 0.3)
    nodes = met(zeromq, 2, "gosgd", timeout_ms=300, connect_timeout_ms=100)
    last, waiting = nodes
    finishing = Finishing(waiting)
    wait_until(lambda: waiting._service.serving.finished, "it has finished")
    before = last.statistics().blended
    step_until(last, lambda: last.statistics().blended >= before + 3, "pushes came back")
    last.close()
    assert finishing.ended() is False
    method = waiting.statistics().method
    assert method["mass_under_way"] == 0.0
    assert 0.0 < method["mass"] + method["mass_lost"] <= 1.0 + 1e-9
