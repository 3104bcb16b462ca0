"""The lab's networks: their sizes, and initial weights that depend on the seed alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dpwa.errors import ConfigError
from dpwa.lab.training.models import build, initial_weights_hash

NAMES = ("mcmahan_cnn", "light_cnn", "mlp")
GREY = (1, 28, 28)


@pytest.mark.parametrize(("name", "parameters"), [("mcmahan_cnn", 1_663_370), ("light_cnn", 206_922), ("mlp", 218_058)])
def test_a_network_for_28x28_grey_pixels_has_exactly_its_published_number_of_parameters(name, parameters) -> None:
    assert sum(tensor.numel() for tensor in build(name, GREY, 10, seed=1).parameters()) == parameters


@pytest.mark.parametrize("shape", [GREY, (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_a_score_per_class_for_the_images_of_every_data_set(name, shape) -> None:
    model = build(name, shape, 7, seed=1)

    assert model(torch.zeros(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_a_plain_sequence_of_layers_that_another_framework_has_too(name) -> None:
    plain = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear)

    assert all(type(layer) in plain for layer in build(name, GREY, 10, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_depend_on_the_seed_alone(name) -> None:
    threads = torch.get_num_threads()
    first = initial_weights_hash(build(name, GREY, 10, seed=3))
    torch.rand(5)
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert initial_weights_hash(build(name, GREY, 10, seed=3)) == first
    finally:
        torch.set_num_threads(threads)
    assert initial_weights_hash(build(name, GREY, 10, seed=4)) != first


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
    with pytest.raises(ConfigError, match='expected one of mcmahan_cnn, light_cnn, mlp, got "resnet"'):
        build("resnet", GREY, 10, seed=1)


def test_images_that_are_too_small_for_two_poolings_are_refused_by_convolutional_networks_only() -> None:
    with pytest.raises(ConfigError, match="expected images of at least 4x4 pixels, got 3x28"):
        build("light_cnn", (1, 3, 28), 10, seed=1)
    assert build("mlp", (1, 3, 28), 10, seed=1)(torch.zeros(1, 1, 3, 28)).shape == (1, 10)
