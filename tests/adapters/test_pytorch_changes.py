"""A model that changes after dpwa has taken it: followed where its tensors keep their form, else refused in a line."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch_support import DEVICES, local_cluster

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.errors import ConfigError
from support import wait_until

STEPS_PER_ROUND = 64  # within so many steps every change is found


def network() -> nn.Module:
    """Two layers, running statistics, and a frozen layer."""
    torch.manual_seed(3)
    parts = {"body": nn.Linear(4, 3), "norm": nn.BatchNorm1d(3), "frozen": nn.Linear(3, 3), "head": nn.Linear(3, 2)}
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    model.frozen.requires_grad_(False)
    return model


def exchanged(model: nn.Module) -> dict[str, torch.Tensor]:
    """What two such networks should agree on."""
    return {
        name.replace("_orig_mod.", ""): tensor.detach()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and "frozen" not in name
    }


@torch.no_grad()
def move(model: nn.Module, value: float) -> None:
    for tensor in exchanged(model).values():
        tensor.add_(value)


def distance(models: list[nn.Module]) -> float:
    first, second = (exchanged(model) for model in models)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def unchanged(model: nn.Module) -> None:
    """The model stays as it is."""


def agree(
    models: list[nn.Module], change: Callable[[nn.Module], object], each_step=unchanged, **settings: object
) -> None:
    """Two nodes train together; the models change; then they still come together, in every tensor."""
    config = local_cluster(constant={"value": 0.5}, **settings)
    with (
        DpwaPyTorchAdapter(models[0], "w1", config) as first,
        DpwaPyTorchAdapter(models[1], "w2", config) as second,
    ):
        nodes = [first, second]

        def step() -> None:
            for model, node in zip(models, nodes, strict=True):
                each_step(model)
                node.step(1.0)

        def blended() -> bool:
            step()
            return all(node.statistics().blended for node in nodes)

        wait_until(blended, "each node's first blend", 30.0)
        for model in models:
            change(model)
        move(models[0], 8.0)

        def agreed() -> bool:
            step()
            return distance(models) < 0.01

        wait_until(agreed, "agreement", 30.0)  # an exchange that timed out while torch was imported is made up for


def load_assigned(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def replace_head(model: nn.Module) -> None:
    model.head = nn.Linear(3, 2)


def replace_buffers(model: nn.Module) -> None:
    """As `.to()`, `.cuda()` and `.half()` do."""
    for part in model.modules():
        for key, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, key, buffer.clone())


def reassign_statistics(model: nn.Module) -> None:
    """As models do that compute new statistics out of place."""
    model.norm.running_mean = model.norm.running_mean * 1.0


def compile_in_place(model: nn.Module) -> None:
    model.body.compile(backend="eager")


def compile_a_part(model: nn.Module) -> None:
    model.body = torch.compile(model.body, backend="eager")


def replace_parameter_data(model: nn.Module) -> None:
    model.body.weight.data = model.body.weight.data.clone()


def freeze_later(model: nn.Module) -> None:
    model.body.requires_grad_(False)


@pytest.mark.parametrize(
    "change",
    [
        load_assigned,
        replace_head,
        replace_buffers,
        compile_in_place,
        compile_a_part,
        replace_parameter_data,
        freeze_later,
    ],
)
def test_tensors_that_others_of_the_same_form_have_replaced_are_exchanged(change):
    agree([network(), network()], change)


def test_a_buffer_that_is_replaced_in_every_step_is_exchanged():
    agree([network(), network()], unchanged, each_step=reassign_statistics)


def test_a_part_that_is_frozen_and_unfrozen_in_turn_as_in_a_gan_is_exchanged():
    def toggle(model: nn.Module) -> None:
        model.body.requires_grad_(not model.body.weight.requires_grad)

    agree([network(), network()], unchanged, each_step=toggle)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_is_moved_to_another_device_later_is_exchanged_from_there(device):
    agree([network(), network()], lambda model: model.to(device))


def test_layers_may_be_unfrozen_later_if_frozen_parameters_are_blended():
    models = [network(), network()]
    agree(models, lambda model: model.frozen.requires_grad_(True), frozen_parameters="blend")
    assert all(model.frozen.weight.requires_grad for model in models)


def test_models_that_are_compiled_before_and_after_dpwa_takes_them_are_one_model_with_a_plain_one():
    before, plain = torch.compile(network(), backend="eager"), network()
    after = []

    def compile_plain(model: nn.Module) -> None:
        if model is plain:
            after.append(torch.compile(model, backend="eager"))

    agree([before, plain], compile_plain)
    assert distance([before, *after]) < 0.01


# --- Refused ----------------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """What peft puts around a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)


def another_shape(model: nn.Module) -> None:
    model.head = nn.Linear(3, 5)


def wrap_low_rank(model: nn.Module) -> None:
    model.head = LowRank(model.head)


def add_bias_to_nothing(model: nn.Module) -> None:
    model.extra = nn.Parameter(torch.zeros(2))


def drop_bias(model: nn.Module) -> None:
    model.head.bias = None


def tie(model: nn.Module) -> None:
    model.norm.bias = model.norm.weight


CHANGES = [
    (another_shape, r"tensor head\.weight: has the shape \[5, 3\] now, had \[2, 3\] when"),
    (lambda model: model.double(), r"tensor body\.weight: has the dtype float64 now, had float32 when"),
    (lambda model: model.frozen.requires_grad_(True), r"tensor frozen\.weight: is trained now, was frozen when"),
    (wrap_low_rank, r"tensor head\.weight: is no longer in the model, was exchanged when"),
    (
        lambda model: parametrizations.weight_norm(model.head),
        r"tensor head\.weight: is no longer in the model, was exchanged when",
    ),
    (
        lambda model: prune.l1_unstructured(model.head, "weight", 0.5),
        r"tensor head\.weight: is no longer in the model, was exchanged when",
    ),
    (add_bias_to_nothing, r"tensor extra: is new when"),
    (drop_bias, r"tensor head\.bias: is no longer in the model, was exchanged when"),
    (tie, r"tensor norm\.bias: is tied to norm\.weight now, was exchanged when"),
]
NAMES = ["shape", "dtype", "unfrozen", "low rank", "weight norm", "pruned", "new", "gone", "tied"]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=NAMES)
def test_a_change_of_the_form_is_refused_by_the_next_step_in_one_line_that_names_the_tensor(change, message):
    model = network()
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        change(model)
        with pytest.raises(ConfigError, match=message + r" dpwa took the model; make the adapter after") as refused:
            adapter.step(1.0)
        assert "\n" not in str(refused.value)
        assert adapter.statistics().step == 0


def step_a_round(adapter: DpwaPyTorchAdapter) -> None:
    for _ in range(STEPS_PER_ROUND):
        adapter.step(1.0)


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=NAMES)
def test_a_change_in_the_middle_of_a_large_model_is_found_within_a_known_number_of_steps(change, message):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(3 * STEPS_PER_ROUND)), network(), nn.ReLU())
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        for _ in range(3):
            adapter.step(1.0)
        change(model[-2])
        name = message.partition(":")[0].removeprefix("tensor ")
        with pytest.raises(ConfigError, match=rf"tensor {len(model) - 2}\.{name}: "):
            step_a_round(adapter)


def test_a_tensor_that_is_resized_in_place_is_refused_and_named():
    model = network()
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        adapter.step(1.0)
        model.norm.running_mean.resize_(7)
        with pytest.raises(ConfigError, match=r"tensor norm\.running_mean: has the shape \[7\] now, had \[3\]"):
            step_a_round(adapter)


def test_finish_looks_at_the_whole_model():
    model = network()
    with DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        adapter.step(1.0)
        model.frozen.requires_grad_(True)
        with pytest.raises(ConfigError, match=r"tensor frozen\.weight: is trained now"):
            adapter.finish(1.0)


def test_a_change_after_the_last_step_fails_no_training_that_has_ended_but_is_told(caplog):
    model = network()
    with caplog.at_level(logging.WARNING, "dpwa"), DpwaPyTorchAdapter(model, "w1", local_cluster(wait_ms=0)) as adapter:
        adapter.step(1.0)
        model.double()
    assert [record.message for record in caplog.records if "body.weight: has the dtype float64" in record.message]


def test_a_node_alone_may_change_its_model_as_it_likes():
    model = network()
    with DpwaPyTorchAdapter(model) as adapter:
        adapter.step(1.0)
        model.double()
        model.frozen.requires_grad_(True)
        adapter.step(1.0)
        assert adapter.finish()
    assert adapter.statistics().step == 2
