"""The PyTorch adapter as a training script uses it: over real sockets, two nodes in one process."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch_support import DEVICES, linear, local_cluster, until_all_have_blended

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from support import wait_until


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    """Where the nodes of a test write, as a launcher would set it."""
    folder = tmp_path / "run"
    monkeypatch.setenv("DPWA_RUN_DIR", str(folder))
    return folder


@pytest.fixture
def start(run_dir):  # noqa: ARG001  (the nodes write there)
    """Starts one node per model; closes all at the end."""
    started: list[DpwaPyTorchAdapter] = []

    def start_nodes(*models: nn.Module, **settings: object) -> list[DpwaPyTorchAdapter]:
        config = local_cluster(len(models), **settings)
        for number, model in enumerate(models, start=1):
            started.append(DpwaPyTorchAdapter(model, f"w{number}", config))
        return started

    yield start_nodes
    for adapter in started:
        adapter.close()


def step_all(adapters: Sequence[DpwaPyTorchAdapter], times: int = 1, loss: float = 1.0) -> None:
    """Each node makes one step in turn, `times` times."""
    for _ in range(times):
        for adapter in adapters:
            adapter.step(loss)


class Mixed(nn.Module):
    """Something of everything: BatchNorm, tied weights, half precision, a frozen layer, an integer buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.half = nn.Linear(3, 2, dtype=torch.bfloat16)
        self.frozen = linear(7.0).requires_grad_(False)
        self.register_buffer("vocabulary", torch.arange(4))
        for parameter in self.parameters():
            if parameter.requires_grad:
                nn.init.constant_(parameter, value)


# --- Training together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blend", ["delta", "absolute"])
def test_two_nodes_that_do_not_train_come_to_consensus(start, device, blend):
    models = [Mixed(0.0).to(device), Mixed(4.0).to(device)]
    models[1].norm.running_var.fill_(9.0)
    adapters = start(*models, blend=blend)
    until_all_have_blended(adapters, lambda: step_all(adapters))
    step_all(adapters, 30)
    ours, theirs = (model.state_dict() for model in models)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-2)
    assert 0 < ours["encoder.weight"].unique().item() < 4
    assert 1 < ours["norm.running_var"][0] < 9
    assert ours["frozen.weight"].unique().tolist() == [7.0]
    assert models[0].decoder.weight is models[0].encoder.weight
    assert all(adapter.statistics().failures == 0 for adapter in adapters)


def pull_towards(model: nn.Module, optimizer: torch.optim.Optimizer, target: float) -> torch.Tensor:
    """One training step; the model alone would end with all its values at the target."""
    optimizer.zero_grad()
    loss = sum((parameter - target).square().mean() for parameter in model.parameters())
    loss.backward()
    optimizer.step()
    return loss


def test_the_pair_update_send_and_update_wait_trains_two_nodes_together(start):
    models, losses = [linear(0.0), linear(0.0)], [None, None]
    adapters = start(*models)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for _ in range(100):
        # Both send before either waits, as nodes do that are processes of their own.
        for adapter, loss in zip(adapters, losses, strict=True):
            adapter.update_send(loss)
        losses = [pull_towards(*trained) for trained in zip(models, optimizers, (0.0, 4.0), strict=True)]
        for adapter, loss in zip(adapters, losses, strict=True):
            adapter.update_wait(loss)
    assert [adapter.statistics().step for adapter in adapters] == [100, 100]
    assert [adapter.statistics().loss for adapter in adapters] == pytest.approx([loss.item() for loss in losses])
    assert all(adapter.statistics().blended > 50 for adapter in adapters)
    for model in models:
        assert model.weight.mean().item() == pytest.approx(2.0, abs=0.7)  # alone: 0 and 4


@pytest.mark.seconds
def test_two_hundred_steps_leave_no_tensor_thread_or_socket_behind(start):
    adapters = start(linear(0.0), linear(1.0), metrics_interval_ms=50)
    until_all_have_blended(adapters, lambda: step_all(adapters))
    step_all(adapters, 50)

    def descriptors_and_threads() -> tuple[int, int]:
        process = psutil.Process()
        return process.num_fds(), process.num_threads()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    fds, threads, tensors_before = *descriptors_and_threads(), tensors()
    step_all(adapters, 200)

    def no_more_than_before() -> bool:
        fds_later, threads_later = descriptors_and_threads()
        return fds_later <= fds and threads_later <= threads

    wait_until(no_more_than_before, "what was open for a moment, such as a file of the journal, is closed")
    # The few snapshot buffers are made when first needed, each with a view per tensor.
    assert tensors() <= tensors_before + 20


# --- The loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "noted"),
    [
        (1.5, 1.5),
        (2, 2.0),
        (np.float32(1.5), 1.5),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor([1.5], requires_grad=True) * 2, 3.0),
        (None, None),
    ],
    ids=["float", "int", "numpy", "0-dim", "bfloat16", "1 element with grad", "none"],
)
def test_a_loss_may_be_a_number_or_a_tensor_of_one_element(loss, noted):
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        for report in (adapter.step, adapter.update_send, adapter.update_wait):
            report(loss)
            assert adapter.statistics().loss == noted


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (torch.zeros(2), r"a tensor of shape \(2,\)"),
        (torch.zeros(3, 1), r"a tensor of shape \(3, 1\)"),
        (torch.zeros(0), r"a tensor of shape \(0,\)"),
        ("low", "'low'"),
        ("0.5", "'0.5'"),
        ([0.5], r"\[0\.5\]"),
    ],
)
def test_a_loss_that_is_no_single_number_is_refused_with_what_came(loss, what):
    with DpwaPyTorchAdapter(linear(0.0)) as adapter:
        for report in (adapter.step, adapter.update_send, adapter.update_wait):
            with pytest.raises(ConfigError, match=f"loss: expected a number or a tensor of one element, got {what}"):
                report(loss)
        assert adapter.statistics().step == 0


# --- The run folder ---------------------------------------------------------------------------------------------------


def strict_json_lines(path: Path) -> list[dict[str, object]]:
    """The objects of a file of JSON lines, none of which may hold NaN or Infinity."""

    def refuse(constant: str) -> object:
        raise AssertionError(f"{path.name} holds {constant}, which is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_run_folder_holds_config_journal_and_the_whole_model(start, run_dir):
    model = Mixed(1.0)
    adapters = start(model, Mixed(3.0), metrics_interval_ms=10)
    until_all_have_blended(adapters, lambda: step_all(adapters))
    adapters[0].log(epoch=1.5, test_accuracy=torch.tensor(0.5), best=float("inf"))
    adapters[0].step(float("nan"))
    for adapter in adapters:
        adapter.close()

    assert ClusterConfig.load(run_dir / "config.yaml") == adapters[0].config
    events = strict_json_lines(run_dir / "nodes" / "w1" / "events.jsonl")
    assert (events[0]["event"], events[-1]["event"]) == ("start", "close")
    blends = [event for event in events if event.get("outcome") == "blended"]
    assert len(blends) == adapters[0].statistics().blended
    assert blends[0]["peer"] == "w2"
    assert 0 < blends[0]["factor"] <= 1
    last = strict_json_lines(run_dir / "nodes" / "w1" / "metrics.jsonl")[-1]
    assert last["step"] == adapters[0].statistics().step
    assert (last["loss"], last["epoch"], last["test_accuracy"], last["best"]) == ("nan", 1.5, 0.5, "inf")

    path = run_dir / "nodes" / "w1" / "model.safetensors"
    saved, state = load_file(path), model.state_dict()
    assert state.keys() - saved.keys() == {"decoder.weight"}
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata()["tied"] == "decoder.weight=encoder.weight"


def test_a_model_that_was_never_trained_is_not_saved(run_dir):
    with DpwaPyTorchAdapter(linear(0.0), config=local_cluster(1)):
        pass
    assert not (run_dir / "nodes" / "w1" / "model.safetensors").exists()


def test_a_save_that_fails_is_told_and_leaves_the_file_of_the_run_before(monkeypatch, run_dir):
    config, path = local_cluster(1), run_dir / "nodes" / "w1" / "model.safetensors"
    with DpwaPyTorchAdapter(linear(1.0), config=config) as adapter:
        adapter.step(1.0)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError("no space left on device")

    again = DpwaPyTorchAdapter(linear(2.0), config=config)
    again.step(1.0)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            again.close()
    assert path.read_bytes() == before
    with DpwaPyTorchAdapter(linear(3.0), config=config) as adapter:
        adapter.step(1.0)
    assert load_file(path)["weight"].unique().tolist() == [3.0]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "events.jsonl",
        "metrics.jsonl",
        "model.safetensors",
        "process",
    ]
