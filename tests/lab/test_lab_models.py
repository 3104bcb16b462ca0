"""The lab's networks: their sizes, and initial weights that depend on the seed alone."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dpwa.errors import ConfigError
from dpwa.lab.strategies.collective import backward_of_part
from dpwa.lab.strategies.data_parallel import CustomDataParallel
from dpwa.lab.study.settings import IMAGE_MODELS, TEXT_MODELS
from dpwa.lab.training.loop import Recipe
from dpwa.lab.training.models import build, check_scores, initial_weights_hash
from dpwa.lab.training.strategy import Strategy

PLAIN = ("mcmahan_cnn", "light_cnn", "mlp")
GREY = (1, 28, 28)
SEQUENCES = (16,)


def shape_for(name: str) -> tuple[int, ...]:
    return SEQUENCES if name in TEXT_MODELS else (1, 8, 8)


def batch_for(name: str, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and labels of 5 classes."""
    draws = torch.Generator().manual_seed(1)
    if name in TEXT_MODELS:
        drawn = torch.randint(0, 5, (count, SEQUENCES[0] + 1), generator=draws)
        return drawn[:, :-1], drawn[:, 1:]
    return torch.randn(count, 1, 8, 8, generator=draws), torch.arange(count) % 5


@pytest.mark.parametrize(("name", "parameters"), [("mcmahan_cnn", 1_663_370), ("light_cnn", 206_922), ("mlp", 218_058)])
def test_a_network_for_28x28_grey_pixels_has_exactly_its_published_number_of_parameters(name, parameters) -> None:
    assert sum(tensor.numel() for tensor in build(name, GREY, 10, seed=1).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gn_lenet", 89_834),
        ("resnet8_bn", 75_290),
        ("resnet8_gn", 75_290),
        ("resnet20_bn", 269_722),
        ("resnet20_gn", 269_722),
    ],
)
def test_a_network_for_cifar10_has_exactly_its_published_number_of_parameters(name, parameters) -> None:
    assert sum(tensor.numel() for tensor in build(name, (3, 32, 32), 10, seed=1).parameters()) == parameters


def test_the_transformer_for_the_generated_text_is_small() -> None:
    assert sum(tensor.numel() for tensor in build("char_transformer", (64,), 28, seed=1).parameters()) == 107_804


def test_a_character_is_predicted_from_itself_and_those_before_it_only() -> None:
    model = build("char_transformer", SEQUENCES, 5, seed=1).eval()
    sequences, _ = batch_for("char_transformer")
    changed = sequences.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 5
    before, after = model(sequences), model(changed)

    assert before.shape == (6, 5, 16)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9:], after[:, :, 9:])


def test_a_residual_network_without_blocks_that_change_anything_passes_the_image_on() -> None:
    model = build("resnet8_gn", (3, 32, 32), 10, seed=1)
    for block in (model[3], model[4], model[5]):
        torch.nn.init.zeros_(block.norm2.weight)
    found = model[:3](torch.ones(1, 3, 32, 32))
    with torch.no_grad():
        last = model[3:6](found)

    assert last.shape == (1, 64, 8, 8)
    assert torch.equal(last[:, :16], found[:, :, ::4, ::4])
    assert not last[:, 16:].any()


@pytest.mark.parametrize("name", [*IMAGE_MODELS, *TEXT_MODELS])
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole_without_batch_norm(name) -> None:
    samples, labels = batch_for(name)
    whole, parts = (build(name, shape_for(name), 5, seed=1) for _ in range(2))
    strategy = Strategy()
    strategy.begin(whole, Recipe(1, 6).make_optimizer(whole))
    loss, right = strategy.backward(samples, labels)
    found = [backward_of_part(parts, samples[part], labels[part], weight=1 / 6) for part in (slice(0, 4), slice(4, 6))]

    assert 0 <= right <= labels.numel()
    if not name.endswith("_bn"):
        assert right == sum(count for _, count in found)
        assert loss.item() == pytest.approx((4 * found[0][0].item() + 2 * found[1][0].item()) / 6, rel=1e-5)
        for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", [*IMAGE_MODELS, *TEXT_MODELS])
def test_replicas_train_every_network(name) -> None:
    model = build(name, shape_for(name), 5, seed=1)
    before = initial_weights_hash(model)
    strategy = CustomDataParallel([torch.device("cpu")] * 2)
    optimizer = Recipe(1, 6).make_optimizer(model)
    strategy.begin(model, optimizer)
    loss, _ = strategy.backward(*batch_for(name))
    optimizer.step()
    strategy.after_step(loss)
    strategy.close()

    assert torch.isfinite(loss)
    assert initial_weights_hash(model) != before


@pytest.mark.parametrize("shape", [GREY, (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_network_gives_a_score_per_class_for_the_images_of_every_data_set(name, shape) -> None:
    model = build(name, shape, 7, seed=1)

    assert model(torch.zeros(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("shape", [GREY, (3, 32, 32)])
@pytest.mark.parametrize("name", ["mcmahan_cnn", "light_cnn", "gn_lenet"])
def test_the_channels_of_a_pixel_lie_together_where_a_network_pools_and_change_nothing(name, shape) -> None:
    model = build(name, shape, 7, seed=1)
    plain = nn.Sequential(*copy.deepcopy(model))
    together: list[bool] = []
    for layer in model:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(
                lambda _, given, __: together.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    images = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    scores, expected = model(images), plain(images)
    scores.square().sum().backward()
    expected.square().sum().backward()

    assert len(together) >= 2
    assert all(together)
    torch.testing.assert_close(scores, expected)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)
        assert one.is_contiguous()


@pytest.mark.parametrize("name", PLAIN)
def test_a_network_is_a_plain_sequence_of_layers_that_another_framework_has_too(name) -> None:
    plain = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear)

    assert all(type(layer) in plain for layer in build(name, GREY, 10, seed=1))


@pytest.mark.parametrize("name", [*IMAGE_MODELS, *TEXT_MODELS])
def test_initial_weights_depend_on_the_seed_alone(name) -> None:
    threads = torch.get_num_threads()
    shape = shape_for(name)
    first = initial_weights_hash(build(name, shape, 10, seed=3))
    torch.rand(5)
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert initial_weights_hash(build(name, shape, 10, seed=3)) == first
    finally:
        torch.set_num_threads(threads)
    assert initial_weights_hash(build(name, shape, 10, seed=4)) != first


@pytest.mark.seconds
def test_another_process_with_another_number_of_threads_makes_the_same_initial_weights() -> None:
    script = (
        "from dpwa.lab.training.models import build, initial_weights_hash; "
        "print(initial_weights_hash(build('mlp', (1, 8, 8), 10, seed=5)))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1" if torch.get_num_threads() > 1 else "2"}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert other.stdout.strip() == initial_weights_hash(build("mlp", (1, 8, 8), 10, seed=5))


def test_building_a_model_changes_nothing_that_is_drawn_at_random_afterwards() -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    build("light_cnn", GREY, 10, seed=1)

    assert torch.equal(torch.rand(4), expected)


def test_the_hash_is_sha_256_over_the_bytes_of_the_tensors_in_their_order() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.fill_(3.0)

    assert initial_weights_hash(model) == hashlib.sha256(np.array([1, 2, 3], "<f4").tobytes()).hexdigest()


def test_the_hash_sees_a_change_of_one_weight() -> None:
    model = build("mlp", GREY, 10, seed=1)
    before = initial_weights_hash(model)
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-3

    assert initial_weights_hash(model) != before


def test_an_unknown_network_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r'expected one of mcmahan_cnn, light_cnn, mlp, gn_lenet, .*, got "resnet"'):
        build("resnet", GREY, 10, seed=1)


def test_images_that_are_too_small_for_two_poolings_are_refused_by_convolutional_networks_only() -> None:
    with pytest.raises(ConfigError, match="expected images of at least 4x4 pixels, got 3x28"):
        build("light_cnn", (1, 3, 28), 10, seed=1)
    assert build("mlp", (1, 3, 28), 10, seed=1)(torch.zeros(1, 1, 3, 28)).shape == (1, 10)


def test_images_are_nothing_for_the_transformer_and_sequences_nothing_for_the_others() -> None:
    with pytest.raises(ConfigError, match=r"char_transformer: expected sequences, of shape \(length,\), got samples"):
        build("char_transformer", GREY, 10, seed=1)
    with pytest.raises(ConfigError, match=r"light_cnn: expected images of at least 4x4 pixels, got samples of shape"):
        build("light_cnn", SEQUENCES, 10, seed=1)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's own networks."""
    (tmp_path / "own_networks.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "def small(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))\n"
        "def lazy(shape, classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
        "def wrong(shape, classes): return 'a network'\n"
        "def broken(shape, classes): return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.usefixtures("own")
def test_a_users_own_network_is_made_for_the_data_and_gets_its_weights_from_the_seed() -> None:
    model = build("own_networks:small", (1, 8, 8), 7, seed=3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert initial_weights_hash(model) == initial_weights_hash(build("own_networks:small", (1, 8, 8), 7, seed=3))
    assert initial_weights_hash(model) != initial_weights_hash(build("own_networks:small", (1, 8, 8), 7, seed=4))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r'"own_networks:wrong": expected a function \(shape, classes\) that returns an nn.Module, got str'),
        ("broken", r'"own_networks:broken": the function raised ZeroDivisionError'),
        ("smal", r'has no function smal, did you mean "own_networks:small"\?'),
    ],
)
def test_a_users_own_network_that_cannot_be_used_is_named_with_what_is_expected(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build(f"own_networks:{name}", (1, 8, 8), 7, seed=3)


def test_a_module_that_is_not_there_is_an_error_that_says_where_it_may_lie() -> None:
    with pytest.raises(ConfigError, match=r"the module nowhere_at_all cannot be imported .* put it beside"):
        build("nowhere_at_all:f", (1, 8, 8), 7, seed=3)


def checked(model: nn.Module, *, seed: int = 0) -> nn.Module:
    samples, labels = batch_for("mlp")
    check_scores("own", model, samples, labels, 5, seed=seed)
    return model


def test_a_network_whose_scores_do_not_fit_the_data_is_told_from_a_bug() -> None:
    with pytest.raises(ConfigError, match=r"model own: expected scores of shape \(6, 5\) for 6 samples, got \(6, 4\)"):
        checked(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(ConfigError, match=r"model own: fails for the data, of shape \(6, 1, 8, 8\) and torch.float32"):
        checked(nn.Sequential(nn.Flatten(), nn.Linear(63, 5)))


def test_trying_a_network_leaves_its_running_means_and_its_mode_as_they_were() -> None:
    model = checked(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 5)))
    assert model.training
    assert int(model[0].num_batches_tracked) == 0


@pytest.mark.usefixtures("own")
def test_layers_that_get_their_size_from_the_data_get_the_weights_of_the_seed() -> None:
    found = [initial_weights_hash(checked(build("own_networks:lazy", (1, 8, 8), 5, seed=1), seed=1)) for _ in range(2)]
    assert found[0] == found[1]
