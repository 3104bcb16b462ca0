"""`finish`: for whom a node stays when its training has ended, whom it leaves behind, and what it says of that."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from dpwa.methods.exchange import NO_EXCHANGE, ExchangeKind, ExchangeResult, Outcome
from dpwa.node import farewell
from dpwa.node.node import Node
from support import DEADLINE_S, Cluster, VectorModel, events_of, step_until, wait_until

pytestmark = pytest.mark.seconds

METHODS = ["pull", "gosgd", "adpsgd", "dpsgd"]


class Finishing:
    """A node that finishes in a thread of its own, as in a process of its own."""

    def __init__(self, node: Node, timeout_s: float | None = None) -> None:
        self.node = node
        self.answer: bool | None = None
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.began_s = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        self.answer = self.node.finish() if self._timeout_s is None else self.node.finish(self._timeout_s)

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def known_step(self, peer: str) -> int:
        """The peer's step as the finishing node knows it."""
        return self.node._parts.context.membership[peer].step

    def ended(self) -> bool | None:
        """What `finish` has returned."""
        self._thread.join(DEADLINE_S)
        assert not self.is_waiting
        return self.answer


def training(zeromq: Cluster, count: int = 2, method: str = "pull", run_dir: Path | None = None) -> list[Node]:
    """Nodes that have met."""
    models = [VectorModel([float(index)]) for index in range(count)]
    nodes = zeromq.start(
        models,
        run_dir=run_dir,
        method=method,
        wait_ms=0,
        timeout_ms=300,
        connect_timeout_ms=100,
        flow_control={"probe_s": 0.05, "probe_max_s": 0.2},
    )

    def have_met() -> bool:
        zeromq.step_all()
        return all(node.statistics().blended >= 2 for node in nodes)

    wait_until(have_met, "all exchange")
    return nodes


def step_and_be_heard(node: Node, finishing: Finishing) -> None:
    """One step of a node that trains, of which the one that waits for it hears."""
    before = node.statistics().step
    node.step(1.0)
    wait_until(lambda: finishing.known_step(node.name) > before, "its step is heard of")


def kill(zeromq: Cluster, node: Node) -> None:
    """End a node as a crash does: without a word."""
    node.close()
    index = zeromq.nodes.index(node)
    del zeromq.nodes[index], zeromq.models[index]


def warnings(caplog, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


@pytest.mark.parametrize("method", METHODS)
def test_a_straggler_is_waited_for_as_long_as_it_makes_steps(zeromq, monkeypatch, method):
    monkeypatch.setattr(farewell, "SILENT_S", 0.2)
    monkeypatch.setattr(farewell, "STANDSTILL_S", 5.0)
    first, straggler = training(zeromq, method=method)
    finishing = Finishing(first)
    for _ in range(6):
        begun_s = time.monotonic()
        step_and_be_heard(straggler, finishing)
        wait_until(lambda begun_s=begun_s: time.monotonic() > begun_s + 0.3, "more than the silence that is allowed")
    assert finishing.is_waiting
    assert straggler.finish(DEADLINE_S)
    assert finishing.ended() is True


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_peer_is_left_after_a_while_and_named(zeromq, monkeypatch, tmp_path, caplog, method):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)
    first, dead, _ = nodes = training(zeromq, 3, method, run_dir=tmp_path)
    kill(zeromq, dead)
    finishing = [Finishing(node) for node in nodes if node is not dead]
    assert [one.ended() for one in finishing] == [False, False]
    assert all(time.monotonic() - one.began_s >= 0.5 for one in finishing)
    (said,) = [text for text in warnings(caplog, "leaves behind") if text.startswith("node w1")]
    assert said.startswith("node w1: finish leaves behind w2 (no answer for ")
    first.close()
    (event,) = events_of(tmp_path, "w1", "finish")
    assert event["still_training"] == ["w2"]
    assert event["reasons"]["w2"].startswith("no answer for ")


def test_where_nodes_are_started_anew_a_dead_peer_has_the_time_to_load(zeromq, monkeypatch, caplog):
    monkeypatch.setattr(farewell, "SILENT_S", 0.1)
    monkeypatch.setattr(farewell, "RESTART_S", 1.0)
    first, dead = training(zeromq)
    first._boundary.farewell.peers_restart = True
    kill(zeromq, dead)
    finishing = Finishing(first)
    assert finishing.ended() is False
    assert time.monotonic() - finishing.began_s >= 1.0
    assert warnings(caplog, "leaves behind")


def test_a_peer_that_hangs_without_an_answer_is_left_and_named(zeromq, monkeypatch, caplog):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)
    first, hanging = training(zeromq)
    ended = threading.Event()
    answer = hanging._service.answer

    def stopped(*arguments, **named):
        ended.wait(DEADLINE_S)
        return answer(*arguments, **named)

    monkeypatch.setattr(hanging._service, "answer", stopped)
    try:
        assert Finishing(first).ended() is False
        assert len(warnings(caplog, "leaves behind w2 (no answer for")) == 1
    finally:
        ended.set()


def test_a_peer_that_answers_and_makes_no_step_has_more_patience_and_is_left_at_last(zeromq, monkeypatch, caplog):
    monkeypatch.setattr(farewell, "SILENT_S", 0.1)
    monkeypatch.setattr(farewell, "STANDSTILL_S", 0.8)
    first, standing = training(zeromq)
    finishing = Finishing(first)
    assert finishing.ended() is False
    assert time.monotonic() - finishing.began_s >= 0.8
    step = standing.statistics().step
    assert len(warnings(caplog, f"leaves behind w2 (no step for 0.8 s at its step {step})")) == 1


@pytest.mark.parametrize("method", ["pull", "gosgd"])
def test_a_peer_that_says_for_ever_that_it_trains_holds_nobody_for_ever(zeromq, monkeypatch, caplog, method):
    monkeypatch.setattr(farewell, "LEAST_PATIENCE_S", 0.5)
    monkeypatch.setattr(farewell, "PATIENCE", 0.0)
    first, liar = training(zeromq, method=method)
    finishing = Finishing(first)

    def lied() -> bool:
        liar.step(1.0)
        return not finishing.is_waiting

    wait_until(lied, "the patience ends")
    assert finishing.ended() is False
    assert len(warnings(caplog, "leaves behind w2 (still training after ")) == 1


def test_a_node_that_is_restarted_while_the_others_wait_is_not_left_alone(zeromq):
    first, second = training(zeromq)
    kill(zeromq, second)
    finishing = Finishing(first)
    wait_until(lambda: first._boundary.farewell._signs["w2"].silent_s is not None, "its death is noticed")
    again = zeromq.add("w2", VectorModel([7.0]))
    step_until(again, lambda: again.statistics().blended > 0, "it joins the one that waits")
    for _ in range(20):
        again.step(1.0)
        assert finishing.is_waiting
    assert again.finish(DEADLINE_S)
    assert finishing.ended() is True


def test_a_node_that_had_finished_and_is_started_again_is_waited_for_once_more(zeromq):
    first, second, third = training(zeromq, 3)
    finishing, leaving = Finishing(first), Finishing(second, timeout_s=1.0)
    wait_until(lambda: first._parts.context.membership["w2"].finished, "the second's end is known")
    assert leaving.ended() is False
    kill(zeromq, second)
    again = zeromq.add("w2", VectorModel([7.0]))
    step_until(again, lambda: again.statistics().blended > 0, "it joins")
    wait_until(lambda: not first._parts.context.membership["w2"].finished, "its new life is known")
    last = Finishing(third)
    for _ in range(5):
        step_and_be_heard(again, finishing)
        assert finishing.is_waiting
        assert last.is_waiting
    assert again.finish(DEADLINE_S)
    assert finishing.ended() is True
    assert last.ended() is True


def test_the_limit_that_a_script_gives_is_kept_and_says_who_trains(zeromq, caplog):
    first, second = training(zeromq)
    finishing = Finishing(first, timeout_s=0.3)
    assert finishing.ended() is False
    assert 0.3 <= time.monotonic() - finishing.began_s < 5.0
    assert len(warnings(caplog, "node w1: finish leaves behind w2 (the time ran out at its step ")) == 1
    assert second.finish(DEADLINE_S) in (True, False)


def test_what_a_finished_node_still_pulls_is_none_of_the_exchanges_that_its_method_asks_for(zeromq):
    first, straggler = training(zeromq)
    before = first.statistics()
    finishing = Finishing(first)
    while first.statistics().blended < before.blended + 3:
        step_and_be_heard(straggler, finishing)
    assert straggler.finish(DEADLINE_S)
    assert finishing.ended() is True
    after = first.statistics()
    assert (after.asked, after.completed) == (before.asked, before.completed)


def test_a_long_wait_is_told_once_with_whom_it_is_for(zeromq, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(farewell, "_LONG_S", 0.1)
    first, second = training(zeromq, run_dir=tmp_path)
    finishing = Finishing(first)
    told = "node w1: has finished, and waits for w2 (at its step "
    wait_until(lambda: bool(warnings(caplog, told)), "it is told")
    for _ in range(5):
        step_and_be_heard(second, finishing)
    assert second.finish(DEADLINE_S)
    assert finishing.ended() is True
    assert len(warnings(caplog, told)) == 1
    assert warnings(caplog, "leaves behind") == []
    first.close()
    (event,) = events_of(tmp_path, "w1", "waits")
    assert event["still_training"] == ["w2"]


def test_with_a_bandwidth_limit_that_is_used_up_the_others_are_still_asked(zeromq, monkeypatch):
    monkeypatch.setattr(farewell, "SILENT_S", 0.3)
    nodes = zeromq.start(
        [VectorModel([0.0] * 1000), VectorModel([1.0] * 1000)],
        wait_ms=0,
        bandwidth_limit="100 B/s",
        shared_memory="off",
    )
    first, second = nodes
    finishing = Finishing(first)
    for _ in range(5):
        step_and_be_heard(second, finishing)
    assert finishing.is_waiting
    assert second.finish(DEADLINE_S)
    assert finishing.ended() is True


# --- Without sockets --------------------------------------------------------------------------------------------------


class Alone:
    """The farewell of a node whose peer says what the test says, at times that the test says."""

    def __init__(self, in_memory: Cluster) -> None:
        node, self.peer = in_memory.start([VectorModel([0.0]), VectorModel([1.0])])
        in_memory.step_all(3)
        self.farewell = node._boundary.farewell
        self.service, self.membership = node._service, node._parts.context.membership
        self.farewell.begin(0.0)


@pytest.fixture
def alone(in_memory) -> Alone:
    return Alone(in_memory)


def test_requests_in_the_name_of_a_silent_peer_delay_its_end_but_not_for_ever(alone):
    signs = alone.farewell._signs["w2"]
    signs.progress_s, signs.silent_s, signs.tried_s = 0.0, 1.0, 1.0
    ends_s = next(
        now_s
        for now_s in itertools.count(1.0)
        if not alone.service.asked_at_the_end.update(w2=now_s) and not alone.farewell.waited_for(now_s)
    )
    assert ends_s == farewell.STANDSTILL_S
    alone.service.asked_at_the_end.clear()
    assert alone.farewell.waited_for(10.9) == ["w2"]
    assert alone.farewell.waited_for(11.0) == []


def test_one_that_fell_silent_long_ago_is_asked_once_more_before_it_is_left(alone):
    signs = alone.farewell._signs["w2"]
    signs.silent_s = signs.tried_s = -100.0
    assert alone.farewell.waited_for(0.1) == ["w2"]
    signs.tried_s = 0.2
    assert alone.farewell.waited_for(0.3) == []


@pytest.mark.parametrize(("kind", "waited_for"), [(ExchangeKind.PUSH, []), (ExchangeKind.PULL, ["w2"])])
def test_a_peer_that_has_finished_and_refuses_a_proposal_is_not_taken_for_one_that_starts(alone, kind, waited_for):
    alone.membership.heard("w2", bytes(8), finished=True, step=3)
    assert alone.farewell.waited_for(0.1) == []
    alone.farewell.note(ExchangeResult(Outcome.NOT_READY, kind, None, "w2", NO_EXCHANGE), 0.2)
    assert alone.farewell.waited_for(0.3) == waited_for


def test_asks_become_rarer_in_a_long_wait_and_each_peer_is_asked_twice_a_second(alone):
    def asks(start_s: float, stop_s: float) -> int:
        times = [start_s + number / 100 for number in range(round((stop_s - start_s) * 100))]
        return sum(alone.farewell.may_ask(now_s) for now_s in times)

    assert asks(0.0, 0.5) >= 20
    assert 18 <= asks(100.0, 110.0) <= 21
