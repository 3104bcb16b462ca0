"""What the examples are made of: shards, data, networks, evaluation, progress."""

from __future__ import annotations

import io
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from dpwa.config.cluster import ClusterConfig
from dpwa.examples import progress
from dpwa.examples.cifar10 import data as cifar10_data
from dpwa.examples.cifar10.model import build_network
from dpwa.examples.devices import device_of_this_node, rank_of_this_node
from dpwa.examples.digits import data as digits_data
from dpwa.examples.evaluation import accuracy_of
from dpwa.examples.fashion_mnist import data as fashion_data
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.examples.samples import Samples, normaliser
from dpwa.examples.shards import parse_shard, part_of

# Shards


def test_the_parts_that_shard_leaves_are_disjoint_and_complete() -> None:
    data = TensorDataset(torch.arange(100))
    parts = [[int(sample) for (sample,) in part_of(data, (rank, 4))] for rank in range(4)]
    assert sorted(itertools.chain(*parts)) == list(range(100))
    assert part_of(data, None) is data


def test_shards_by_class_are_disjoint_complete_and_hold_their_classes_only() -> None:
    labels = torch.arange(200) % 5
    holdings = [{0, 1}, {1, 2, 3}, {3, 4, 0}]
    shards = [digits_data.shard_by_class(labels, holdings, rank, seed=3) for rank in range(3)]
    assert sorted(torch.cat(shards).tolist()) == list(range(200))
    for shard, classes in zip(shards, holdings, strict=True):
        assert set(labels[shard].tolist()) == classes


def test_a_class_that_nobody_holds_is_left_out() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert sorted(digits_data.shard_by_class(labels, [{0}], 0, seed=0).tolist()) == [0, 3]


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "1/4/2", "-1/4", "1.0/4"])
def test_a_malformed_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_shard(text)


def test_a_shard_is_counted_from_one() -> None:
    assert parse_shard("2/4") == (1, 4)


def test_a_process_on_its_own_has_rank_0() -> None:
    assert rank_of_this_node() == 0


def test_a_launched_process_finds_its_rank_in_the_cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_path = tmp_path / "cluster.yaml"
    config_path.write_text(ClusterConfig.for_localhost(3).to_yaml(), encoding="utf-8")
    monkeypatch.setenv("DPWA_CONFIG", str(config_path))
    monkeypatch.setenv("DPWA_NODE", "w3")
    assert rank_of_this_node() == 2


@pytest.mark.parametrize(
    ("variables", "gpu"),
    [
        ({}, 0),
        ({"RANK": "6", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "2"}, 2),  # torchrun
        ({"DPWA_NODE": "w3", "DPWA_LOCAL_RANK": "1"}, 1),  # dpwa launch, on the second machine
        ({"DPWA_NODE": "w3"}, 2),  # dpwa run
    ],
)
def test_a_process_takes_the_gpu_of_its_place_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], gpu: int
) -> None:
    config_path = tmp_path / "cluster.yaml"
    config_path.write_text(ClusterConfig.for_localhost(3).to_yaml(), encoding="utf-8")
    for name, value in {**variables, "DPWA_CONFIG": str(config_path)}.items():
        monkeypatch.setenv(name, value)
    assert device_of_this_node() == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of_this_node() == torch.device("cuda", gpu)


# Digits


def test_a_fifth_of_the_digits_is_held_out_and_never_trained_on() -> None:
    trainable, held_out = digits_data.load_split()
    assert len(trainable) + len(held_out) == 1797
    assert len(held_out) == pytest.approx(1797 / 5, abs=1)
    # Distinct pictures: no held-out one may lie in the training part (a few pictures of the set are alike).
    seen = {image.numpy().tobytes() for image in trainable.images}
    assert sum(image.numpy().tobytes() in seen for image in held_out.images) <= 1


def test_each_of_four_nodes_holds_five_digits_of_its_own_kind() -> None:
    trainable, _ = digits_data.load_split()
    expected = [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}, {0, 2, 4, 6, 8}, {1, 3, 5, 7, 9}]
    shards = [digits_data.shard_of_node(trainable, rank, 4) for rank in range(4)]
    assert [set(shard.labels.tolist()) for shard in shards] == expected
    assert sum(map(len, shards)) == len(trainable)


def test_a_node_alone_holds_all_digits() -> None:
    trainable, _ = digits_data.load_split()
    assert len(digits_data.shard_of_node(trainable, 0, 1)) == len(trainable)


# Models and what is done to images


def test_the_fashion_network_has_exactly_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in fashion_network().parameters()) == 1_663_370


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_each_cifar10_network_gives_ten_scores_per_image(name: str) -> None:
    assert build_network(name)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_normalised_images_have_the_given_mean_and_deviation() -> None:
    images = torch.randint(0, 256, (50, 2, 8, 8), dtype=torch.uint8)
    pixels = images.float() / 255
    means, deviations = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    prepared = normaliser(tuple(means.tolist()), tuple(deviations.tolist()))(images)
    assert torch.allclose(prepared.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(prepared.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-5)


def test_shifted_images_keep_their_shape_and_the_middle_of_their_content() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 10:22, 10:22] = 1.0
    changed = cifar10_data.shift_and_mirror(image.repeat(20, 1, 1, 1))
    assert changed.shape == (20, 1, 32, 32)
    assert changed.sum(dim=(1, 2, 3)).tolist() == [144.0] * 20


def test_a_batch_is_mirrored_in_part() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 32, 32)
    image[..., :16] = 1.0
    lefts = cifar10_data.shift_and_mirror(image.repeat(100, 1, 1, 1))[:, 0, 16, 8]
    assert 20 < lefts.sum() < 80


# Evaluation


class _FirstPixelIsTheClass(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()


def test_accuracy_counts_right_answers_over_all_batches() -> None:
    labels = torch.arange(1200) % 10
    images = labels.clone()
    images[:300] = (images[:300] + 1) % 10
    model = _FirstPixelIsTheClass()
    model.train()
    assert accuracy_of(model, Samples(images.view(-1, 1, 1, 1), labels)) == 0.75
    assert model.training


# Loading


def test_fashion_mnist_is_read_as_bytes_with_one_channel(fashion_folder: Path) -> None:
    samples = fashion_data.load_samples(fashion_folder, train=True)
    assert samples.images.shape == (300, 1, 28, 28)
    assert samples.images.dtype == torch.uint8
    assert len(fashion_data.load_samples(fashion_folder, train=False)) == 40


def test_a_folder_of_images_is_read_whole_and_in_an_order_that_mixes_the_classes(cifar10_folder: Path) -> None:
    samples = cifar10_data.load_samples(cifar10_folder, train=True)
    assert samples.images.shape == (260, 3, 32, 32)
    pixels = samples.images[:, :2, 0, 0].tolist()
    assert sorted(pixels) == sorted([index, label] for index in range(130) for label in range(2))
    assert torch.equal(samples.images[:, 1, 0, 0].long(), samples.labels)
    assert 20 < int(samples.first(130).labels.sum()) < 110


def test_an_image_of_a_folder_is_decoded_only_when_it_is_asked_for(cifar10_folder: Path) -> None:
    (cifar10_folder / "train" / "dog" / "0000.png").write_bytes(b"no image")
    images = cifar10_data.open_images(cifar10_folder, train=True)
    pixels, label = images[129]
    assert (pixels[:2, 0, 0].tolist(), label.item()) == ([129, 0], 0)
    with pytest.raises(UnidentifiedImageError):
        images[130]


def test_an_empty_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="found none; check --data-dir"):
        cifar10_data.open_images(tmp_path, train=True)


def test_an_image_of_another_size_is_refused_by_name(cifar10_folder: Path) -> None:
    Image.new("RGB", (31, 32)).save(cifar10_folder / "test" / "cat" / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png: expected 32x32 pixels, got 31x32"):
        cifar10_data.load_samples(cifar10_folder, train=False)


# Progress


def _shown(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> str:
    """What a training of two epochs of fifty steps shows, all within a moment."""
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(progress, "Console", partial(Console, file=output, force_terminal=is_terminal, width=100))
    with progress.TrainingProgress("digits", epochs=2) as shown:
        for step in range(1, 101):
            shown.show(step / 50, torch.tensor(0.25), accuracy=0.5)
    return output.getvalue()


def test_a_training_in_a_terminal_shows_a_bar_that_gets_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "epoch 2.0 of 2, loss 0.250, test accuracy 50.0%" in _shown(monkeypatch, is_terminal=True)


def test_a_training_elsewhere_prints_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _shown(monkeypatch, is_terminal=False)
    assert text == "digits: epoch 0.0 of 2, loss 0.250, test accuracy 50.0%\n"
