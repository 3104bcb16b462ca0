"""Which tensors of a model are exchanged, and that what is not exchanged is told."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch_support import local_cluster, until_all_have_blended

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.tensors import TorchModel
from dpwa.errors import ConfigError
from support import VectorModel

NUMBERS = ("exchanged_tensors", "exchanged_bytes", "kept_tensors", "kept_bytes", "ignored_tensors", "ignored_bytes")


def names(model: nn.Module, **settings: object) -> list[str]:
    """Which tensors of a model are exchanged."""
    return [spec.name for spec in TorchModel(model, local_cluster(**settings)).layout.tensors]


def counted(model: nn.Module, **settings: object) -> tuple[int, ...]:
    """What the statistics say of a model."""
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0, **settings)) as adapter:
        statistics = adapter.statistics()
    return tuple(getattr(statistics, number) for number in NUMBERS)


class Causal(nn.Module):
    """A layer with a causal mask in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def test_an_infinite_mask_stays_local_is_named_in_one_warning_and_the_rest_is_exchanged(caplog):
    models = [Causal(), Causal()]
    config = local_cluster(constant={"value": 0.5})
    with (
        caplog.at_level(logging.WARNING, "dpwa"),
        DpwaPyTorchAdapter(models[0], "w1", config) as first,
        DpwaPyTorchAdapter(models[1], "w2", config) as second,
    ):
        until_all_have_blended([first, second], lambda: (first.step(1.0), second.step(1.0)))
        assert "rejected" not in first.statistics().exchanges
    told = [record.message for record in caplog.records if "mask" in record.message]
    assert len(told) == 2  # one of each node
    assert "not exchanged, because they hold NaN, infinite or no values: buffers mask;" in told[0]
    assert models[0].mask[0, 1] == -torch.inf
    assert names(models[0]) == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_is_refused_by_name(value):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.bias, value)
    with pytest.raises(ConfigError, match=r"tensor bias: holds NaN or infinite values, .* initialise it or load"):
        DpwaPyTorchAdapter(model)


class Quantised(nn.Module):
    """A layer as quantisation-aware training makes it: observers begin with infinite bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.fake = quantization.FakeQuantize(quantization.MovingAverageMinMaxObserver, reduce_range=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fake(self.layer(inputs))


def test_a_model_with_observers_for_quantisation_is_exchanged_before_and_after_its_first_batch():
    models, config = [Quantised(), Quantised()], local_cluster()
    assert not any(name.endswith(("min_val", "max_val")) for name in names(models[0]))
    with (
        DpwaPyTorchAdapter(models[0], "w1", config) as first,
        DpwaPyTorchAdapter(models[1], "w2", config) as second,
    ):

        def step() -> None:
            for model, adapter in zip(models, (first, second), strict=True):
                adapter.step(model(torch.ones(3, 4)).sum())

        until_all_have_blended([first, second], step)
        for adapter in (first, second):
            assert "rejected" not in adapter.statistics().exchanges
            assert adapter.statistics().ignored_tensors > 0
    assert torch.isfinite(models[0].fake.activation_post_process.min_val)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), r"is of the layout torch\.sparse_coo, expected an ordinary dense tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), r"is of the layout torch\.sparse_csr, .*make it with \.to_dense\(\)"),
        (lambda: torch.eye(3).to_mkldnn(), r"is of the layout torch\._mkldnn, expected an ordinary dense tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "is nested, expected an ordinary"),
        (
            lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
            "is a NestedTensor, expected an ordinary tensor",
        ),
    ],
    ids=["coo", "csr", "mkldnn", "nested", "jagged"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_tensor_without_ordinary_memory_is_refused_by_name_with_what_to_do(make, message):
    model = nn.Linear(3, 3)
    model.register_buffer("table", make())
    with pytest.raises(ConfigError, match=rf"tensor table: {message}.*persistent=False or `buffers: keep`"):
        DpwaPyTorchAdapter(model)
    assert names(model, buffers="keep") == ["weight", "bias"]


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_model_that_recomputes_activations_is_exchanged_whole_with_one_that_does_not():
    plain, recomputing = nn.Sequential(normed()), nn.Sequential(checkpoint_wrapper(normed()))
    recomputing[0].register_buffer("cache", torch.zeros(5), persistent=False)
    assert names(recomputing) == names(plain)
    assert {"0.1.running_mean", "0.1.running_var"} < set(names(recomputing))
    config = local_cluster(constant={"value": 0.5})
    with DpwaPyTorchAdapter(plain, "w1", config) as first, DpwaPyTorchAdapter(recomputing, "w2", config) as second:
        recomputing[0]._checkpoint_wrapped_module[1].running_mean.fill_(8.0)
        until_all_have_blended([first, second], lambda: (first.step(1.0), second.step(1.0)))
        assert plain[0][1].running_mean.min() > 0.0


class LowRank(nn.Module):
    """What peft puts around a layer: the frozen layer, and a small one that is trained."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, base.out_features, bias=False)


def test_of_a_model_with_low_rank_adapters_only_these_travel_and_the_numbers_say_so():
    model = nn.Sequential(LowRank(nn.Linear(8, 8)), LowRank(nn.Linear(8, 8)))
    assert all(".lora_" in name for name in names(model))
    assert counted(model) == (4, 4 * 64, 4, 2 * (64 + 8) * 4, 0, 0)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, (5, 4 * (3 + 3 + 9 + 3 + 3), 1, 4 * 6, 2, 8 + 4 * 5)),
        ({"buffers": "keep"}, (3, 4 * (3 + 3 + 9), 3, 4 * (6 + 6), 2, 8 + 4 * 5)),
        ({"frozen_parameters": "blend"}, (6, 4 * (15 + 6 + 6), 0, 0, 2, 8 + 4 * 5)),
    ],
)
def test_statistics_say_how_much_is_exchanged_kept_and_ignored(settings, numbers):
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "first": nn.Linear(3, 3, bias=False)})
    model["tied"] = nn.Linear(3, 3, bias=False)
    model["tied"].weight = model["first"].weight
    model["frozen"] = nn.Linear(3, 2, bias=False).requires_grad_(False)
    model.register_buffer("cache", torch.zeros(5), persistent=False)
    assert counted(model, **settings) == numbers


def test_the_start_event_of_the_journal_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path))
    numbers = counted(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)))
    events = (tmp_path / "nodes" / "w1" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    start = json.loads(events[0])
    assert start["event"] == "start"
    assert tuple(start[number] for number in NUMBERS) == numbers == (2, 24, 2, 24, 0, 0)


def test_of_an_own_model_all_that_is_in_its_layout_is_exchanged(in_memory):
    (node,) = in_memory.start([VectorModel([1.0, 2.0, 3.0])])
    statistics = node.statistics()
    assert tuple(getattr(statistics, number) for number in NUMBERS) == (1, 24, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_a_scripted_model_is_exchanged():
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        adapter.step(1.0)
        assert adapter.statistics().exchanged_tensors == 6
    assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
