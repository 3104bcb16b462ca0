"""Which node of which cluster an adapter is, and what it says of itself."""

from __future__ import annotations

import copy
import logging
import socket

import pytest
import torch
from torch import nn

from dpwa import ClusterConfig, ConfigError, DpwaPyTorchAdapter, NodeClosed, attach
from dpwa.launch.ports import free_ports


@pytest.fixture
def config() -> ClusterConfig:
    return ClusterConfig.for_localhost(2, ports=free_ports(2))


def _warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_name_without_a_cluster_is_warned_of_once(caplog):
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1") as node:
        assert (node.name, node.world_size, node.folder) == ("w1", 1, None)
    assert len(_warnings(caplog)) == 1
    assert "node w1 trains alone: it has a name but no cluster" in _warnings(caplog)[0]


def test_a_script_alone_is_not_warned_of(caplog):
    with DpwaPyTorchAdapter(nn.Linear(2, 1)):
        pass
    assert _warnings(caplog) == []


def test_a_cluster_can_be_a_mapping():
    ports = free_ports(2)
    values = {"nodes": [{"name": f"w{index}", "port": port} for index, port in enumerate(ports)], "seed": 7}
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", values) as node:
        assert (node.rank, node.world_size, node.config.seed) == (1, 2, 7)
    with pytest.raises(ConfigError, match='seeds: unknown key, did you mean "seed"'):
        DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", {**values, "seeds": 7})


def test_the_words_of_2017_work_with_a_hint(config, caplog):
    model = nn.Linear(2, 1)
    with DpwaPyTorchAdapter(net=model, name="w2", config_file=config) as node:
        assert (node.name, node.rank) == ("w2", 1)
    assert _warnings(caplog)[0] == "net=... is the 2017 dpwa's word; it is model=... now"
    with pytest.raises(ConfigError, match="model and net are the same argument"):
        DpwaPyTorchAdapter(model, net=model)


@pytest.mark.parametrize("model", [None, [nn.Linear(2, 1)], "model"])
def test_a_model_that_is_none_is_named_by_its_type(model):
    with pytest.raises(ConfigError, match=rf"model: expected a torch.nn.Module, got {type(model).__name__}"):
        DpwaPyTorchAdapter(model)


def test_a_cell_that_is_run_again_closes_the_adapter_of_the_first_run(config, caplog):
    first = DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config)
    second = DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config)
    assert first.closed
    assert _warnings(caplog) == ["node w1: the adapter made before in this process is closed for this one"]
    with pytest.raises(NodeClosed):
        first.step(1.0)
    second.step(1.0)
    other = DpwaPyTorchAdapter(nn.Linear(2, 1), "w2", config)
    assert not second.closed
    for adapter in (second, other):
        adapter.close()


class Wrapped:
    """As Accelerate's and Lightning's optimizers: another class, with the real one inside."""

    def __init__(self, optimizer: object) -> None:
        self.optimizer = optimizer


def test_attach_looks_into_the_wrappers_of_other_frameworks():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, Wrapped(Wrapped(optimizer))) as node:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert node.statistics().step == 1


@pytest.mark.parametrize("optimizer", [None, [], nn.Linear(2, 1).parameters(), Wrapped(None), Wrapped("sgd")])
def test_what_is_no_optimizer_is_refused_before_the_port_is_taken(config, optimizer):
    with pytest.raises(ConfigError, match=r"attach: expected a torch\.optim\.Optimizer"):
        attach(nn.Linear(2, 1), optimizer, name="w1", config=config)
    DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config).close()


class Refusing(torch.optim.SGD):
    """An optimizer that takes no hooks."""

    def register_step_post_hook(self, hook: object) -> None:  # noqa: ARG002
        raise RuntimeError("no hooks here")


def test_an_attach_that_fails_leaves_no_node_behind(config, caplog):
    model, failures = nn.Linear(2, 1), []
    try:
        attach(model, Refusing(model.parameters(), lr=0.1), name="w1", config=config)
    except RuntimeError as error:
        failures.append(error)  # and with it the frames, as a notebook keeps those of the last error
    assert [str(error) for error in failures] == ["no hooks here"]
    with attach(model, torch.optim.SGD(model.parameters(), lr=0.1), name="w1", config=config) as node:
        assert node.name == "w1"
    assert _warnings(caplog) == []


def test_an_adapter_whose_port_is_taken_is_nobodys_former_one(config, caplog):
    failures = []
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", config.node("w1").port))
        holder.listen()
        try:
            DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config)
        except ConfigError as error:
            failures.append(error)
    assert "cannot listen on" in str(failures[0])
    DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config).close()
    assert _warnings(caplog) == []


def test_a_module_that_holds_its_adapter_can_be_copied(config):
    model = nn.Linear(2, 1)
    with DpwaPyTorchAdapter(model, "w1", config) as node:
        model.node = node
        average = copy.deepcopy(model)
        assert average.node is node
        assert average.weight is not model.weight


def test_an_adapter_says_who_it_is_and_what_it_did(config):
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config) as node:
        node.step(1.0)
        assert repr(node) == "<dpwa node w1 (of 2): 1 steps, 0 blended>"
        assert node.clock == 1.0
        assert node.folder == node.run_dir / "nodes" / "w1"
        assert node.folder.is_dir()
    assert repr(node) == "<dpwa node w1 (closed): 1 steps, 0 blended>"


class OnGpu(torch.Tensor):
    """What `torch.load(map_location="cuda")` makes of a tensor: its values are numpy's only after a copy."""

    def numpy(self) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_state_that_was_loaded_onto_a_gpu_is_restored():
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), method="noloco")
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config) as first:
        first.step(1.0)
        state = first.state_dict()

    def moved(value: object) -> object:
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        return value.as_subclass(OnGpu) if isinstance(value, torch.Tensor) else value

    def has_moved(value: object) -> bool:
        return isinstance(value, OnGpu) or (isinstance(value, dict) and any(map(has_moved, value.values())))

    assert has_moved(moved(state))
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config) as second:
        second.load_state_dict(moved(state))
        assert second.clock == 1.0


@pytest.mark.parametrize(("on_failure", "waits_for_restarts"), [("restart", True), ("continue", False)])
def test_a_node_knows_whether_the_launcher_starts_its_peers_anew(config, monkeypatch, on_failure, waits_for_restarts):
    monkeypatch.setenv("DPWA_ON_FAILURE", on_failure)
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w1", config) as node:
        assert node._node._boundary.farewell.peers_restart is waits_for_restarts
