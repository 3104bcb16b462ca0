"""The examples: their shards, loaders, models and averages, and that each script runs alone and in a cluster."""

from __future__ import annotations

import difflib
import importlib
import io
import itertools
import json
import os
import runpy
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from dpwa import average_models
from dpwa.config.cluster import ClusterConfig
from dpwa.examples import progress, torchvision_import
from dpwa.examples.cifar10 import data as cifar10_data
from dpwa.examples.cifar10.model import build_network
from dpwa.examples.devices import rank_of_this_node
from dpwa.examples.digits import data as digits_data
from dpwa.examples.evaluation import accuracy_of, final_models
from dpwa.examples.fashion_mnist import data as fashion_data
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.examples.samples import Samples, normaliser
from dpwa.examples.shards import parse_shard, part_of
from dpwa.launch.ports import free_ports
from support import ROOT

EXAMPLES = ROOT / "examples"
PROCESS_TIMEOUT_S = 100


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DPWA_CONFIG", "DPWA_NODE", "DPWA_RUN_DIR", "DPWA_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    random_state = torch.get_rng_state()
    yield
    torch.set_rng_state(random_state)


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


def test_an_average_covers_statistics_of_batchnorm_and_takes_counters_from_the_first(tmp_path: Path) -> None:
    paths = []
    for index, value in enumerate((1.0, 2.0, 6.0)):
        norm = nn.BatchNorm1d(2)
        for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.fill_(value)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(index + 7)
        paths.append(tmp_path / f"{index}.safetensors")
        save_file(norm.state_dict(), paths[-1])
    average = average_models(paths)
    for name in ("weight", "running_mean", "running_var"):
        assert average[name].tolist() == [3.0, 3.0]
        assert average[name].dtype == torch.float32
    assert average["num_batches_tracked"].item() == 7


def test_an_average_keeps_half_precision(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"weight": torch.full((3,), value, dtype=torch.bfloat16)}, tmp_path / name)
    average = average_models([tmp_path / "a", tmp_path / "b"])
    assert average["weight"].dtype == torch.bfloat16
    assert average["weight"].tolist() == [1.5, 1.5, 1.5]


def test_different_models_are_not_averaged(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "a")
    save_file({"weight": torch.zeros(4)}, tmp_path / "b")
    with pytest.raises(ValueError, match=r"weight is of shape \[3\]"):
        average_models([tmp_path / "a", tmp_path / "b"])


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one file"):
        average_models([])


def test_only_nodes_that_have_saved_a_model_are_averaged(tmp_path: Path) -> None:
    for name in ("w1", "w3"):
        (tmp_path / "nodes" / name).mkdir(parents=True)
        (tmp_path / "nodes" / name / "model.safetensors").touch()
    found = final_models(tmp_path, ["w1", "w2", "w3"])
    assert [path.parent.name for path in found] == ["w1", "w3"]


# Loading


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """A Fashion-MNIST of 300 and 40 random images, in torchvision's layout."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 40)):
        _write_idx(raw / f"{part}-images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28)))
        _write_idx(raw / f"{part}-labels-idx1-ubyte", generator.integers(0, 10, count))
    return tmp_path


@pytest.fixture
def cifar10_folder(tmp_path: Path) -> Path:
    """A folder of 2 classes with 130 training and 4 test images each; each image has a colour of its own."""
    for part, count in (("train", 130), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (index, label, 99)).save(folder / f"{index:04}.png")
    return tmp_path


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


def test_torchvision_can_be_imported_for_data_sets_and_models() -> None:
    torchvision = torchvision_import.import_torchvision()
    assert torchvision.datasets.FashionMNIST
    assert torchvision.models.resnet18


def test_an_unrelated_failure_of_the_import_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="torchvision is broken"):
        torchvision_import.import_torchvision()


# The training files

TRAINING_FILES = sorted(EXAMPLES.glob("*/train.py"))


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: path.parent.name)
def test_the_loop_stands_in_sight_in_the_training_file_of_an_example(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    loop = ["loss.backward()", "optimizer.step()", "node.step(loss)", "node.finish()"]
    places = [text.find(f" {line}") for line in loop]
    assert -1 not in places
    assert places == sorted(places)
    assert 40 <= len(text.splitlines()) <= 80


def test_a_training_file_is_there_for_each_data_set_for_a_custom_rule_and_for_resuming() -> None:
    found = [path.parent.name for path in TRAINING_FILES]
    assert found == ["cifar10", "custom_rule", "digits", "fashion_mnist", "resume"]


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


# Whole scripts


def _run_script(path: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(str(EXAMPLES / path), run_name="__main__")


def _last_metrics(run_dir: Path, name: str) -> dict[str, object]:
    lines = (run_dir / "nodes" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[-1])
    assert isinstance(record, dict)
    return record


@pytest.mark.heavy
def test_the_digits_script_runs_alone_and_learns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_script("digits/train.py", "--epochs", "3", monkeypatch=monkeypatch)
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("digits: test accuracy of alone: ")
    assert float(line.split()[-1].rstrip("%")) > 80


@pytest.mark.heavy
def test_the_fashion_mnist_script_runs_alone_and_logs_its_accuracy(
    fashion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    _run_script("fashion_mnist/train.py", "--data-dir", str(fashion_folder), "--epochs", "1", monkeypatch=monkeypatch)
    assert "Fashion-MNIST: test accuracy of alone: " in capsys.readouterr().out
    record = _last_metrics(tmp_path / "run", "alone")
    assert (record["step"], record["epoch"], record["epochs"]) == (2, 1.0, 1)
    assert isinstance(record["test_accuracy"], float)


def test_the_data_folder_can_come_from_the_environment(
    cifar10_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPWA_DATA_DIR", str(cifar10_folder))
    _run_script("cifar10/train.py", "--epochs", "1", "--shard", "1/2", monkeypatch=monkeypatch)
    assert "CIFAR-10: test accuracy of alone: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--shard", "9/4"], ["--epochs", "0"], ["--epochs", "many"]])
def test_a_bad_argument_is_explained(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as end:
        _run_script("digits/train.py", *arguments, monkeypatch=monkeypatch)
    assert end.value.code == 2
    assert "expected" in capsys.readouterr().err


def _launch(tmp_path: Path, count: int, *command: str) -> tuple[str, Path]:
    cluster_file, run_dir = tmp_path / "cluster.yaml", tmp_path / "run"
    cluster_file.write_text(ClusterConfig.for_localhost(count, ports=free_ports(count)).to_yaml(), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", cluster_file, "--run-dir", run_dir, "--", sys.executable, *command],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONWARNINGS": "error::UserWarning"},
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, run_dir


@pytest.mark.heavy
def test_two_digits_nodes_learn_together_and_report_the_averaged_model(tmp_path: Path) -> None:
    output, run_dir = _launch(tmp_path, 2, "examples/digits/train.py", "--epochs", "4")
    assert "w1 | digits: test accuracy of w1: " in output
    assert "w2 | digits: test accuracy of w2: " in output
    assert "averaged model of 2 of 2 nodes: " in output
    for name in ("w1", "w2"):
        exchanges = _last_metrics(run_dir, name)["exchanges"]
        assert isinstance(exchanges, int)
        assert exchanges > 0


@pytest.mark.heavy
def test_the_existing_script_runs_in_a_cluster_once_dpwa_is_added(tmp_path: Path) -> None:
    output, _ = _launch(tmp_path, 2, "examples/existing_script/after.py", "--epochs", "1")
    assert output.count("test accuracy: ") == 2


@pytest.mark.heavy
def test_the_existing_script_runs_before_dpwa_is_added(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_script("existing_script/before.py", "--epochs", "1", monkeypatch=monkeypatch)
    assert "test accuracy: " in capsys.readouterr().out


def test_dpwa_changes_at_most_six_lines_of_an_existing_script() -> None:
    before, after = (
        (EXAMPLES / "existing_script" / name).read_text(encoding="utf-8").splitlines()
        for name in ("before.py", "after.py")
    )
    changes = [line for line in difflib.ndiff(before, after) if line.startswith(("+", "-"))]
    assert 0 < len(changes) <= 6
