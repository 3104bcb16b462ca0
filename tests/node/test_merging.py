"""`finish(merge=True)`: all nodes that are there end with one model, the mean of their last ones, to the bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.exchange.service import Serving
from dpwa.node import farewell, merging
from dpwa.node.last_models import LastModels
from dpwa.node.node import Node
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.state import UNMARKED, Mark, MergeStage
from support import DEADLINE_S, Cluster, VectorModel, events_of, wait_until

METHODS = ["pull", "gosgd", "sgp", "adpsgd", "dpsgd", "noloco", "elastic", "sparta"]

QUICK = {"flow_control": {"probe_s": 0.05, "probe_max_s": 0.2}}


@pytest.fixture(autouse=True)
def no_long_silences(monkeypatch):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)
    monkeypatch.setattr(farewell, "_FAREWELL_S", 0.1)
    monkeypatch.setattr(merging, "_SURE_S", 0.05)


pytestmark = pytest.mark.seconds


class Ends:
    """`finish(merge=True)` of several nodes over a transport without threads, turn by turn."""

    def __init__(self, nodes: Sequence[Node], merge: Sequence[bool] | None = None) -> None:
        self.answers: dict[str, bool] = {}
        self.nodes = list(nodes)
        for index, node in enumerate(nodes):
            node._begin_to_finish(merge=merge is None or merge[index])

    def turn(self) -> None:
        for node in self.nodes:
            if node.name not in self.answers:
                answer = node._finish_turn(DEADLINE_S)
                if answer is not None:
                    self.answers[node.name] = answer
                    node.close()

    def kill(self, node: Node) -> None:
        node.close()
        self.nodes.remove(node)

    def run(self) -> dict[str, bool]:
        def ended() -> bool:
            self.turn()
            return len(self.answers) == len(self.nodes)

        wait_until(ended, "all have ended")
        return self.answers


def start(cluster: Cluster, vectors: Sequence[Sequence[float]], run_dir: Path | None = None, **options) -> list[Node]:
    """Nodes that have met and have models of which no two are equal."""
    nodes = cluster.start([VectorModel(vector) for vector in vectors], run_dir=run_dir, **{**QUICK, **options})
    cluster.step_all(6)
    rng = np.random.default_rng(len(vectors))
    for model in cluster.models:
        model.vector += rng.standard_normal(model.vector.shape)
    return nodes


def models_of(cluster: Cluster, nodes: Sequence[Node]) -> list[VectorModel]:
    return [cluster.models[cluster.nodes.index(node)] for node in nodes]


def assert_one_model(cluster: Cluster, nodes: Sequence[Node]) -> np.ndarray:
    vectors = [model.vector for model in models_of(cluster, nodes)]
    assert {vector.tobytes() for vector in vectors} == {vectors[0].tobytes()}
    return vectors[0]


def mean_of(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total += vector * weight
    return total / sum(weights)


@pytest.mark.parametrize("method", METHODS)
def test_all_nodes_end_with_the_mean_of_their_last_models(in_memory, method):
    nodes = start(in_memory, [[float(index), 1.0] for index in range(4)], method=method, pull_probability=0.5)
    ends = Ends(nodes)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes), "all are final")
    last = [model.vector.copy() for model in in_memory.models]
    is_by_mass = method in ("gosgd", "sgp")
    weights = [node.method.mass if is_by_mass else 1.0 for node in nodes]
    assert ends.run() == {"w1": True, "w2": True, "w3": True, "w4": True}
    got = assert_one_model(in_memory, nodes)
    np.testing.assert_array_equal(got, mean_of(last, weights))
    assert [node.statistics().merged_models for node in nodes] == [4, 4, 4, 4]
    assert len({node.statistics().clock for node in nodes}) == 1


def test_what_nodes_pull_while_they_wait_for_the_merge_does_not_change_what_is_averaged(in_memory):
    """Pulls conserve no mean: a straggler's model, pulled by all the others in turn, would be most of the average."""
    nodes = start(in_memory, [[float(index), 1.0] for index in range(4)], pull_probability=0.5)
    *early, straggler = nodes
    for node in nodes:
        node._boundary.collect(0.0)  # what the last step has begun
    last = [model.vector.copy() for model in in_memory.models]
    early_ends = Ends(early)
    heard_of = [node._parts.context.membership[straggler.name].step for node in early]
    for _ in range(20):
        early_ends.turn()
        straggler.step(1.0)
    straggler._boundary.collect(0.0)
    in_memory.models[-1].vector[:] = last[-1]  # what it has pulled itself is not the subject
    for node, before in zip(early, heard_of, strict=True):
        assert node._parts.context.membership[straggler.name].step > before, "it asks all the same"
    ends = Ends(nodes)
    wait_until(lambda: ends.turn() or len(ends.answers) == 4, "all have ended")
    np.testing.assert_allclose(assert_one_model(in_memory, nodes), np.mean(last, axis=0), rtol=1e-12)


def test_outer_momentum_does_not_move_the_merged_model(in_memory):
    nodes = start(in_memory, [[0.0], [1.0], [2.0]], outer={"every": 2})
    ends = Ends(nodes)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes), "all are final")
    last = [model.vector.copy() for model in in_memory.models]
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, nodes), mean_of(last, [1.0] * 3))


@pytest.mark.parametrize("dead", [[0], [2], [0, 1], [1, 3], [0, 1, 2], [1, 2, 3]])
def test_those_who_are_there_merge_without_the_dead(in_memory, dead):
    nodes = start(in_memory, [[float(index)] for index in range(4)])
    for index in dead:
        nodes[index].close()
    alive = [node for index, node in enumerate(nodes) if index not in dead]
    ends = Ends(alive)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in alive), "all are final")
    last = [model.vector.copy() for model in models_of(in_memory, alive)]
    answers = ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, alive), mean_of(last, [1.0] * len(alive)))
    assert set(answers.values()) == {False}  # the dead are left behind


def turn_until(ends: Ends, first: Node, condition) -> None:
    """Let the nodes go on; the others only as long as the first has not come so far."""

    def is_so_far() -> bool:
        first._finish_turn(DEADLINE_S)
        if condition():
            return True
        for other in ends.nodes:
            if other is not first:
                other._finish_turn(DEADLINE_S)
        return False

    wait_until(is_so_far, "the first node has come so far")


@pytest.mark.parametrize("method", ["pull", "gosgd", "adpsgd", "dpsgd"])
@pytest.mark.parametrize("when", ["in the middle of fetching", "before it has served the mean"])
def test_the_next_node_averages_when_the_first_dies(in_memory, monkeypatch, method, when):
    nodes = start(in_memory, [[float(index), -1.0] for index in range(4)], method=method)
    ends = Ends(nodes)
    first, *others = nodes
    merge = first._boundary.merging
    turn_until(ends, first, lambda: merge._gathering is not None and len(merge._gathering.done) >= 1)
    if when == "before it has served the mean":
        monkeypatch.setattr(first._publisher, "take", lambda **_: None)  # as while slow peers hold all buffers
        turn_until(ends, first, lambda: merge.held.models == 4)
        assert merge._gathering is None
    assert first._service.serving.snapshot.mark.stage is MergeStage.FINAL
    last = [model.vector.copy() for model in models_of(in_memory, others)]
    weights = [node.method.mass if method == "gosgd" else 1.0 for node in others]
    ends.kill(first)
    assert first.name not in in_memory.network._transports
    answers = ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, others), mean_of(last, weights))
    assert answers == {"w2": True, "w3": True, "w4": True}  # the first had finished its training
    assert [node.statistics().merged_models for node in others] == [3, 3, 3]


def test_a_mean_that_one_node_holds_wins_when_the_one_that_made_it_dies(in_memory):
    nodes = start(in_memory, [[float(index)] for index in range(4)])
    ends = Ends(nodes)
    first, *others = nodes
    turn_until(ends, first, lambda: first._service.serving.snapshot.mark.models == 4)
    holder = others[2]
    wait_until(lambda: holder._finish_turn(DEADLINE_S) or holder._boundary.merging.held.models == 4, "one has taken it")
    mean = models_of(in_memory, [holder])[0].vector.copy()
    assert all(node._boundary.merging.held == Mark() for node in others[:2])
    ends.kill(first)
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, others), mean)
    assert [node.statistics().merged_models for node in others] == [4, 4, 4]


def test_of_two_means_that_a_split_has_made_the_one_of_more_models_wins(in_memory):
    nodes = start(in_memory, [[float(index)] for index in range(5)])
    left, right = nodes[:2], nodes[2:]
    ends = Ends(nodes)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes), "all are final")
    transports = dict(in_memory.network._transports)
    last = [model.vector.copy() for model in in_memory.models]

    def apart() -> bool:
        for side in (left, right):
            for name in transports:
                in_memory.network.leave(name)
            for node in side:
                in_memory.network.join(node.name, transports[node.name])
            for node in side:
                node._boundary.collect(0.0)
                node._boundary.publish_and_ask()
        return all(node._boundary.merging.held != Mark() for node in nodes)

    wait_until(apart, "each side has a mean of its own")
    assert [node._boundary.merging.held.models for node in nodes] == [2, 2, 3, 3, 3]
    for name, transport in transports.items():
        in_memory.network.join(name, transport)
    for node in nodes:  # as an ask that answers would
        node._parts.context.flow_control.retry(node._monotonic_s())
        node._boundary.merging._gone.clear()
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, nodes), mean_of(last[2:], [1.0] * 3))


def test_a_node_that_does_not_merge_keeps_its_model_and_counts_in_no_mean(in_memory):
    nodes = start(in_memory, [[0.0], [1.0], [2.0]])
    ends = Ends(nodes, merge=[True, False, True])
    merging_nodes = [nodes[0], nodes[2]]
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in merging_nodes), "both are final")
    last = [model.vector.copy() for model in in_memory.models]
    answers = ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, merging_nodes), mean_of(last[::2], [1.0, 1.0]))
    assert in_memory.models[1].vector.tobytes() != in_memory.models[0].vector.tobytes()
    assert answers == {"w1": True, "w2": True, "w3": True}


def test_a_node_whose_model_was_last_fetched_while_it_trained_is_asked_whether_it_merges(in_memory):
    """Its snapshot says that it does not, and a later answer only that it has finished."""
    first, second = start(in_memory, [[0.0], [1.0]])
    ends = Ends([first])
    second.step(1.0)
    blended = first.statistics().blended
    wait_until(lambda: ends.turn() or first.statistics().blended > blended, "the snapshot of the one that trains")
    assert not first._parts.context.membership["w2"].finished
    second._begin_to_finish(merge=True)
    wait_until(lambda: ends.turn() or first._parts.context.membership["w2"].finished, "it has finished")
    for _ in range(20):
        ends.turn()
    assert ends.answers == {}
    ends.nodes.append(second)
    assert ends.run() == {"w1": True, "w2": True}
    assert [node.statistics().merged_models for node in (first, second)] == [2, 2]


def test_a_node_alone_has_nothing_to_merge(in_memory):
    (node,) = in_memory.start([VectorModel([3.0])])
    node.step(1.0)
    assert node.finish(merge=True)
    assert in_memory.models[0].vector.tolist() == [3.0]


def test_one_that_nobody_merges_with_says_so(in_memory, caplog):
    nodes = start(in_memory, [[0.0], [1.0]])
    answers = Ends(nodes, merge=[True, False]).run()
    assert answers == {"w1": False, "w2": True}
    said = [record.getMessage() for record in caplog.records if "merged model" in record.getMessage()]
    assert said == ["node w1: has no merged model, and keeps its own: no other node was there to merge with"]


def test_a_model_that_is_not_finite_is_left_out_and_replaced(in_memory):
    nodes = start(in_memory, [[0.0], [1.0], [2.0]])
    ends = Ends(nodes)
    in_memory.models[0].vector[:] = np.nan
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes), "all are final")
    last = [model.vector.copy() for model in in_memory.models]
    assert np.isnan(last[0]).all()
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, nodes), mean_of(last[1:], [1.0, 1.0]))


def test_an_untrained_model_of_another_lineage_is_left_out_and_replaced(in_memory):
    nodes = start(in_memory, [[0.0], [1.0], [2.0]], method="gosgd")
    in_memory.step_all(150)
    nodes[0].close()
    del in_memory.nodes[0], in_memory.models[0]
    again = in_memory.add("w1", VectorModel([1000.0]))
    again._boundary._joining.is_on = False  # it has had no chance to join
    ends = Ends([again, *nodes[1:]])
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in ends.nodes), "all are final")
    assert models_of(in_memory, [again])[0].vector.tolist() == [1000.0]
    last = [model.vector.copy() for model in models_of(in_memory, nodes[1:])]
    ends.run()
    weights = [node.method.mass for node in nodes[1:]]
    np.testing.assert_array_equal(assert_one_model(in_memory, ends.nodes), mean_of(last, weights))


def test_models_count_alike_when_none_has_a_mass(in_memory):
    nodes = start(in_memory, [[0.0], [1.0]], method="gosgd", pull_probability=0.0)
    for node in nodes:
        node.method._mass = 0.0
    ends = Ends(nodes)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes), "all are final")
    last = [model.vector.copy() for model in in_memory.models]
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, nodes), mean_of(last, [1.0, 1.0]))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whoever_dies_whenever_the_others_end_with_one_model(data):
    count = data.draw(st.integers(2, 5))
    deaths = {
        index: data.draw(st.integers(0, 40), label=f"turn in which w{index + 1} dies")
        for index in data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1), label="dead")
    }
    method = data.draw(st.sampled_from(["pull", "gosgd", "adpsgd", "dpsgd"]))
    cluster = Cluster("in_memory")
    try:
        nodes = start(cluster, [[float(index)] for index in range(count)], method=method)
        ends = Ends(nodes)
        turn = 0

        def ended() -> bool:
            nonlocal turn
            for index, at in deaths.items():
                if at == turn and nodes[index] in ends.nodes and nodes[index].name not in ends.answers:
                    ends.kill(nodes[index])
            ends.turn()
            turn += 1
            return turn > 40 and len(ends.answers) == len(ends.nodes)

        wait_until(ended, "all have ended")
        got = assert_one_model(cluster, ends.nodes)
        merged = {node.statistics().merged_models for node in ends.nodes}
        assert len(merged) == 1
        assert merged.pop() >= len(ends.nodes)
        assert np.isfinite(got).all()
    finally:
        cluster.close()


def test_exchanges_that_last_longer_than_a_turn_do_not_put_the_merge_off_for_ever(in_memory, monkeypatch):
    monkeypatch.setattr(farewell, "BETWEEN_ASKS_S", 0.0)  # one begins as soon as the one before has ended
    nodes = start(in_memory, [[0.0], [1.0], [2.0]])
    for node in nodes:
        turns = itertools.count()
        take = node._transport.take
        monkeypatch.setattr(
            node._transport,
            "take",
            lambda wait_s, take=take, turns=turns: take(wait_s) if next(turns) % 5 == 4 else None,
        )
    assert set(Ends(nodes).run().values()) == {True}
    assert_one_model(in_memory, nodes)


@pytest.mark.parametrize("method", ["gosgd", "adpsgd"])
def test_a_node_that_trains_on_after_a_merge_takes_part_in_exchanges_again_and_warns(in_memory, method, caplog):
    nodes = start(in_memory, [[0.0], [1.0]], method=method)
    for node in nodes:
        node._begin_to_finish(merge=True)

    def have_ended() -> bool:
        answers = [node._finish_turn(DEADLINE_S) for node in nodes]
        return None not in answers

    wait_until(have_ended, "they have merged")
    assert [node.statistics().merged_models for node in nodes] == [2, 2]
    assert [node._service.serving.first_round for node in nodes] == [None, None]
    in_memory.step_all(2)
    assert caplog.text.count("makes steps after finish()") == 2, "once for each node"
    assert all(node._service.serving.first_round is not None for node in nodes)
    assert all(node._parts.context.proposals.engage([]) for node in nodes)
    assert [node.statistics().merged_models for node in nodes] == [0, 0]


@pytest.mark.parametrize("method", ["pull", "adpsgd", "noloco"])
def test_a_last_model_for_which_there_is_no_buffer_is_served_at_a_later_turn(in_memory, monkeypatch, method):
    nodes = start(in_memory, [[0.0], [1.0]], method=method)
    publisher = nodes[0]._boundary._publisher
    take, refused = publisher.take, []

    def without_a_buffer(**what):
        if what.get("mark", UNMARKED).stage is MergeStage.FINAL and len(refused) < 3:
            refused.append(what)
            return None
        return take(**what)

    monkeypatch.setattr(publisher, "take", without_a_buffer)
    assert Ends(nodes).run() == {"w1": True, "w2": True}
    assert len(refused) == 3, "what was to happen did"
    assert_one_model(in_memory, nodes)


# --- Over sockets -----------------------------------------------------------------------------------------------------


class Finishing:
    """`finish` of a node in a thread of its own, as in a process of its own."""

    def __init__(self, node: Node, timeout_s: float | None = None, *, merge: bool | None = True) -> None:
        self.node = node
        self.answer: bool | None = None
        self._timeout_s = timeout_s
        self._merge = merge
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.answer = self.node.finish(self._timeout_s, merge=self._merge)
        self.node.close()

    def ended(self) -> bool | None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.answer


SIZE = 3000


def start_over_sockets(zeromq: Cluster, run_dir: Path | None = None, **options) -> list[Node]:
    rng = np.random.default_rng(1)
    vectors = [rng.standard_normal(SIZE) for _ in range(4)]
    return start(zeromq, vectors, run_dir, timeout_ms=1000, connect_timeout_ms=200, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "gosgd"},
        {"method": "adpsgd"},
        {"method": "dpsgd"},
        {"memory": "low"},
        {"codec": "int8", "shared_memory": "off"},
        {"pull_fraction": 0.25, "shared_memory": "off"},
        {"blend": "absolute"},
    ],
    ids=str,
)
def test_over_sockets_all_nodes_end_with_the_same_bits(zeromq, options):
    nodes = start_over_sockets(zeromq, **options)
    finishing = [Finishing(node) for node in nodes]
    assert [one.ended() for one in finishing] == [True] * 4
    assert_one_model(zeromq, nodes)
    assert [node.statistics().merged_models for node in nodes] == [4] * 4


@pytest.mark.parametrize("merge_at_end", [True, False])
def test_the_cluster_file_can_ask_for_the_merge(zeromq, merge_at_end):
    nodes = start_over_sockets(zeromq, method="adpsgd", pull_probability=0.0, merge_at_end=merge_at_end)
    finishing = [Finishing(node, merge=None) for node in nodes]
    assert [one.ended() for one in finishing] == [True] * 4
    assert [node.statistics().merged_models for node in nodes] == [4 * merge_at_end] * 4


def test_a_merge_moves_two_models_per_node_but_one(zeromq):
    nodes = start_over_sockets(zeromq, method="adpsgd", pull_probability=0.0, shared_memory="off")
    before = sum(node.statistics().bytes_in for node in nodes)
    last = [model.vector.copy() for model in zeromq.models]
    finishing = [Finishing(node) for node in nodes]
    assert [one.ended() for one in finishing] == [True] * 4
    assert sum(node.statistics().bytes_in for node in nodes) - before == 2 * 3 * SIZE * 8
    np.testing.assert_array_equal(assert_one_model(zeromq, nodes), mean_of(last, [1.0] * 4))


def test_the_merge_begins_when_the_last_straggler_has_finished(zeromq, tmp_path):
    nodes = start_over_sockets(zeromq, tmp_path)
    *early, straggler = nodes
    finishing = [Finishing(node) for node in early]
    for _ in range(5):
        before = straggler.statistics().step
        straggler.step(1.0)
        wait_until(
            lambda before=before: all(node._parts.context.membership[straggler.name].step > before for node in early),
            "its step is heard of",
        )
        assert not any(node._boundary.merging.is_frozen for node in early)
    last = Finishing(straggler)
    assert [one.ended() for one in [*finishing, last]] == [True] * 4
    assert_one_model(zeromq, nodes)
    (merge,) = events_of(tmp_path, "w1", "merge")
    assert sorted(merge["of"]) == ["w1", "w2", "w3", "w4"]
    assert merge["models"] == 4


def test_over_sockets_the_next_node_averages_when_the_first_is_cut_off_before_it_serves_the_mean(zeromq, monkeypatch):
    nodes = start_over_sockets(zeromq)
    first, *others = nodes
    cut_off = threading.Event()
    write = LastModels.write

    def cut_off_and_write(models: LastModels, *arguments) -> bool:
        if models.names[0] == first.name:
            first._transport.close(1.0)
            cut_off.set()
        return write(models, *arguments)

    monkeypatch.setattr(LastModels, "write", cut_off_and_write)
    leaving = Finishing(first, timeout_s=2.0)
    finishing = [Finishing(node) for node in others]
    assert [one.ended() for one in finishing] == [True] * 3
    assert cut_off.is_set()
    assert_one_model(zeromq, others)
    assert [node.statistics().merged_models for node in others] == [3] * 3
    leaving.ended()


def test_a_node_whose_time_runs_out_keeps_its_model_and_says_so(zeromq, caplog):
    first, *others = start_over_sockets(zeromq, pull_probability=0.0, method="adpsgd")
    before = zeromq.models[0].vector.copy()
    assert Finishing(first, timeout_s=0.2).ended() is False
    np.testing.assert_array_equal(zeromq.models[0].vector, before)
    said = [record.getMessage() for record in caplog.records if "merged model" in record.getMessage()]
    assert said == ["node w1: has no merged model, and keeps its own: the time ran out before all had finished"]
    assert [one.ended() for one in [Finishing(node) for node in others]] == [True] * 3
    assert [node.statistics().merged_models for node in others] == [3] * 3


# --- Liars ------------------------------------------------------------------------------------------------------------


def test_a_merged_model_of_more_models_than_there_are_nodes_is_not_taken(in_memory, monkeypatch):
    nodes = start(in_memory, [[0.0], [1.0], [2.0]])
    liar = nodes[2]
    honest = Serving.mark_of

    def mark_of(serving: Serving, snapshot: Snapshot | None) -> Mark:
        is_lie = serving is liar._service.serving
        return Mark(MergeStage.MERGED, 4000, b"l" * 8) if is_lie else honest(serving, snapshot)

    monkeypatch.setattr(Serving, "mark_of", mark_of)
    ends = Ends(nodes[:2])
    liar._begin_to_finish(merge=True)
    wait_until(lambda: ends.turn() or all(node._boundary.merging.is_frozen for node in nodes[:2]), "both are final")
    last = [model.vector.copy() for model in in_memory.models[:2]]
    ends.run()
    np.testing.assert_array_equal(assert_one_model(in_memory, nodes[:2]), mean_of(last, [1.0, 1.0]))


@pytest.mark.parametrize("method", ["pull", "gosgd", "adpsgd"])
@pytest.mark.parametrize("liar", [0, 2])
def test_a_last_model_that_no_honest_node_can_have_is_in_no_merged_model(in_memory, method, liar):
    """The first node averages: its mean is refused, and the next one has its turn."""
    nodes = start(in_memory, [[1.0, 2.0]] * 4, method=method)
    in_memory.models[liar].vector[:] = 1e30
    answers = Ends(nodes).run()
    honest = [node for index, node in enumerate(nodes) if index != liar]
    assert all(answers[node.name] for node in honest)
    assert np.abs(assert_one_model(in_memory, honest)).max() < 10.0


def test_without_a_guard_it_would_be_in_everybodys(in_memory):
    nodes = start(in_memory, [[1.0, 2.0]] * 4, guard="off")
    in_memory.models[2].vector[:] = 1e30
    Ends(nodes).run()
    assert assert_one_model(in_memory, nodes).min() > 1e29


def test_a_merged_model_that_is_not_finite_is_refused(in_memory, caplog):
    nodes = start(in_memory, [[0.0], [1.0]])
    honest, liar = nodes[1], nodes[0]
    liar._begin_to_finish(merge=True)
    honest._begin_to_finish(merge=True)
    in_memory.models[0].vector[:] = np.nan
    merge = liar._boundary.merging
    merge.freeze(liar.statistics().step)
    merge.held = Mark(MergeStage.MERGED, 2, b"l" * 8)
    merge._publish(merge.held, liar.statistics().step)
    before = in_memory.models[1].vector.copy()
    answers: list[bool | None] = []
    wait_until(lambda: answers.append(honest._finish_turn(DEADLINE_S)) or answers[-1] is not None, "it ends")
    assert answers[-1] is False
    np.testing.assert_array_equal(in_memory.models[1].vector, before)
    said = [record.getMessage() for record in caplog.records if "merged model" in record.getMessage()]
    assert said == ["node w2: has no merged model, and keeps its own: what w1 gave was refused"]
