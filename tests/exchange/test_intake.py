"""What a node takes in: within its limit with every method, and no more of a pair than it bears."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_support import METHODS, begin, conservation, settle, spread, starts

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.budget import WINDOW_S
from dpwa.exchange.intake import Stride
from dpwa.methods.base import Conservation
from dpwa.node.node import Node
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport
from support import Cluster, VectorModel

SWEEP_S = 0.05
LIMIT = 40_000
"""Bytes per second, where a node that exchanges in each sweep would take 320,000 and more."""


class Limited:
    """Nodes of one pace on the in-memory network, under a clock of their own, with all that each has received."""

    def __init__(self, start: np.ndarray, **settings: object) -> None:
        self.now_s = 0.0
        self.network = InMemoryNetwork()
        config = ClusterConfig.for_localhost(len(start), **{"bandwidth_limit": f"{LIMIT} B/s", **settings})
        self.models = [VectorModel(vector) for vector in start]
        self.nodes: list[Node] = []
        self.arrived: list[list[tuple[float, int]]] = []
        for number, model in enumerate(self.models, start=1):
            self._add(config, f"w{number}", model)

    def _add(self, config: ClusterConfig, name: str, model: VectorModel) -> None:
        make = lambda wiring: InMemoryTransport(self.network, name, wiring)  # noqa: E731
        node = Node(config, name, model, make_transport=make, monotonic_s=lambda: self.now_s)
        node.start()
        fetcher, arrived = node._parts.context.fetcher, []
        spent = fetcher.spent

        def note(received_bytes: int, share: float) -> None:
            arrived.append((self.now_s, received_bytes))
            spent(received_bytes, share)

        fetcher.spent = note
        self.nodes.append(node)
        self.arrived.append(arrived)

    def sweep(self, times: int) -> None:
        for _ in range(times):
            self.now_s += SWEEP_S
            for node in self.nodes:
                node.step(1.0)

    def most_in_a_window(self) -> int:
        """The most bytes that any node has received in 10 s."""
        return max(
            sum(received for at_s, received in arrived if begin_s <= at_s < begin_s + WINDOW_S)
            for arrived in self.arrived
            for begin_s, _ in arrived
        )

    def vectors(self) -> np.ndarray:
        return np.stack([model.vector for model in self.models])

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def limited() -> Iterator[list[Limited]]:
    made: list[Limited] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.seconds
@pytest.mark.parametrize("name", METHODS)
def test_no_node_receives_more_than_the_limit_and_its_method_still_trains_and_conserves(limited, name):
    start = starts(4)
    cluster = Limited(start, **METHODS[name])
    limited.append(cluster)
    cluster.sweep(1000)  # 50 s
    assert cluster.most_in_a_window() <= 1.1 * WINDOW_S * LIMIT
    late = sum(received for arrived in cluster.arrived for at_s, received in arrived if at_s >= 20.0)
    assert late >= 0.25 * 30 * LIMIT * len(start), "the limit is put to use"
    assert spread(cluster.vectors()) < 0.5 * spread(start)
    for node in cluster.nodes:
        node.method.probability = 0.0
    cluster.sweep(20)
    if name == "noloco":
        return  # what it conserves is told by its anchors (tests/methods)
    if cluster.nodes[0].method.conservation is Conservation.COLUMN:
        counts = np.array([node.statistics().method["mass"] for node in cluster.nodes])
        assert counts @ cluster.vectors() / counts.sum() == pytest.approx(start.mean(axis=0), abs=1e-12)
    elif cluster.nodes[0].method.conservation is Conservation.DOUBLY:
        assert cluster.vectors().mean(axis=0) == pytest.approx(start.mean(axis=0), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    round_s=st.floats(1e-3, 1.0),
    cost_s=st.floats(1e-3, 100.0),
    jitter=st.floats(0.0, 0.1),
    seed=st.integers(0, 2**32),
)
def test_nodes_of_about_one_pace_come_to_make_the_same_rounds_within_their_limit(round_s, cost_s, jitter, seed):
    rng = random.Random(seed)
    strides, now_s, made = [Stride(), Stride()], [0.0, 0.0], [set(), set()]
    for round_ in range(1, 3000):
        for number, stride in enumerate(strides):
            now_s[number] += round_s * (1 + jitter * rng.uniform(-1, 1))
            if stride.has_turn(round_, now_s[number], cost_s):
                made[number].add(round_)
    late = [{round_ for round_ in rounds if round_ > 1500} for rounds in made]
    # What one makes and the other leaves out: nothing, or, just where a limit lets one more in, every second one.
    assert late[0] >= late[1] or late[1] >= late[0]
    for rounds in late:
        allowed = 1500 * round_s / cost_s
        assert len(rounds) <= 1.3 * allowed + 2
        assert len(rounds) >= min(1500, 0.25 * allowed) - 2


def test_of_a_pair_both_take_what_the_one_bears_who_accepts_and_everything_has_its_turn(in_memory):
    start = starts(2)
    begin(in_memory, start, "adpsgd")
    in_memory.step_all(4)
    for node in in_memory.nodes:
        node._service.takes = lambda peer: 0.25  # noqa: ARG005
    for node in in_memory.nodes:
        fetcher = node._parts.context.fetcher
        fetcher.spent = lambda received_bytes, share: shares.append((received_bytes, share))
    shares: list[tuple[int, float]] = []
    vectors = starts(2, seed=1)
    for model, vector in zip(in_memory.models, vectors, strict=True):
        model.vector[:] = vector
    in_memory.step_all(12)
    settle(in_memory)
    assert {share for _, share in shares} == {0.25}
    assert spread(in_memory.vectors()) < 1e-9
    assert in_memory.vectors().mean(axis=0) == pytest.approx(vectors.mean(axis=0), abs=1e-12)


def test_who_accepts_more_than_was_proposed_breaks_the_protocol(in_memory):
    begin(in_memory, starts(2), "adpsgd")
    in_memory.step_all(4)
    for node in in_memory.nodes:
        node._service.fitting = lambda pieces, share: 10**6  # noqa: ARG005
    in_memory.step_all(4)
    assert any(node.statistics().exchanges.get("protocol_error", 0) for node in in_memory.nodes)


def test_without_a_limit_nothing_is_left_out(in_memory: Cluster):
    begin(in_memory, starts(3), "dpsgd")
    in_memory.step_all(20)
    assert conservation(in_memory) is Conservation.DOUBLY
    assert min(node.statistics().method["rounds"] for node in in_memory.nodes) >= 15


@pytest.mark.parametrize("base", ["pull", "adpsgd"])
def test_small_slices_use_up_the_limit_as_well(limited, base):
    """A slice costs less than the smallest part that whole models are cut into, and is not to wait for its price."""
    limit = 4000
    settings = {"bandwidth_limit": f"{limit} B/s", "sparta": {"base": base, "fraction": 0.005}}
    cluster = Limited(np.zeros((2, 25 * limit)), method="sparta", **settings)
    limited.append(cluster)
    cluster.sweep(600)  # 30 s
    for arrived in cluster.arrived:
        late = sum(received for at_s, received in arrived if at_s >= 15.0)
        assert 0.8 * 15 * limit < late < 1.1 * 15 * limit
