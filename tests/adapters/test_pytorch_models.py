"""What happens to the tensors of a module: which are exchanged, how they are blended, which models cannot be used.

Blends are made here without nodes: the peer's bytes go straight into a staging area, as an exchange would put them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch_support import DEVICES, local_cluster

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.snapshot.staging import Staging

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def blended(
    own: nn.Module, peer: nn.Module, factor: float, *, meanwhile: Callable[[], object] | None = None, **settings: object
) -> TorchModel:
    """Blend a peer's module into the own one, which may change while the exchange is in flight."""
    config = ClusterConfig.for_localhost(1, **settings)
    mine, theirs = TorchModel(own, config), TorchModel(peer, config)
    assert mine.layout.fingerprint == theirs.layout.fingerprint
    staging = Staging(mine.layout, absolute=config.blend == "absolute")
    reference, received = copied(mine), copied(theirs)
    staging.reference = reference.data
    staging.begin(whole=True)
    staging.accept(0, len(received), received.data)
    assert staging.finish()
    if meanwhile is not None:
        with torch.no_grad():
            meanwhile()
    mine.blend(staging.values, factor)
    return mine


def copied(model: TorchModel) -> np.ndarray:
    """A snapshot's bytes; from a GPU they come later."""
    buffer = np.empty(model.layout.total_bytes, np.uint8)
    ready = model.copy_into(buffer)
    if ready is not None:
        ready()
    return buffer


def exchanged(module: nn.Module, **settings: object) -> list[str]:
    """The names in the module's layout."""
    return [spec.name for spec in TorchModel(module, ClusterConfig.for_localhost(1, **settings)).layout.tensors]


def filled(module: nn.Module, value: float) -> nn.Module:
    """The module with all its floating-point values equal."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(value)
    return module


class Holder(nn.Module):
    """Tensors by name: parameters, and those whose name begins with "buffer" as buffers."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if name.startswith("buffer"):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))


# --- Buffers ----------------------------------------------------------------------------------------------------------


def test_running_statistics_of_batch_norm_are_interpolated_and_its_counter_is_left_alone():
    own, peer = filled(nn.BatchNorm1d(3), 2.0), filled(nn.BatchNorm1d(3), 10.0)
    own.num_batches_tracked.fill_(7)
    peer.num_batches_tracked.fill_(900)
    blended(own, peer, 0.25)
    for tensor in (own.weight, own.bias, own.running_mean, own.running_var):
        assert tensor.tolist() == [4.0] * 3
    assert own.num_batches_tracked == 7


def test_a_running_variance_cannot_become_negative_when_it_shrank_during_the_exchange():
    own, peer = filled(nn.BatchNorm1d(2), 10.0), filled(nn.BatchNorm1d(2), 1.0)
    blended(own, peer, 0.75, meanwhile=lambda: own.running_var.fill_(0.5))
    assert own.running_var.tolist() == [0.875] * 2  # adding 0.75 * (1 - 10) would give -6.25
    assert own.weight.tolist() == [3.25] * 2  # parameters do get the difference


@pytest.mark.parametrize("blend", ["delta", "absolute"])
def test_buffers_keep_leaves_running_statistics_to_each_node(blend):
    own, peer = filled(nn.BatchNorm1d(2), 2.0), filled(nn.BatchNorm1d(2), 10.0)
    blended(own, peer, 0.5, buffers="keep", blend=blend)
    assert own.running_mean.tolist() == own.running_var.tolist() == [2.0, 2.0]
    assert own.weight.tolist() == [6.0, 6.0]


def test_buffers_outside_the_state_dict_stay_local():
    own = nn.Linear(2, 2)
    own.register_buffer("cache", torch.ones(5), persistent=False)
    assert exchanged(own) == ["weight", "bias"]


# --- Tied and frozen --------------------------------------------------------------------------------------------------


def same_parameter(encoder: nn.Linear, decoder: nn.Linear) -> None:
    decoder.weight = encoder.weight


def same_data(encoder: nn.Linear, decoder: nn.Linear) -> None:
    decoder.weight.data = encoder.weight.data


def transposed(encoder: nn.Linear, decoder: nn.Linear) -> None:
    decoder.weight = nn.Parameter(encoder.weight.data.t())


def reshaped(encoder: nn.Linear, decoder: nn.Linear) -> None:
    decoder.weight = nn.Parameter(encoder.weight.data.view(3, 1, 3))


@pytest.mark.parametrize("tie", [same_parameter, same_data, transposed, reshaped])
def test_tied_weights_travel_once_are_blended_once_and_stay_tied(tie):
    def make(value: float) -> nn.Module:
        module = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
        tie(module["encoder"], module["decoder"])
        return filled(module, value)

    own, peer = make(0.0), make(8.0)
    assert exchanged(own) == ["encoder.weight", "encoder.bias", "decoder.bias"]
    blended(own, peer, 0.25)
    assert own["encoder"].weight.unique().tolist() == [2.0]  # and not 4: it was added once
    assert own["decoder"].weight.data_ptr() == own["encoder"].weight.data_ptr()
    with torch.no_grad():
        own["encoder"].weight.fill_(5.0)
    assert own["decoder"].weight.unique().tolist() == [5.0]


def test_parts_of_one_memory_that_do_not_overlap_are_all_exchanged():
    memory = torch.arange(6.0)
    own = Holder(first=memory[:3], second=memory[3:])
    peer = Holder(first=torch.zeros(3), second=torch.zeros(3))
    blended(own, peer, 0.5)
    assert memory.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize(("frozen_parameters", "weight"), [("keep", 2.0), ("blend", 6.0)])
def test_frozen_parameters_are_blended_only_if_the_config_says_so(frozen_parameters, weight):
    own, peer = filled(nn.Linear(1, 1), 2.0), filled(nn.Linear(1, 1), 10.0)
    for module in (own, peer):
        module.weight.requires_grad_(False)
    blended(own, peer, 0.5, frozen_parameters=frozen_parameters)
    assert own.weight.item() == weight
    assert own.bias.item() == 6.0
    assert not own.weight.requires_grad


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blend", ["delta", "absolute"])
def test_mixed_dtypes_are_computed_in_float32_or_float64_and_rounded_once(device, blend):
    torch.manual_seed(1)

    def make() -> Holder:
        tensors = {str(dtype).replace(".", "_"): torch.randn(5, 7, device=device).to(dtype) for dtype in DTYPES}
        return Holder(**tensors)

    own, peer = make(), make()
    start = copy.deepcopy(own)
    blended(own, peer, 0.3, blend=blend, meanwhile=lambda: [tensor.mul_(1.5) for tensor in own.parameters()])
    for name, tensor in own.named_parameters():
        wide = torch.float64 if tensor.dtype is torch.float64 else torch.float32
        reference, other = (module.get_parameter(name).detach().to(wide) for module in (start, peer))
        now = (start.get_parameter(name).detach() * 1.5).to(wide)
        result = now + 0.3 * (other - (reference if blend == "delta" else now))
        assert tensor.dtype is start.get_parameter(name).dtype
        torch.testing.assert_close(tensor.detach(), result.to(tensor.dtype), rtol=2e-7, atol=1e-7)


def test_a_difference_that_bfloat16_cannot_hold_is_not_rounded_before_it_is_added():
    own = Holder(weight=torch.tensor([1.0], dtype=torch.bfloat16))
    peer = Holder(weight=torch.tensor([258.0], dtype=torch.bfloat16))
    blended(own, peer, 0.5)
    assert own.weight.item() == 130.0  # 129.5 rounded; by way of 256, which is what becomes of 257, it were 129


def test_delta_keeps_the_steps_made_during_the_exchange():
    own, peer = Holder(weight=torch.tensor([1.0, 2.0])), Holder(weight=torch.tensor([5.0, 2.0]))
    blended(own, peer, 0.5, meanwhile=lambda: own.weight.add_(10.0))
    assert own.weight.tolist() == [13.0, 12.0]


def test_absolute_goes_the_share_of_the_way_from_where_the_model_is_now():
    own, peer = Holder(weight=torch.tensor([1.0, 2.0])), Holder(weight=torch.tensor([5.0, 2.0]))
    blended(own, peer, 0.25, blend="absolute", meanwhile=lambda: own.weight.add_(10.0))
    assert own.weight.tolist() == [0.75 * 11 + 0.25 * 5, 0.75 * 12 + 0.25 * 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_blend_works_in_place_whatever_the_memory_format(device, dtype):
    def make(value: float) -> Holder:
        return Holder(
            scalar=torch.full((), value, dtype=dtype, device=device),
            empty=torch.zeros(0, 3, dtype=dtype, device=device),
            transposed=torch.arange(6.0, device=device).view(2, 3).to(dtype).t().add(value),
            channels_last=torch.full((2, 3, 4, 4), value, dtype=dtype, device=device).to(
                memory_format=torch.channels_last
            ),
            strided=torch.full((4, 6), value, dtype=dtype, device=device)[:, ::2],
            buffer_scalar=torch.full((), value, dtype=dtype, device=device),
        )

    own, peer = make(0.0), make(4.0)
    before = {name: (tensor.data_ptr(), tensor.stride(), tensor.requires_grad) for name, tensor in all_tensors(own)}
    model = blended(own, peer, 0.25)
    assert {name: (t.data_ptr(), t.stride(), t.requires_grad) for name, t in all_tensors(own)} == before
    assert not own.transposed.is_contiguous()
    assert own.scalar.item() == own.buffer_scalar.item() == 1.0
    assert own.transposed.tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert own.channels_last.unique().tolist() == own.strided.unique().tolist() == [1.0]
    # What is published is the values in their logical order.
    published = copied(model)
    again = make(9.0)
    staged = TorchModel(again, ClusterConfig.for_localhost(1, blend="absolute"))
    staging = Staging(staged.layout, absolute=True)
    staging.reference = published.data
    staging.begin(whole=True)
    staging.accept(0, len(published), published.data)
    assert staging.finish()
    staged.blend(staging.values, 1.0)
    assert again.transposed.tolist() == own.transposed.tolist()


def all_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def test_a_blend_does_not_touch_the_optimizer():
    own, peer = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.1)
    own(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    gradient = own.weight.grad.clone()
    blended(own, peer, 0.5)
    assert optimizer.param_groups[0]["params"] == list(own.parameters())
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(own.weight.grad, gradient, rtol=0, atol=0)


# --- Compiled models and mixed precision ------------------------------------------------------------------------------


def part_compiled() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[0] = torch.compile(model[0], backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled",
    [lambda: torch.compile(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), backend="eager"), part_compiled],
    ids=["whole", "a part"],
)
def test_a_compiled_model_and_a_plain_one_are_one_model(compiled):
    own, peer = filled(compiled(), 0.0), filled(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 8.0)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert exchanged(own) == exchanged(peer) == names
    own(torch.ones(2, 4)).sum().backward()  # compiled now, with the values from before the blend
    blended(own, peer, 0.25)
    assert all(parameter.unique().tolist() == [2.0] for parameter in own.parameters())
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    plain.load_state_dict({name.replace("_orig_mod.", ""): value for name, value in own.state_dict().items()})
    inputs = torch.arange(4.0).view(1, 4)
    assert torch.equal(own.eval()(inputs), plain.eval()(inputs))


def test_a_compiled_model_is_saved_under_the_names_of_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path))
    model = torch.compile(nn.Linear(2, 2), backend="eager")
    with DpwaPyTorchAdapter(model, config=ClusterConfig.for_localhost(1)) as node:
        node.step()
    plain = nn.Linear(2, 2)
    plain.load_state_dict(load_file(tmp_path / "nodes" / node.name / "model.safetensors"))
    assert torch.equal(plain.weight, model.weight)


def test_the_names_that_data_parallel_gives_are_kept_for_a_model_may_have_a_part_of_that_name():
    assert exchanged(nn.ModuleDict({"module": nn.Linear(1, 1)})) == ["module.weight", "module.bias"]


@pytest.mark.heavy
def test_nodes_that_train_with_autocast_and_a_grad_scaler_exchange_float32_and_learn():
    config = local_cluster(2, constant={"value": 0.5})
    torch.manual_seed(5)
    inputs = torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 1)
    start = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    models = [copy.deepcopy(start) for _ in range(2)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in models]
    losses: list[list[float]] = [[], []]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(DpwaPyTorchAdapter(model, f"w{number}", config))
            for number, model in enumerate(models, start=1)
        ]
        for _ in range(150):
            for index, (model, optimizer, scaler, node) in enumerate(
                zip(models, optimizers, scalers, nodes, strict=True)
            ):
                mine = slice(32 * index, 32 * index + 32)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.mse_loss(model(inputs[mine]), targets[mine])
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    node.step(loss)  # under autocast: that must not round what is exchanged
                losses[index].append(float(loss.detach()))
        statistics = [node.statistics() for node in nodes]
    assert all(made.blended > 50 and made.failures == 0 for made in statistics)
    assert all(of_one[-1] < 0.1 * of_one[0] for of_one in losses)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert first.dtype is torch.float32
        assert (first - second).abs().max() < 0.1
        assert not torch.equal(first, first.bfloat16().float())


# --- Models that cannot be used ---------------------------------------------------------------------------------------


def untrained() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU()).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.ReLU, "the model has no floating-point tensor to exchange"),
        (untrained, "the model has no floating-point tensor to exchange"),
        (lambda: Holder(weight=torch.zeros(0, 4)), "the model has no floating-point tensor to exchange"),
        (
            lambda: Holder(phase=torch.zeros(2, dtype=torch.complex64)),
            "tensor phase: dtype complex64 cannot be exchanged; expected one of float64, float32, bfloat16, float16",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"tensor 0\.weight: has no values yet; run the model once"),
        (lambda: nn.LazyBatchNorm1d(affine=False), "tensor running_mean: has no values yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "tensor weight: has no values yet; .* or load its weights"),
        (
            lambda: Holder(weight=torch.ones(2), buffer_scale=torch.ones(1).expand(4)),
            r"tensor buffer_scale: is expanded, .* expected each in its own place; .*clone\(\)",
        ),
    ],
    ids=["no tensor", "all frozen", "only empty", "complex", "lazy", "lazy buffer", "meta", "expanded"],
)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(make, message):
    with pytest.raises(ConfigError, match=message):
        DpwaPyTorchAdapter(make())


def test_a_lazy_module_can_be_used_after_its_first_batch():
    module = nn.LazyLinear(3)
    module(torch.ones(1, 2))
    assert exchanged(module) == ["weight", "bias"]
