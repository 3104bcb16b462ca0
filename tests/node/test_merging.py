"""`finish(merge=True)`: all nodes that are there end with one model, the mean of their last ones, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dpwa.node import farewell
from dpwa.node.node import Node
from support import DEADLINE_S, Cluster, VectorModel, wait_until

METHODS = ["pull", "gosgd", "sgp", "adpsgd", "dpsgd", "noloco", "elastic", "sparta", "diloco"]

QUICK = {"flow_control": {"probe_s": 0.05, "probe_max_s": 0.2}}


@pytest.fixture(autouse=True)
def no_long_silences(monkeypatch):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)


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
