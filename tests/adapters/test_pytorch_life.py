"""How the PyTorch adapter begins and ends: names and configs, `attach`, and every way of closing."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DistributedSampler
from torch_support import linear, local_cluster, until_all_have_blended

from dpwa.adapters.attaching import attach
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, NodeClosed
from dpwa.launch.ports import free_ports
from dpwa.node.belonging import LEAVE_FILE
from dpwa.node.node import Node
from dpwa.node.publishing import SnapshotPublisher
from support import events_of, wait_until


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    """Where the nodes of a test write, as a launcher would set it."""
    folder = tmp_path / "run"
    monkeypatch.setenv("DPWA_RUN_DIR", str(folder))
    return folder


def dpwa_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpwa-")]


# --- Which node, which cluster ----------------------------------------------------------------------------------------


def test_without_a_config_the_node_is_alone_writes_nothing_and_starts_no_thread(tmp_path):
    threads, fds = threading.enumerate(), psutil.Process().num_fds()
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        assert (adapter.name, adapter.run_dir) == ("alone", None)
        adapter.step(0.5)
        assert adapter.finish()
        assert threading.enumerate() == threads
    assert adapter.statistics().step == 1
    assert psutil.Process().num_fds() == fds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{"name": "w3"}, {"DPWA_NODE": "w3"}])
def test_a_name_without_a_config_is_the_name_of_the_node_alone(monkeypatch, given):
    for variable in given.keys() - {"name"}:
        monkeypatch.setenv(variable, given[variable])
    with DpwaPyTorchAdapter(linear(0.0), given.get("name")) as adapter:
        assert adapter.name == "w3"
        assert adapter.config == ClusterConfig.alone("w3")


def test_name_and_config_come_from_the_environment_that_the_launcher_sets(monkeypatch, tmp_path, run_dir):
    config = local_cluster(3)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    monkeypatch.setenv("DPWA_CONFIG", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("DPWA_NODE", "w2")
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        assert (adapter.name, adapter.config, adapter.run_dir) == ("w2", config, run_dir)
    with DpwaPyTorchAdapter(linear(0.0), "w3") as adapter:
        assert adapter.name == "w3"


def test_rank_and_world_size_are_all_that_a_distributed_sampler_takes(run_dir):  # noqa: ARG001 (the nodes write there)
    config, data = local_cluster(3), range(30)
    seen: list[int] = []
    for place, name in enumerate(("w1", "w2", "w3")):
        with DpwaPyTorchAdapter(linear(0.0), name, config) as node:
            assert (node.rank, node.world_size) == (place, 3)
            seen += DistributedSampler(data, num_replicas=node.world_size, rank=node.rank)
    assert sorted(seen) == list(data)


def test_a_node_alone_has_rank_0_of_1():
    with DpwaPyTorchAdapter(linear(0.0)) as node:
        assert (node.rank, node.world_size) == (0, 1)


def test_empty_variables_count_as_not_set(monkeypatch):
    for variable in ("DPWA_CONFIG", "DPWA_NODE", "DPWA_RUN_DIR"):
        monkeypatch.setenv(variable, "")
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        assert (adapter.name, adapter.run_dir) == ("alone", None)


def test_a_node_started_by_hand_gets_a_run_folder_that_a_change_of_folder_does_not_move(monkeypatch, tmp_path):
    config = local_cluster(1, run="by-hand")
    (tmp_path / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    with DpwaPyTorchAdapter(linear(0.0), config="cluster.yaml") as adapter:
        assert adapter.run_dir.parent == tmp_path / "runs"
        assert adapter.run_dir.name.startswith("by-hand-")
        monkeypatch.chdir(tmp_path / "elsewhere")
        adapter.step(1.0)
    assert (adapter.run_dir / "nodes" / "w1" / "model.safetensors").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_relative_run_folder_is_meant_from_where_the_node_started(monkeypatch, tmp_path):
    monkeypatch.setenv("DPWA_RUN_DIR", "mine")
    (tmp_path / "elsewhere").mkdir()
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        monkeypatch.chdir(tmp_path / "elsewhere")
        adapter.step(1.0)
    assert (tmp_path / "mine" / "nodes" / "alone" / "model.safetensors").is_file()


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r'looking for node "w11": .* did you mean "w1"'):
        DpwaPyTorchAdapter(linear(0.0), "w11", local_cluster())


def test_several_nodes_and_no_name_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"which node is this\? Expected one of w1, w2, got no name; .*DPWA_NODE"):
        DpwaPyTorchAdapter(linear(0.0), config=local_cluster())


def test_a_port_in_use_is_refused_with_node_and_address_and_leaves_nothing_running(run_dir):
    config = local_cluster()
    with socket.create_server(("127.0.0.1", config.node("w1").port)):
        fds = psutil.Process().num_fds()
        with pytest.raises(ConfigError, match=f"w1.*localhost:{config.node('w1').port}"):
            DpwaPyTorchAdapter(linear(0.0), "w1", config)
        assert dpwa_threads() == []
        assert psutil.Process().num_fds() == fds
    assert not (run_dir / "nodes" / "w1" / "model.safetensors").exists()
    with DpwaPyTorchAdapter(linear(0.0), "w1", config) as adapter:  # free again
        adapter.step(1.0)


# --- attach -----------------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step of an ordinary loop that knows nothing of dpwa."""
    optimizer.zero_grad()
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.usefixtures("run_dir")
def test_attach_makes_every_step_of_the_optimizer_a_step_of_the_node():
    config, models = local_cluster(interpolation="loss"), [linear(1.0), linear(2.0)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.001) for model in models]
    latest = [torch.tensor(3.0), torch.tensor(1.0)]
    with (
        attach(models[0], optimizers[0], loss=lambda: latest[0], name="w1", config=config) as first,
        attach(models[1], optimizers[1], loss=lambda: latest[1], name="w2", config=config) as second,
    ):
        rounds = []

        def step() -> None:
            rounds.append(1)
            for model, optimizer in zip(models, optimizers, strict=True):
                train(model, optimizer)

        until_all_have_blended([first, second], step)
        assert first.statistics().step == second.statistics().step == len(rounds)
        assert (first.statistics().loss, second.statistics().loss) == (3.0, 1.0)
        assert first.statistics().last_factor == pytest.approx(0.75)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_does_not_count(fused):
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    steps = []
    with attach(model, optimizer) as adapter:
        for overflows in (False, True, False):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(1, 3)).sum()).backward()
            if overflows:
                model.weight.grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
            steps.append(adapter.statistics().step)
    assert steps == [1, 1, 2]


@pytest.mark.parametrize("method", ["step", "update_send", "update_wait"])
def test_a_step_beside_attach_is_refused_with_what_to_do_and_counts_nothing(method):
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer) as adapter:
        loss = train(model, optimizer)
        with pytest.raises(ConfigError, match=rf"twice; leave node\.{method} out, and give the loss to attach: loss="):
            getattr(adapter, method)(loss)
        train(model, optimizer)
        assert (adapter.statistics().step, adapter.clock) == (2, 2.0)
    with pytest.raises(NodeClosed):
        getattr(adapter, method)(loss)


def test_after_close_an_attached_optimizer_goes_on_without_dpwa():
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer) as adapter:
        train(model, optimizer)
    before = model.weight.detach().clone()
    train(model, optimizer)
    assert adapter.statistics().step == 1
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "settings", [{"interpolation": "loss"}, {"interpolation": "loss_divergence"}, {"divergence_threshold": 0.1}]
)
def test_attach_without_a_loss_is_refused_before_anything_runs_when_the_interpolation_needs_one(run_dir, settings):
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"looks at the loss; pass loss=\.\.\."):
        attach(model, optimizer, name="w1", config=local_cluster(**settings))
    assert dpwa_threads() == []
    assert not run_dir.exists()
    train(model, optimizer)  # and no hook either


def test_a_bad_loss_function_is_reported_by_the_step_that_calls_it():
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        attach(model, optimizer, loss=lambda: torch.zeros(3)),
        pytest.raises(ConfigError, match=r"loss: .* a tensor of shape \(3,\)"),
    ):
        train(model, optimizer)


@pytest.mark.parametrize("method", ["step", "update_wait"])
def test_whoever_is_asked_to_leave_leaves_in_the_next_step_or_half_of_it(run_dir, method):
    port = free_ports(1)[0]
    config = {"nodes": [{"name": "w1", "port": port}], "join": [f"127.0.0.1:{port}"]}
    left: list[object] = []

    def use(adapter: DpwaPyTorchAdapter) -> bool:
        try:
            getattr(adapter, method)(1.0)
        except SystemExit as end:
            left.append(end.code)
        return bool(left)

    with DpwaPyTorchAdapter(linear(5.0), "w1", config) as adapter:
        use(adapter)
        (adapter.folder / LEAVE_FILE).touch()  # as `dpwa leave` does
        wait_until(lambda: use(adapter), "the end of the script")
    assert left == [0]
    assert (run_dir / "nodes" / "w1" / "model.safetensors").exists()


# --- Closing ----------------------------------------------------------------------------------------------------------


def test_the_context_manager_closes_and_saves_when_the_loop_fails_and_lets_the_error_through(run_dir):
    def loop() -> None:
        with DpwaPyTorchAdapter(linear(5.0), "w1", local_cluster()) as adapter:
            adapter.step(1.0)
            raise KeyError("no such batch")

    with pytest.raises(KeyError, match="no such batch"):
        loop()
    assert dpwa_threads() == []
    assert load_file(run_dir / "nodes" / "w1" / "model.safetensors")["bias"].tolist() == [5.0, 5.0]


def test_closing_twice_does_nothing_more_and_a_closed_adapter_says_so(run_dir):
    model = linear(5.0)
    adapter = DpwaPyTorchAdapter(model, "w1", local_cluster())
    adapter.step(1.0)
    assert not adapter.closed
    adapter.close()
    assert adapter.closed
    nn.init.zeros_(model.bias)
    adapter.close()
    assert load_file(run_dir / "nodes" / "w1" / "model.safetensors")["bias"].tolist() == [5.0, 5.0]
    for use in (adapter.step, adapter.update_send, adapter.update_wait, adapter.finish):
        with pytest.raises(NodeClosed, match="w1 is closed"):
            use()


FORGETFUL = """
import time
import torch
from dpwa.adapters.pytorch import DpwaPyTorchAdapter

model = torch.nn.Linear(3, 2)
torch.nn.init.constant_(model.bias, 5.0)
adapter = DpwaPyTorchAdapter(model)
for _ in range(3):
    adapter.step(1.0)
print(time.time())
"""


@pytest.mark.heavy
def test_a_script_that_never_closes_ends_at_once_and_its_model_is_saved(monkeypatch, run_dir, tmp_path):
    (tmp_path / "cluster.yaml").write_text(local_cluster(wait_ms=0).to_yaml(), encoding="utf-8")
    monkeypatch.setenv("DPWA_CONFIG", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("DPWA_NODE", "w2")
    done = subprocess.run([sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=False)
    ended_s = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended_s - float(done.stdout) < 5.0  # 2 s for close, and time for the interpreter to leave torch
    assert load_file(run_dir / "nodes" / "w2" / "model.safetensors")["bias"].tolist() == [5.0, 5.0]
    assert '"event":"close"' in (run_dir / "nodes" / "w2" / "events.jsonl").read_text(encoding="utf-8")


FORKING = """
import multiprocessing, sys, torch
from dpwa.adapters.pytorch import DpwaPyTorchAdapter

def made(name):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.bias, 5.0)
    adapter = DpwaPyTorchAdapter(model, name)
    adapter.step(1.0)
    return adapter

def train():
    adapter = made("w2")
    if sys.argv[1] == "fails":
        raise KeyError("no such batch")

parent = made("w1")
child = multiprocessing.get_context("fork").Process(target=train)
child.start()
child.join()
assert child.exitcode == (sys.argv[1] == "fails"), child.exitcode
assert not parent.closed
parent.step(1.0)
print(parent.statistics().step)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["returns", "fails"])
def test_a_node_in_a_forked_process_is_closed_at_its_end_and_the_parents_node_is_not(
    monkeypatch, run_dir, tmp_path, how
):
    (tmp_path / "cluster.yaml").write_text(local_cluster(wait_ms=0).to_yaml(), encoding="utf-8")
    monkeypatch.setenv("DPWA_CONFIG", str(tmp_path / "cluster.yaml"))
    script = [sys.executable, "-c", FORKING, how]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    for name in ("w1", "w2"):
        assert load_file(run_dir / "nodes" / name / "model.safetensors")["bias"].tolist() == [5.0, 5.0]
        assert len(events_of(run_dir, name, "close")) == 1


LARGE = (Node, TorchModel, SnapshotPublisher)


@pytest.mark.seconds
@pytest.mark.usefixtures("run_dir")
@pytest.mark.parametrize("method", ["pull", "gosgd", "adpsgd", "dpsgd", "noloco"])
def test_a_closed_node_is_gone_at_once_and_does_not_wait_for_the_garbage_collector(method):
    """Its snapshots are as large as several models, and its shared segment holds a file descriptor."""
    config = local_cluster(method=method)
    gc.collect()
    before = {id(found) for found in gc.get_objects() if type(found) in LARGE}
    gc.disable()
    try:
        with DpwaPyTorchAdapter(linear(0.0), "w1", config) as adapter:
            adapter.step(1.0)
            assert set(LARGE) <= {type(found) for found in gc.get_objects()}
        del adapter
        assert [found for found in gc.get_objects() if type(found) in LARGE and id(found) not in before] == []
    finally:
        gc.enable()
