"""`finish(merge=True)` of PyTorch models: parameters and statistics become the same on every node, and the files."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch_support import DEVICES, linear, local_cluster

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from support import DEADLINE_S, events_of

pytestmark = pytest.mark.seconds


def network(dtype: torch.dtype, device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(device=device, dtype=dtype)


def merged(adapters: Sequence[DpwaPyTorchAdapter]) -> list[bool]:
    """The answers of `finish(merge=True)` of several nodes."""
    answers: dict[int, bool] = {}

    def end(index: int) -> None:
        answers[index] = adapters[index].finish(merge=True)

    threads = [threading.Thread(target=end, args=(index,), daemon=True) for index in range(len(adapters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return [answers[index] for index in range(len(adapters))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_all_have_the_mean_rounded_once_and_save_it(tmp_path, monkeypatch, dtype, device):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path))
    config = local_cluster(3, method="adpsgd", pull_probability=0.0)
    models = [network(dtype, device) for _ in range(3)]
    adapters = [DpwaPyTorchAdapter(model, f"w{index + 1}", config) for index, model in enumerate(models)]
    tensors = [dict(model.named_parameters()) | dict(model.named_buffers()) for model in models]
    places = [model[0].weight for model in models]
    with torch.no_grad():
        for index, model in enumerate(models):
            torch.manual_seed(index + 1)
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape))
    for adapter in adapters:
        adapter.step(1.0)
    before = [{name: tensor.detach().cpu().clone() for name, tensor in one.items()} for one in tensors]
    assert merged(adapters) == [True, True, True]
    for name, first in tensors[0].items():
        if not first.is_floating_point():
            continue
        total = before[0][name].double() + before[1][name].double() + before[2][name].double()
        expected = (total / 3).to(dtype)
        for one in tensors:
            assert torch.equal(one[name].detach().cpu(), expected), name
    assert all(model[0].weight is place for model, place in zip(models, places, strict=True))
    assert {adapter.clock for adapter in adapters} == {1.0}
    for adapter in adapters:
        adapter.close()
    saved = [load_file(tmp_path / "nodes" / f"w{number}" / "model.safetensors") for number in (1, 2, 3)]
    assert all(torch.equal(saved[0][name], one[name]) for one in saved for name in saved[0])
    assert all(torch.equal(saved[0][name].cpu(), tensors[0][name].detach().cpu()) for name in saved[0])


def test_a_merged_node_that_is_started_again_keeps_the_merged_model(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path))
    config = local_cluster(2, method="adpsgd", pull_probability=0.0, checkpoint={"every_s": 60.0})

    def made(index: int, value: float) -> DpwaPyTorchAdapter:
        model = linear(value)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return DpwaPyTorchAdapter(model, f"w{index + 1}", config, optimizer=optimizer)

    adapters = [made(index, 1.0 + 2.0 * index) for index in range(2)]
    for adapter in adapters:
        adapter.step(1.0)
    assert merged(adapters) == [True, True]
    for adapter in adapters:
        adapter.close()
    assert [len(events_of(tmp_path, name, "checkpoint")) for name in ("w1", "w2")] == [2, 2], "one is from before"
    with made(1, 9.0) as again:
        assert (again.resumed_step, again._tensors.module.weight.unique().tolist()) == (1, [2.0])
    assert load_file(tmp_path / "nodes" / "w2" / "model.safetensors")["weight"].unique().tolist() == [2.0]


def test_a_tensor_that_holds_nan_is_replaced_too():
    config = local_cluster(3)
    models = [network(torch.float32, "cpu") for _ in range(3)]
    adapters = [DpwaPyTorchAdapter(model, f"w{index + 1}", config) for index, model in enumerate(models)]
    with torch.no_grad():
        models[1][0].weight.fill_(float("nan"))
    for adapter in adapters:
        adapter.step(1.0)
    assert merged(adapters) == [True, True, True]
    assert [adapter.statistics().merged_models for adapter in adapters] == [2, 2, 2]
    assert all(torch.equal(model[0].weight, models[0][0].weight) for model in models)
    assert torch.isfinite(models[1][0].weight).all()
    for adapter in adapters:
        adapter.close()
