"""What a method must remember survives a checkpoint, and no mass is in two of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from support import Cluster, VectorModel, wait_until

METHODS = ["pull", "gosgd", "sgp", "adpsgd", "dpsgd", "noloco", "elastic", "sparta"]


@pytest.fixture
def other():
    """The cluster that goes on from the checkpoints."""
    cluster = Cluster("in_memory")
    yield cluster
    cluster.close()


def _settings(method: str) -> dict[str, object]:
    return {"method": method, "noloco": {"every": 4}}


@pytest.mark.parametrize("method", METHODS)
def test_a_cluster_goes_on_from_its_checkpoints_with_the_state_of_its_method(in_memory, other, method):
    start = np.random.default_rng(1).normal(size=(4, 30))
    in_memory.start([VectorModel(row) for row in start], **_settings(method))
    in_memory.step_all(15, update=lambda index, model: model.vector.__iadd__(0.01 * (index + 1)))
    states = [node.state_dict() for node in in_memory.nodes]
    other.start([VectorModel(model.vector) for model in in_memory.models], **_settings(method))
    for node, state in zip(other.nodes, states, strict=True):
        node.load_state_dict(state)
        restored = node.state_dict()
        assert restored["clock"] == state["clock"]
        np.testing.assert_equal(restored["of_method"], state["of_method"])
    before = np.ptp(other.vectors(), axis=0).max()
    other.step_all(60)
    assert np.ptp(other.vectors(), axis=0).max() < before


def test_checkpoints_of_a_push_method_hold_all_mass_once_while_pushes_are_under_way(zeromq):
    zeromq.start([VectorModel([float(value)]) for value in range(4)], method="gosgd", wait_ms=0)
    wait_until(lambda: zeromq.step_all() or zeromq.nodes[0].statistics().exchanges.get("pushed", 0) > 5, "pushes")
    zeromq.step_all()  # leaves some under way
    for node in zeromq.nodes:
        node.method.probability = 0.0
    for node in zeromq.nodes:
        node.state_dict()  # settles what it has given
    masses = [node.state_dict()["of_method"]["mass"] for node in zeromq.nodes]
    arrived = sum(masses)

    def all_arrived() -> bool:
        # What was taken is the receiver's from its next step on.
        zeromq.step_all()
        return sum(node.state_dict()["of_method"]["mass"] for node in zeromq.nodes) == pytest.approx(1.0, abs=1e-9)

    assert arrived <= 1.0 + 1e-9
    wait_until(all_arrived, "all mass is in the checkpoints")


def test_outer_momentum_goes_on_where_the_checkpoint_was_made(in_memory, other):
    outer = {"every": 3, "learning_rate": 0.7, "momentum": 0.9}
    settings = {"pull_probability": 0.0, "outer": outer}
    in_memory.start([VectorModel(np.zeros(5)), VectorModel(np.zeros(5))], **settings)
    in_memory.step_all(10, update=lambda _, model: model.vector.__iadd__(1.0))
    state = in_memory.nodes[0].state_dict()
    other.start([VectorModel(in_memory.models[0].vector), VectorModel(np.zeros(5))], **settings)
    resumed = other.nodes[0]
    resumed.load_state_dict(state)
    in_memory.step_all(7, update=lambda _, model: model.vector.__iadd__(1.0))
    for _ in range(7):
        other.models[0].vector += 1.0
        resumed.step(1.0)
    assert other.models[0].vector == pytest.approx(in_memory.models[0].vector)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gosgd"}, "made with method gosgd, the cluster file says pull"),
        ({"clock": float("nan")}, "clock of nan"),
        ({"clock": -1.0}, "clock of -1"),
    ],
)
def test_a_checkpoint_that_cannot_be_right_is_refused(in_memory, change, message):
    (node,) = in_memory.start([VectorModel([0.0])])
    with pytest.raises(ConfigError, match=message):
        node.load_state_dict({**node.state_dict(), **change})


def test_a_checkpoint_comes_before_the_first_step(in_memory):
    (node,) = in_memory.start([VectorModel([0.0])])
    state = node.state_dict()
    node.step(1.0)
    with pytest.raises(ConfigError, match="before the first step"):
        node.load_state_dict(state)


@pytest.mark.parametrize("mass", [-0.1, 5.0, float("nan")])
def test_a_mass_that_cannot_be_is_refused(in_memory, mass):
    node, _ = in_memory.start([VectorModel([0.0]), VectorModel([1.0])], method="gosgd")
    state = node.state_dict()
    state["of_method"]["mass"] = mass
    with pytest.raises(ConfigError, match="expected a mass from 0 to 2"):
        node.load_state_dict(state)


def test_the_adapters_checkpoint_is_read_by_torch_without_trusting_the_file(tmp_path):
    config = ClusterConfig.for_localhost(1, method="noloco", outer={"every": 2})
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with DpwaPyTorchAdapter(model, "w1", config) as node:
        for _ in range(5):
            with torch.no_grad():
                model.weight += random.Random(0).random()
            node.step(1.0)
        torch.save({"model": model.state_dict(), "dpwa": node.state_dict()}, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(loaded["model"])
    with DpwaPyTorchAdapter(other, "w1", config) as node:
        node.load_state_dict(loaded["dpwa"])
        assert node.statistics().clock == 5.0
        assert node.state_dict()["of_outer"]["steps"] == 5
