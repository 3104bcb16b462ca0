"""Strangers who know everything but the nodes' addresses to answer at: they speak in the names of peers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq
from fake_peers import pull_of
from method_support import counted, masses, settle, weighted_sum

from dpwa.exchange import messages
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.node.node import Node
from dpwa.transport.wire import decode, encode
from support import DEADLINE_S, Cluster, VectorModel, step_until, wait_until

pytestmark = pytest.mark.seconds

SIZE = 16


class Strangers:
    """One connection to each node; what comes back is counted by the kind of message."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.answers: Counter[str] = Counter()
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket] = {}
        for node in nodes:
            self._sockets[node.name] = made = self._context.socket(zmq.DEALER)
            made.setsockopt(zmq.LINGER, 0)
            made.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
            made.connect(f"tcp://127.0.0.1:{node.config.node(node.name).port}")

    def say(self, to: Node, message: messages.Message) -> None:
        """Send, and look at the answers that have come."""
        made = self._sockets[to.name]
        with contextlib.suppress(zmq.Again):
            made.send(encode(message), zmq.NOBLOCK)
        with contextlib.suppress(zmq.Again):
            while True:
                self._count(made.recv_multipart(zmq.NOBLOCK))

    def ask(self, to: Node, message: messages.Message) -> messages.Message:
        """Send, and wait for the answer."""
        made = self._sockets[to.name]
        made.send(encode(message))
        return self._count(made.recv_multipart())

    def close(self) -> None:
        for made in self._sockets.values():
            made.close()
        self._context.term()

    def _count(self, frames: list[bytes]) -> messages.Message:
        answer = decode(frames[0], "node")
        self.answers[type(answer).__name__] += 1
        return answer


@contextlib.contextmanager
def attack(nodes: list[Node], forge: Callable[[Node, Node, int], messages.Message]) -> Iterator[Strangers]:
    """Meanwhile strangers send 300 messages a second, to each node in the name of each other one in turn."""
    strangers, ended = Strangers(nodes), threading.Event()

    def run() -> None:
        for number, (to, by) in enumerate(itertools.cycle(itertools.permutations(nodes, 2)), 1):
            if ended.wait(1 / 300):
                return
            strangers.say(to, forge(to, by, number))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield strangers
    finally:
        ended.set()
        thread.join(DEADLINE_S)
        strangers.close()


def propose_as(by: Node, exchange_id: bytes, incarnation: bytes, **changed) -> messages.Propose:
    fields = {
        "nonce": 1,
        "run": by.config.run_id,
        "node": by.name,
        "incarnation": incarnation,
        "fingerprint": by._model.layout.fingerprint,
        "exchange_id": exchange_id,
        "is_pair": by.config.method == "adpsgd",
        "mass": 0.5,
        "clock": 1.0,
        "loss": None,
        "round": 0,
        "piece": 0,
        "pieces": 0,
    }
    return messages.Propose(**{**fields, **changed})


def settle_as(by: Node, exchange_id: bytes = NO_EXCHANGE, **changed) -> messages.Settle:
    fields = {
        "nonce": 1,
        "run": by.config.run_id,
        "node": by.name,
        "incarnation": by._incarnation,
        "exchange_id": exchange_id,
        "gives_up": False,
        "finished": False,
    }
    return messages.Settle(**{**fields, **changed})


def _highest_number(_: Node, by: Node, number: int) -> messages.Message:
    return propose_as(
        by, by._incarnation + number.to_bytes(8, "big", signed=False)[4:].rjust(8, b"\xff"), by._incarnation
    )


def _random_lives(_: Node, by: Node, __: int) -> messages.Message:
    life = secrets.token_bytes(8)
    return propose_as(by, life + secrets.token_bytes(8), life)


def _newest_snapshot(_: Node, by: Node, __: int) -> messages.Message:
    return propose_as(by, NO_EXCHANGE, bytes(8))


def _gives_up(_: Node, by: Node, number: int) -> messages.Message:
    """The number of the proposal under way, or of the next one; what stands behind it nobody can know."""
    count = by._parts.context.proposals._count + number // 12 % 2
    random_bytes = 4 * (number // 24 % 2)
    exchange_id = by._incarnation + count.to_bytes(8 - random_bytes, "big") + secrets.token_bytes(random_bytes)
    return settle_as(by, exchange_id, gives_up=True)


_FORGERIES = {
    "the highest number": _highest_number,
    "lives that never were": _random_lives,
    "the newest snapshot": _newest_snapshot,
    "giving up what is under way": _gives_up,
}


def success(cluster: Cluster, outcome: str, each_round: Callable[[], object] = lambda: None) -> float:
    """Which share of 80 exchanges ends as it should, while all nodes train; something else happens in each round.

    A share and no rate: how fast all this goes is the machine's business.
    """

    def ended() -> Counter[str]:
        return sum((Counter(node.statistics().exchanges) for node in cluster.nodes), Counter())

    before, seen = ended(), Counter[str]()

    def enough() -> bool:
        cluster.step_all()
        each_round()
        seen.clear()
        seen.update(ended() - before)
        return seen.total() >= 80

    wait_until(enough, "exchanges end", 4 * DEADLINE_S)
    return seen[outcome] / seen.total()


@pytest.mark.parametrize("forgery", _FORGERIES)
@pytest.mark.parametrize(("method", "outcome"), [("gosgd", "pushed"), ("adpsgd", "blended")])
def test_forged_proposals_change_no_mass_and_no_mean_and_stop_neither_pushes_nor_pairs(
    zeromq, method, outcome, forgery
):
    start = np.random.default_rng(0).normal(size=(4, SIZE))
    nodes = zeromq.start([VectorModel(row) for row in start], method=method, pull_probability=0.5, wait_ms=0)

    def have_met() -> bool:
        zeromq.step_all()
        return all(node.statistics().exchanges.get(outcome, 0) >= 3 for node in nodes)

    wait_until(have_met, "all exchange")
    before = success(zeromq, outcome)
    directions, numbers = itertools.cycle(itertools.permutations(nodes, 2)), itertools.count(1)
    with contextlib.closing(Strangers(nodes)) as strangers:

        def forge() -> None:
            for to, by in itertools.islice(directions, 24):
                strangers.say(to, _FORGERIES[forgery](to, by, next(numbers)))

        wait_until(lambda: forge() or strangers.answers.total() >= 12, "the strangers are heard")
        assert success(zeromq, outcome, forge) >= before / 2
        assert strangers.answers.total() > 80
    assert counted(zeromq, "lost") == 0
    settle(zeromq) if method == "gosgd" else settle(zeromq, 0.0)
    if method == "gosgd":
        assert masses(zeromq).sum() == pytest.approx(1.0, abs=1e-9)
        assert weighted_sum(zeromq) == pytest.approx(start.mean(axis=0), abs=1e-9)
    else:
        assert zeromq.vectors().mean(axis=0) == pytest.approx(start.mean(axis=0), abs=1e-9)


def test_a_cluster_that_starts_amid_forged_proposals_gets_to_know_its_peers_all_the_same(zeromq):
    start = np.random.default_rng(0).normal(size=(4, SIZE))
    nodes = zeromq.start([VectorModel(row) for row in start], method="gosgd", wait_ms=0)

    def have_pushed_to_all() -> bool:
        zeromq.step_all()
        return all(
            node._parts.context.proposals.proof_for(peer.name) != NO_EXCHANGE
            for node, peer in itertools.permutations(nodes, 2)
        )

    with attack(nodes, _random_lives) as strangers:
        wait_until(have_pushed_to_all, "every node has pushed to every other one")
        assert strangers.answers["Accepted"] > 0
    settle(zeromq)
    assert masses(zeromq).sum() == pytest.approx(1.0, abs=1e-9)


# --- What requests say of their senders -------------------------------------------------------------------------------


def finishing(nodes: list[Node], timeout_s: float = DEADLINE_S) -> tuple[list[threading.Thread], dict[str, bool]]:
    """Have nodes finish, each in a thread of its own; their answers as they come."""
    answers: dict[str, bool] = {}

    def finish(node: Node) -> None:
        answers[node.name] = node.finish(timeout_s)

    threads = [threading.Thread(target=finish, args=[node], daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    return threads, answers


@pytest.fixture(params=["pull", "gosgd", "dpsgd"])
def training(request, zeromq) -> list[Node]:
    """Three nodes that have met."""
    nodes = zeromq.start([VectorModel([float(index)]) for index in range(3)], method=request.param, wait_ms=0)

    def have_met() -> bool:
        zeromq.step_all()
        return all(node.statistics().blended >= 2 for node in nodes)

    wait_until(have_met, "all exchange")
    return nodes


def test_a_node_that_finishes_does_not_take_a_strangers_word_that_its_peers_have_finished(training):
    first, *others = training
    with contextlib.closing(Strangers(training)) as strangers:
        threads, answers = finishing([first])
        for _ in range(50):
            for peer in others:
                answer = strangers.ask(first, settle_as(peer, finished=True))
                assert isinstance(answer, messages.Settled)
        for _ in range(20):
            for node in others:
                node.step(1.0)
        assert answers == {}
        assert not any(first._parts.context.membership[peer.name].finished for peer in others)
        more, theirs = finishing(others)
        for thread in (*threads, *more):
            thread.join(DEADLINE_S)
        assert {**answers, **theirs} == {"w1": True, "w2": True, "w3": True}


def test_a_stranger_cannot_keep_nodes_from_finishing(training):
    def still_training(_: Node, by: Node, __: int) -> messages.Message:
        return settle_as(by, incarnation=secrets.token_bytes(8), finished=False)

    with attack(training, still_training) as strangers:
        wait_until(lambda: strangers.answers["Settled"] > 10, "the stranger is heard")
        threads, answers = finishing(training)
        for thread in threads:
            thread.join(DEADLINE_S)
    assert answers == {"w1": True, "w2": True, "w3": True}


def test_nodes_that_finish_together_part_without_a_failure(training):
    before = [node.statistics() for node in training]
    threads, answers = finishing(training)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == {"w1": True, "w2": True, "w3": True}
    for node, earlier in zip(training, before, strict=True):
        exchanges = Counter(node.statistics().exchanges)
        exchanges.subtract(earlier.exchanges)
        assert exchanges["unreachable"] == exchanges["timed_out"] == exchanges["gone"] == 0


def test_a_dead_peer_that_a_stranger_calls_alive_is_not_asked_all_the_time(zeromq):
    models = [VectorModel([float(index)]) for index in range(3)]
    nodes = zeromq.start(models, wait_ms=0, connect_timeout_ms=100, flow_control={"probe_s": 60, "probe_max_s": 60})
    first, second, third = nodes
    zeromq.step_all(20)
    second.close()
    zeromq.nodes.remove(second)
    step_until(first, lambda: first.statistics().exchanges.get("unreachable", 0) >= 1, "it has failed")
    before, ended = first.statistics(), threading.Event()
    with contextlib.closing(Strangers([first, third])) as strangers:
        end_s = time.monotonic() + 2.0
        while time.monotonic() < end_s:
            life = secrets.token_bytes(8)
            strangers.say(first, settle_as(second, incarnation=life))
            first.step(1.0)
            third.step(1.0)
            ended.wait(0.01)
        assert strangers.answers["Settled"] > 50
    after = first.statistics()
    assert 1 <= after.exchanges["unreachable"] - before.exchanges["unreachable"] <= 2
    assert after.blended > before.blended


def test_a_peer_that_was_away_is_asked_again_as_soon_as_it_asks(zeromq, monkeypatch):
    """Its process was stopped, say, for so long that its next chance would come in a minute; it is the same life."""
    models = [VectorModel([0.0]), VectorModel([1.0])]
    first, second = zeromq.start(
        models, wait_ms=0, timeout_ms=200, flow_control={"probe_s": 60, "probe_max_s": 60}, connect_timeout_ms=100
    )
    zeromq.step_all(20)
    wait_until(lambda: (zeromq.step_all(), first.statistics().blended)[1] > 0, "they have met")
    is_back = threading.Event()
    answer = second._service.answer

    def stopped(*arguments, **named):
        is_back.wait(DEADLINE_S)
        return answer(*arguments, **named)

    monkeypatch.setattr(second._service, "answer", stopped)
    step_until(first, lambda: first.statistics().exchanges.get("timed_out", 0) >= 1, "it has failed")
    is_back.set()
    began_s, blended = time.monotonic(), first.statistics().blended
    wait_until(lambda: (zeromq.step_all(), first.statistics().blended)[1] > blended, "it is asked again")
    # At once; or 5 s later, if it asked while it was still away and that chance was spent. Never after a minute.
    assert time.monotonic() - began_s < 8.0


# --- What strangers are told ------------------------------------------------------------------------------------------


def test_one_who_does_not_know_the_run_is_told_nothing(zeromq):
    (node,) = zeromq.start([VectorModel([1.0])] * 2, run="ours")[:1]
    of_another = {"run": "ours", "fingerprint": bytes(16)}
    with contextlib.closing(Strangers([node])) as strangers:
        requests = [
            pull_of(node, **of_another),
            dataclasses.replace(pull_of(node, **of_another), node="nobody"),
            propose_as(node, b"e" * 16, b"e" * 8, **{**of_another, "node": "w2"}),
            settle_as(node, run="ours", node="w2"),
        ]
        answers = [strangers.ask(node, request) for request in requests]
        told = strangers.ask(node, pull_of(node, fingerprint=bytes(16)))
    assert all(isinstance(answer, messages.Refused) for answer in answers)
    assert len({answer.reason for answer in answers}) == 1
    assert node.config.run_id not in answers[0].reason
    assert "all nodes need the same cluster file" in answers[0].reason
    assert isinstance(told, messages.Mismatch)
