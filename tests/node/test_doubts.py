"""Runs that are worth little although all exchanges succeed: other initial weights, and the same data twice."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import UNKNOWN_ORIGIN
from dpwa.methods.exchange import ExchangeResult, Outcome
from dpwa.node.doubts import Doubts, origin_of
from dpwa.snapshot.layout import Layout, Role, TensorSpec
from support import Cluster, VectorModel, events_of, step_until, wait_until

OTHER_WEIGHTS = "began with other initial weights"
SAME_LOSSES = "its losses are those of peer"


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=400)


def told(caplog, words: str, node: str = "") -> list[str]:
    said = [record.getMessage() for record in caplog.records if words in record.getMessage()]
    return [text for text in said if text.startswith(f"node {node}")]


def until_all_have_blended(cluster: Cluster, times: int = 3) -> None:
    def blended() -> bool:
        cluster.step_all()
        return all(sum(map(node.statistics().exchanges.get, ("blended",), (0,))) >= times for node in cluster.nodes)

    wait_until(blended, "all exchange")


# --- Initial weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pull", "gosgd", "adpsgd", "dpsgd"])
def test_nodes_that_began_with_other_weights_are_told_so_once_in_log_and_journal(cluster, tmp_path, caplog, method):
    cluster.start([VectorModel(vector(1)), VectorModel(vector(2))], method=method, run_dir=tmp_path)
    until_all_have_blended(cluster)
    cluster.close()
    texts = told(caplog, OTHER_WEIGHTS)
    assert 1 <= len(texts) <= 2, "who learns of it before the two are one lineage; at least one of them"
    for node, peer in (("w1", "w2"), ("w2", "w1")):
        said = told(caplog, OTHER_WEIGHTS, node)
        assert len(said) <= 1
        journal = events_of(tmp_path, node, "warning", about="other_weights")
        assert [f"node {node}: {event['text']}" for event in journal] == said
        if said:
            assert f"peer {peer} began with other initial weights (the models are " in said[0]
            assert "Seed before the model is built" in said[0]


def nothing(_: Cluster) -> None:
    """As they were made."""


def loaded_after_the_start(cluster: Cluster) -> None:
    for model in cluster.models:
        model.vector[:] = vector(3)


def restored(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.load_state_dict(node.state_dict())


@pytest.mark.parametrize(("seeds", "then"), [((1, 1), nothing), ((1, 2), loaded_after_the_start), ((1, 2), restored)])
def test_nodes_with_the_same_weights_and_those_that_were_restored_are_told_nothing(in_memory, caplog, seeds, then):
    in_memory.start([VectorModel(vector(seed)) for seed in seeds])
    then(in_memory)
    until_all_have_blended(in_memory)
    assert told(caplog, OTHER_WEIGHTS) == []


def test_a_node_that_takes_over_a_trained_model_is_told_nothing(in_memory, caplog):
    first, _ = in_memory.start([VectorModel(vector(1)), VectorModel(vector(1))])
    in_memory.nodes.pop().close()
    in_memory.models.pop()
    in_memory.step_all(60)
    late = in_memory.add("w2", VectorModel(vector(2)))
    assert late._service.origin != UNKNOWN_ORIGIN
    step_until(late, lambda: first.step(1.0) or late.statistics().blended > 0, "it joins")
    until_all_have_blended(in_memory)
    assert late._service.origin == UNKNOWN_ORIGIN
    assert told(caplog, OTHER_WEIGHTS) == []


def test_running_statistics_of_a_batch_before_the_training_are_no_other_weights():
    layout = Layout([TensorSpec("weight", (30, 50), "float32"), TensorSpec("mean", (50,), "float32", Role.BUFFER)])
    memory = np.zeros(layout.total_bytes, np.uint8)
    weights, statistics = (memory[one.start_byte : one.stop_byte].view(np.float32) for one in layout.sections)
    weights[:] = np.random.default_rng(1).normal(size=1500)
    before = origin_of(layout.sections, memory.data)
    statistics[:] = 7.0
    assert origin_of(layout.sections, memory.data) == before
    weights += 0.5
    assert origin_of(layout.sections, memory.data) != before


# --- The same batches -------------------------------------------------------------------------------------------------


class Losses:
    """Two nodes' losses, of which this one's peer says every third."""

    def __init__(self) -> None:
        self.said: list[str] = []
        layout = Layout([TensorSpec("weight", (4,), "float32")])
        self._membership = Membership(["w2"])
        service = SimpleNamespace(origin=UNKNOWN_ORIGIN)
        self._doubts = Doubts("w1", layout.sections, self._membership, service, lambda _, **f: self.said.append(f))

    def train(self, own: Callable[[int], float], peer: Callable[[int], float], *, lead: int = 0, steps: int = 400):
        for step in range(1, steps + 1):
            self._doubts.trained(step, own(step))
            if step % 3 == 0 and step + lead > 0:
                self._membership.heard("w2", b"2" * 8, finished=False, step=step + lead, loss=peer(step + lead))
                self._doubts.met(ExchangeResult(Outcome.BLENDED, None, peer="w2"))
        return self.said


def batches(seed: int, noise: float = 0.2) -> Callable[[int], float]:
    """A loss that falls, and goes up and down with the batches of a seed."""
    drawn = random.Random(seed)
    draws = [drawn.gauss(0, noise) for _ in range(2000)]
    return lambda step: 2.0 * math.exp(-step / 150) + 0.5 + draws[step]


@pytest.mark.parametrize("lead", [0, 40, -40])
def test_the_same_batches_in_the_same_order_are_told_once_with_what_to_do(caplog, lead):
    own, drawn = batches(1), random.Random(2)
    (event,) = Losses().train(own, lambda step: own(step) + drawn.gauss(0, 0.005), lead=lead)
    assert (event.get("about"), event.get("peer")) == ("same_losses", "w2")
    (text,) = told(caplog, SAME_LOSSES)
    assert "node w1: its losses are those of peer w2, step by step" in text
    assert "seed the data differently on each, after the model is made" in text


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("own", "peer"),
    [
        (batches(1), batches(2)),
        (batches(1, 1e-4), batches(2, 1e-4)),
        (lambda _: math.log(10), lambda _: math.log(10)),
        (lambda step: 5.0 * 0.8**step, lambda step: 5.001 * 0.8**step),
        (lambda step: 1.0 / step, lambda step: 1.0 / step),
        (lambda _: math.nan, lambda _: math.nan),
        (lambda _: math.inf, lambda _: math.inf),
        (lambda step: (-1) ** step * 1e308, lambda _: 0.0),
        (batches(1), lambda step: batches(1)(step + 1)),
    ],
    ids=["other batches", "little noise", "constant", "falls", "falls slowly", "NaN", "infinite", "huge", "one later"],
)
def test_other_batches_and_losses_that_say_nothing_of_them_are_not_told(caplog, own, peer):
    assert Losses().train(own, peer, steps=1500) == []
    assert told(caplog, SAME_LOSSES) == []


def test_by_chance_nothing_is_told():
    for seed in range(30):
        assert Losses().train(batches(seed), batches(1000 + seed), steps=1500) == []


@pytest.mark.seconds
def test_two_nodes_with_one_seed_for_the_data_are_told(zeromq, tmp_path, caplog):
    nodes, loss = zeromq.start([VectorModel(vector(1)), VectorModel(vector(1))], run_dir=tmp_path), batches(5)

    def is_told() -> bool:
        for node in nodes:
            node.step(loss(min(node.statistics().step + 1, 1999)))
        return len(told(caplog, SAME_LOSSES)) == 2

    wait_until(is_told, "both are told", 30.0)
    for node, peer in (("w1", "w2"), ("w2", "w1")):
        assert len(told(caplog, f"{SAME_LOSSES} {peer}", node)) == 1
