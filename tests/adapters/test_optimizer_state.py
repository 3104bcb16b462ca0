"""`optimizer_state: blend`: an optimizer's momentum and moments travel with the parameters.

Blends are made over the in-memory transport, or by a staging without nodes; the adapter's own part is at the end.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_support import settle, weighted_sum
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer
from torch_support import linear, local_cluster, until_all_have_blended

from dpwa.adapters.attaching import attach
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.methods.gosgd import GoSGD
from dpwa.methods.paired_anchor import PairedAnchor
from dpwa.node.extended_model import ExtendedModel
from dpwa.snapshot.layout import Layout, Role
from dpwa.snapshot.staging import Staging, encode_chunk
from dpwa.snapshot.state import Codec
from dpwa.topology.neighbourhood import Neighbourhood
from support import Cluster, wait_until

BLEND = ClusterConfig.for_localhost(2, optimizer_state="blend")

Make = Callable[[nn.Module], Optimizer]


def with_momentum(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), lr=0.1)


def in_groups(model: nn.Module) -> Optimizer:
    return SGD([{"params": [model.weight], "momentum": 0.9}, {"params": [model.bias], "lr": 1.0}], lr=0.1)


MAKES: dict[str, Make] = {
    "sgd": with_momentum,
    "nesterov and decay": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=True),
    "foreach": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True),
    "fused": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
    "groups": in_groups,
    "adam": adam,
    "adam foreach": lambda model: Adam(model.parameters(), lr=0.1, foreach=True),
    "adam fused": lambda model: Adam(model.parameters(), lr=0.1, fused=True),
    "adam maximize": lambda model: Adam(model.parameters(), lr=0.1, maximize=True),
    "amsgrad": lambda model: Adam(model.parameters(), lr=0.1, amsgrad=True),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.1),
}


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def taken(make: Make = with_momentum, value: float = 1.0, **settings: object) -> tuple[TorchModel, Optimizer]:
    """A small layer and its optimizer, as a node takes them."""
    layer = linear(value)
    optimizer = make(layer)
    config = ClusterConfig.for_localhost(2, optimizer_state="blend", **settings)
    return TorchModel(layer, config, optimizer=optimizer), optimizer


def state_of(optimizer: Optimizer, key: str) -> list[Tensor]:
    """Of all parameters, in their order."""
    return [optimizer.state[parameter][key] for group in optimizer.param_groups for parameter in group["params"]]


def fill(optimizer: Optimizer, key: str, value: float) -> None:
    for tensor in state_of(optimizer, key):
        tensor.fill_(value)


def snapshot(model: TorchModel) -> np.ndarray:
    buffer = np.zeros(model.layout.total_bytes, np.uint8)
    model.copy_into(buffer)
    return buffer


def blend(
    own: TorchModel, peer: TorchModel, factor: float, meanwhile: Callable[[], object] | None = None, codec=Codec.RAW
) -> None:
    """Blend a peer's model into the own one, which may train while the exchange is in flight."""
    staging = Staging(own.layout, absolute=False)
    reference, theirs = snapshot(own), snapshot(peer)
    staging.reference = reference.data
    staging.begin(whole=True)
    used, body = encode_chunk(own.layout, theirs.data, 0, len(theirs), codec)
    staging.accept(0, len(theirs), memoryview(body), used)
    assert staging.finish()
    if meanwhile is not None:
        meanwhile()
    own.blend(staging.values, factor)


# --- The first steps ----------------------------------------------------------------------------------------------


@pytest.mark.seconds
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_first_steps_are_to_the_bit_those_without_dpwa(make):
    (own, optimizer), other = taken(make), linear(1.0)
    alone = make(other)
    for _ in range(3):
        train(own.module, optimizer, 1)
        train(other, alone, 1)
        for one, two in zip(own.module.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)
    one, two = optimizer.state_dict(), alone.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for index, kept in one["state"].items():
        for key, value in kept.items():
            other_value = two["state"][index].get(key)
            assert value == other_value if value is None else torch.equal(value, other_value)


def test_adams_count_of_steps_has_the_type_that_torch_gives_it():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        _, made = taken(adam)
        layer = linear(1.0)
        by_torch = adam(layer)
        train(layer, by_torch, 1)
    finally:
        torch.set_default_dtype(before)
    assert [one.dtype for one in state_of(made, "step")] == [one.dtype for one in state_of(by_torch, "step")]


def test_dampening_is_refused_before_the_first_step_which_zeros_would_change_and_taken_after_it():
    layer = linear(1.0)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    with pytest.raises(ConfigError, match=r"momentum_buffer.weight: with a dampening of 0.5 .* after the first step"):
        TorchModel(layer, BLEND, optimizer=optimizer)
    assert not any(optimizer.state.values())
    train(layer, optimizer, 1)
    assert len(TorchModel(layer, BLEND, optimizer=optimizer).layout.tensors) == 4


# --- What travels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (with_momentum, ["optimizer.momentum_buffer.weight", "optimizer.momentum_buffer.bias"]),
        (in_groups, ["optimizer.momentum_buffer.weight"]),
        (
            adam,
            [f"optimizer.{key}.{name}" for key in ("exp_avg", "exp_avg_sq") for name in ("weight", "bias")],
        ),
    ],
)
def test_the_state_is_in_layout_and_inventory_behind_the_model(make, names):
    model, _ = taken(make)
    specs = model.layout.tensors
    assert [spec.name for spec in specs] == ["weight", "bias", *names]
    assert model.inventory.exchanged_tensors == len(specs)
    assert model.inventory.exchanged_bytes == sum(spec.size_bytes for spec in specs)


def test_by_default_the_state_stays_and_nothing_is_made():
    layer = linear(1.0)
    optimizer = adam(layer)
    model = TorchModel(layer, ClusterConfig.for_localhost(2), optimizer=optimizer)
    assert [spec.name for spec in model.layout.tensors] == ["weight", "bias"]
    assert not optimizer.state


def test_a_script_alone_is_left_alone_whatever_its_optimizer():
    alone = ClusterConfig.for_localhost(1, optimizer_state="blend")
    assert len(TorchModel(linear(1.0), alone).layout.tensors) == 2


def test_nodes_with_and_without_the_key_and_with_other_optimizers_are_told_apart_in_words():
    plain = TorchModel(linear(1.0), ClusterConfig.for_localhost(2)).layout
    momentum, moments = taken(with_momentum)[0].layout, taken(adam)[0].layout
    words = "only {} has `optimizer_state: blend`; give all nodes the same cluster file"
    assert words.format("the peer") in plain.first_difference(momentum.text)
    assert words.format("this node") in momentum.first_difference(plain.text)
    assert "optimizer.momentum_buffer.weight" in momentum.first_difference(plain.text)
    assert "the nodes have different optimizers" in momentum.first_difference(moments.text)
    assert "optimizer_state" not in plain.first_difference(Layout(plain.tensors[:1]).text)


# --- Closed forms -------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster("in_memory")
    yield made
    made.close()


def start(cluster: Cluster, makes: list[Make], **settings: object) -> list[Optimizer]:
    """Nodes that have joined; their optimizers."""
    pairs = [taken(make) for make in makes]
    cluster.start([model for model, _ in pairs], optimizer_state="blend", **settings)
    rounds(cluster, 3)
    return [optimizer for _, optimizer in pairs]


def rounds(cluster: Cluster, times: int) -> None:
    """All publish, then all blend what was published in this round."""
    for _ in range(times):
        for node in cluster.nodes:
            node.update_send(1.0)
        for node in cluster.nodes:
            node.update_wait(1.0)


@pytest.mark.parametrize(
    ("make", "keys"),
    [(with_momentum, ["momentum_buffer"]), (adam, ["exp_avg", "exp_avg_sq"]), (MAKES["adamw"], ["exp_avg"])],
)
@pytest.mark.parametrize(("factor", "expected"), [(0.5, (4.0, 4.0)), (0.25, (3.0, 5.0))])
def test_two_nodes_blend_their_states_by_the_factor_of_their_parameters(cluster, make, keys, factor, expected):
    optimizers = start(cluster, [make, make], constant={"value": factor})
    for optimizer, model, value in zip(optimizers, cluster.models, (2.0, 6.0), strict=True):
        nn.init.constant_(model.module.weight, value)
        for key in keys:
            fill(optimizer, key, value)
    rounds(cluster, 1)
    for optimizer, model, value in zip(optimizers, cluster.models, expected, strict=True):
        assert model.module.weight.detach().numpy() == pytest.approx(value)
        for tensor in [tensor for key in keys for tensor in state_of(optimizer, key)]:
            assert tensor.numpy() == pytest.approx(value)


@pytest.mark.parametrize("make", [with_momentum, adam])
def test_pairs_conserve_the_sum_of_the_states(cluster, make):
    key = "momentum_buffer" if make is with_momentum else "exp_avg_sq"
    optimizers = start(cluster, [make] * 4, method="adpsgd")
    for value, optimizer in enumerate(optimizers):
        fill(optimizer, key, 2.0**value)
    for _ in range(30):
        cluster.step_all()
        settle(cluster)
        assert sum(float(state_of(one, key)[0][0, 0]) for one in optimizers) == pytest.approx(15.0, rel=1e-5)
    values = [float(state_of(one, key)[0][0, 0]) for one in optimizers]
    assert max(values) - min(values) < 1.0


def test_pushes_conserve_the_sum_of_the_momenta_by_mass(cluster):
    optimizers = start(cluster, [with_momentum] * 3, method="gosgd")
    settle(cluster)
    for value, (optimizer, model) in enumerate(zip(optimizers, cluster.models, strict=True)):
        fill(optimizer, "momentum_buffer", 3.0**value)
        model.vector = state_of(optimizer, "momentum_buffer")[0].numpy().ravel()  # what `weighted_sum` looks at
    before = weighted_sum(cluster)
    for _ in range(20):
        cluster.step_all()
    settle(cluster)
    assert weighted_sum(cluster) == pytest.approx(before, rel=1e-4)
    assert np.ptp(cluster.vectors()[:, 0]) < 4.0


def test_what_the_momentum_gathers_during_an_exchange_is_kept_as_steps_are():
    (own, optimizer), (peer, others) = taken(), taken()
    fill(optimizer, "momentum_buffer", 2.0)
    fill(others, "momentum_buffer", 6.0)
    blend(own, peer, 0.5, meanwhile=lambda: fill(optimizer, "momentum_buffer", 3.0))
    assert state_of(optimizer, "momentum_buffer")[0].numpy() == pytest.approx(3.0 + 0.5 * (6.0 - 2.0))


def test_moments_are_interpolated_to_the_peers_whatever_happened_meanwhile():
    (own, optimizer), (peer, others) = taken(adam), taken(adam)
    fill(optimizer, "exp_avg_sq", 8.0)
    fill(others, "exp_avg_sq", 1.0)
    blend(own, peer, 0.5, meanwhile=lambda: fill(optimizer, "exp_avg_sq", 2.0))  # a difference would give -1.5
    assert state_of(optimizer, "exp_avg_sq")[0].numpy() == pytest.approx(1.5)


_SCALES = st.floats(1e-12, 1e4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(
    seed=st.integers(0, 10_000),
    own_scale=_SCALES,
    peer_scale=_SCALES,
    decay=st.floats(0, 1),
    factor=st.floats(0, 1),
    codec=st.sampled_from(Codec),
)
def test_second_moments_never_become_negative_and_bound_the_first_ones(
    dtype, seed, own_scale, peer_scale, decay, factor, codec
):
    """|m| <= c sqrt(v) on both sides holds for the blend, so that no step of Adam becomes longer than it may be."""
    generator = torch.Generator().manual_seed(seed)

    def random_state(scale: float) -> tuple[TorchModel, Optimizer]:
        layer = linear(1.0).to(dtype)
        optimizer = adam(layer)
        model = TorchModel(layer, BLEND, optimizer=optimizer)
        for first, second in zip(state_of(optimizer, "exp_avg"), state_of(optimizer, "exp_avg_sq"), strict=True):
            gradient = torch.randn(first.shape, generator=generator) * (
                torch.rand(first.shape, generator=generator) < 0.7
            )
            second.copy_((gradient * scale).square().clamp_max(6e4))
            first.copy_(second.to(torch.float64).sqrt() * gradient.sign())
        return model, optimizer

    (own, optimizer), (peer, _) = random_state(own_scale), random_state(peer_scale)

    def meanwhile() -> None:
        for first, second in zip(state_of(optimizer, "exp_avg"), state_of(optimizer, "exp_avg_sq"), strict=True):
            first.mul_(decay)
            second.mul_(decay)

    blend(own, peer, factor, meanwhile, codec)
    slack = {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 0.05)
    for first, second in zip(state_of(optimizer, "exp_avg"), state_of(optimizer, "exp_avg_sq"), strict=True):
        assert torch.isfinite(second).all()
        assert (second >= 0).all()
        least = 1e-3 if dtype is torch.float16 else 1e-18  # below, a square is rounded to zero
        assert (first.double().abs() <= (1 + slack) * second.double().sqrt() + least).all()


@pytest.mark.parametrize("codec", [Codec.FP16, Codec.INT8])
def test_moments_travel_unrounded_because_a_small_one_would_become_zero(codec):
    (own, optimizer), (peer, others) = taken(adam), taken(adam)
    for tensor in state_of(others, "exp_avg_sq"):
        tensor.fill_(1e-12).flatten()[0] = 1.0
    blend(own, peer, 1.0, codec=codec)
    for mine, theirs in zip(state_of(optimizer, "exp_avg_sq"), state_of(others, "exp_avg_sq"), strict=True):
        assert torch.equal(mine, theirs)


def test_momentum_is_rounded_as_parameters_are():
    (own, optimizer), (peer, others) = taken(), taken()
    fill(others, "momentum_buffer", 0.1)
    blend(own, peer, 1.0, codec=Codec.FP16)
    assert float(state_of(optimizer, "momentum_buffer")[0][0, 0]) == pytest.approx(float(np.float16(0.1)), abs=1e-9)


@pytest.mark.parametrize("make", [with_momentum, adam])
def test_a_part_of_a_model_leaves_the_state_as_it_is(make):
    (own, optimizer), (peer, others) = taken(make), taken(make)
    for one, value in ((optimizer, 2.0), (others, 6.0)):
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if key in one.state[one.param_groups[0]["params"][0]]:
                fill(one, key, value)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    reference, theirs = snapshot(own), snapshot(peer)
    for codec in (Codec.RAW, Codec.INT8):
        staging = Staging(own.layout, absolute=False)
        for whole in (True, False):  # what a whole has left behind is gone
            staging.reference = reference.data
            staging.begin(whole=whole)
            used, body = encode_chunk(own.layout, theirs.data, 0, len(theirs), codec)
            staging.accept(0, len(theirs), memoryview(body), used)
            assert staging.finish()
        own.blend(staging.values, 0.5)
    after = optimizer.state_dict()["state"]
    for index, kept in before.items():
        assert all(torch.equal(value, after[index][key]) for key, value in kept.items())


def test_the_distance_of_two_models_is_that_of_their_parameters_alone():
    (own, _), (peer, others) = taken(value=1.0), taken(value=3.0)
    fill(others, "momentum_buffer", 1e6)
    reference, theirs = snapshot(own), snapshot(peer)
    for codec in (Codec.RAW, Codec.BF16):
        staging = Staging(own.layout, absolute=False, measures_distance=True)
        staging.reference = reference.data
        staging.begin(whole=True)
        used, body = encode_chunk(own.layout, theirs.data, 0, len(theirs), codec)
        staging.accept(0, len(theirs), memoryview(body), used)
        assert staging.distance == pytest.approx(2.0)


# --- Methods that move the model themselves -----------------------------------------------------------------------


def test_a_scaled_training_step_leaves_the_momentum_and_a_push_that_returns_takes_it_along():
    model, optimizer = taken(value=2.0)
    fill(optimizer, "momentum_buffer", 4.0)
    extended = ExtendedModel(model, GoSGD(Neighbourhood(BLEND.topology_of_nodes, ["w1", "w2"], 0), 2, 1.0))
    buffer = snapshot(model)
    nn.init.constant_(model.module.weight, 0.0)
    fill(optimizer, "momentum_buffer", 0.0)
    extended.go_towards(buffer, 0.5)
    assert float(model.module.weight.detach()[0, 0]) == pytest.approx(1.0)
    assert float(state_of(optimizer, "momentum_buffer")[0][0, 0]) == 0.0
    extended.go_towards(buffer, 0.5, with_momentum=True)
    assert float(model.module.weight.detach()[0, 0]) == pytest.approx(1.5)
    assert float(state_of(optimizer, "momentum_buffer")[0][0, 0]) == pytest.approx(2.0)


@pytest.mark.parametrize("make", [with_momentum, adam])
def test_states_of_a_pair_of_noloco_meet_in_the_middle(make):
    (own, optimizer), (peer, others) = taken(make), taken(make)
    keys = ["momentum_buffer"] if make is with_momentum else ["exp_avg", "exp_avg_sq"]
    for key in keys:
        fill(optimizer, key, 2.0)
        fill(others, key, 6.0)
    sides = []
    for model in (own, peer):
        anchor = PairedAnchor(model.layout, beta=0.7, gamma=0.7, momentum=0.5)
        memory = np.zeros(anchor.extended_layout.total_bytes, np.uint8)
        size = model.layout.total_bytes
        model.copy_into(memory[:size])
        sections = anchor.extended_layout.sections[len(model.layout.sections) :]
        anchor.fill(memory[:size], memory[size:], sections)
        sides.append((anchor, memory))
    (anchor, reference), (_, theirs) = sides
    assert [section.role for section in anchor.extended_layout.sections][-1] is Role.ANCHOR
    staging = Staging(anchor.extended_layout, absolute=False)
    staging.reference = reference.data
    staging.begin(whole=True)
    staging.accept(0, len(theirs), theirs.data)
    assert staging.finish()
    assert anchor.pair_step(reference.data, staging.values)
    own.blend(staging.values, 1.0)
    assert all(float(state_of(optimizer, key)[0][0, 0]) == pytest.approx(4.0) for key in keys)


# --- What cannot be exchanged -------------------------------------------------------------------------------------


def looked_up(*, sparse: bool) -> nn.Module:
    return nn.Embedding(3, 2, sparse=sparse)


@pytest.mark.parametrize(
    ("module", "make", "words"),
    [
        (linear(1.0), lambda _: None, r"needs the optimizer: write DpwaPyTorchAdapter\(model, optimizer=optimizer\)"),
        (linear(1.0), lambda model: SGD(model.parameters(), lr=0.1), "this SGD has no momentum, and so nothing"),
        (linear(1.0), lambda model: NAdam(model.parameters()), "SGD with momentum, Adam and AdamW, got NAdam"),
        (linear(1.0), lambda _: with_momentum(linear(2.0)), "keeps nothing for any of the exchanged parameters"),
        (linear(1.0), lambda model: Adam(model.parameters(), differentiable=True), "differentiable Adam"),
        (looked_up(sparse=True), with_momentum, "tensor weight: has sparse gradients"),
    ],
)
def test_a_state_that_cannot_be_exchanged_is_refused_in_a_line_that_says_what_to_do(module, make, words):
    with pytest.raises(ConfigError, match=words) as error:
        TorchModel(module, BLEND, optimizer=make(module))
    assert "expected the one that trains" in str(error.value) or "`optimizer_state: keep`" in str(error.value)
    assert len(error.value.problems) == 1


def test_a_momentum_that_is_sparse_or_not_finite_is_refused_by_name():
    layer = looked_up(sparse=True)
    optimizer = with_momentum(layer)
    layer(torch.tensor([1])).sum().backward()
    optimizer.step()
    layer.sparse = False
    layer.zero_grad()
    with pytest.raises(ConfigError, match=r"momentum_buffer.weight: expected an ordinary dense tensor"):
        TorchModel(layer, BLEND, optimizer=optimizer)
    layer = linear(1.0)
    optimizer = with_momentum(layer)
    train(layer, optimizer, 1)
    fill(optimizer, "momentum_buffer", float("nan"))
    with pytest.raises(ConfigError, match=r"optimizer.momentum_buffer.weight: holds NaN or infinite values"):
        TorchModel(layer, BLEND, optimizer=optimizer)


# --- An optimizer that changes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [with_momentum, adam])
def test_a_loaded_or_emptied_state_is_followed(make):
    model, optimizer = taken(make)
    train(model.module, optimizer, 1)
    model.check()
    saved = copy.deepcopy(optimizer.state_dict())
    train(model.module, optimizer, 2)
    optimizer.load_state_dict(saved)
    model.check()
    key = "momentum_buffer" if make is with_momentum else "exp_avg"
    fill(optimizer, key, 7.0)
    section = next(one for one in model.layout.sections if one.role.is_of_optimizer)
    values = snapshot(model)[section.start_byte : section.start_byte + 4 * 8].view(np.float32)
    assert list(values) == [7.0] * 8
    optimizer.state.clear()
    model.check()
    assert not snapshot(model)[section.start_byte : section.start_byte + 4 * 8].any()
    train(model.module, optimizer, 1)
    model.check()


def test_a_state_of_another_form_is_refused_by_name():
    model, optimizer = taken()
    model.check()
    optimizer.state[model.module.weight]["momentum_buffer"] = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"tensor optimizer.momentum_buffer.weight: has the dtype float64 now, had"):
        model.check()


def test_a_parameter_that_comes_to_the_optimizer_later_or_leaves_it_is_refused_by_name():
    layer = linear(1.0)
    optimizer = SGD([layer.weight], lr=0.1, momentum=0.9)
    model = TorchModel(layer, BLEND, optimizer=optimizer)
    model.check()
    optimizer.add_param_group({"params": [layer.bias]})
    with pytest.raises(ConfigError, match=r"tensor optimizer.momentum_buffer.bias: is new since dpwa took"):
        model.check()
    model, _ = taken()
    model.check()
    model.module.weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ConfigError, match=r"momentum_buffer.weight: its parameter is no longer one of the optimizer"):
        model.check()


# --- The adapter --------------------------------------------------------------------------------------------------


class Wrapped:
    """What Accelerate puts around an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


def test_two_nodes_by_adapter_and_by_attach_come_to_one_momentum():
    layers = [linear(1.0), linear(1.0)]
    optimizers = [with_momentum(layer) for layer in layers]
    config = local_cluster(optimizer_state="blend", constant={"value": 0.5})
    with (
        DpwaPyTorchAdapter(layers[0], "w1", config, optimizer=Wrapped(optimizers[0])) as first,
        attach(layers[1], optimizers[1], name="w2", config=config) as second,
    ):
        assert first.statistics().exchanged_tensors == 4
        assert first.statistics().exchanged_bytes == 2 * 4 * 8
        until_all_have_blended([first, second], lambda: (first.step(1.0), second._step(1.0)))
        fill(optimizers[0], "momentum_buffer", 8.0)

        def distance() -> float:
            one, two = (state_of(optimizer, "momentum_buffer")[0] for optimizer in optimizers)
            return float((one - two).abs().max())

        for _ in range(40):
            first.step(1.0)
            second._step(1.0)
        assert distance() < 0.01
        assert 0.0 < float(state_of(optimizers[0], "momentum_buffer")[0][0, 0]) < 8.0


def test_without_an_optimizer_the_adapter_says_what_to_write():
    config = local_cluster(optimizer_state="blend")
    with pytest.raises(ConfigError, match=r"or attach\(model, optimizer\), or set `optimizer_state: keep`"):
        DpwaPyTorchAdapter(linear(1.0), "w1", config)
    with pytest.raises(ConfigError, match=r"optimizer: expected a torch.optim.Optimizer, got str"):
        DpwaPyTorchAdapter(linear(1.0), "w1", config, optimizer="adam")


def test_nodes_of_which_one_blends_its_state_are_told_so_in_words_and_the_journal_counts_the_tensors(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path))
    config = local_cluster()
    blending = config.model_copy(update={"optimizer_state": "blend"})
    layers = [linear(1.0), linear(1.0)]
    with (
        DpwaPyTorchAdapter(layers[0], "w1", config) as first,
        attach(layers[1], adam(layers[1]), name="w2", config=blending) as second,
    ):

        def told() -> bool:
            first.step(1.0)
            second._step(1.0)
            return caplog.text.count("give all nodes the same cluster file") >= 2

        wait_until(told, "both nodes' warnings")
    assert (
        "nothing here, optimizer.exp_avg.weight float32 [2, 3] running moment there; only the peer has" in caplog.text
    )
    assert "only this node has `optimizer_state: blend`" in caplog.text
    events = (tmp_path / "nodes" / "w2" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    start = json.loads(events[0])
    assert (start["exchanged_tensors"], start["exchanged_bytes"]) == (6, 3 * 4 * 8)
