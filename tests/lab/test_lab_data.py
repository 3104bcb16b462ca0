"""The lab's data sets, read from small files in the formats of the real ones, and labels that are made wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples
from dpwa.lab.training import data
from dpwa.lab.training.data import load, with_wrong_labels

COUNTS = {"train": 30, "t10k": 20}


def write_idx(folder: Path) -> None:
    """Torchvision's raw files of MNIST and its like: a header of big-endian numbers, then bytes."""
    folder.mkdir(parents=True)
    for part, count in COUNTS.items():
        images = np.arange(count * 28 * 28).astype(np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([0x801, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def write_image_folder(folder: Path, *, size: int = 32) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (size, size), (number * 200, index, 0)).save(folder / part / name / f"{index}.png")


def test_the_digits_are_there_without_any_files() -> None:
    digits = load("digits", None)

    assert (len(digits.train), len(digits.held_out)) == (1437, 360)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    assert torch.equal(torch.unique(digits.train.labels), torch.arange(10))
    assert digits.prepare(digits.train.images[:2]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "folder", "mean", "deviation"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_images_stay_bytes_until_a_batch_of_them_is_normalised(tmp_path, name, folder, mean, deviation) -> None:
    write_idx(tmp_path / folder / "raw")
    found = load(name, tmp_path)

    assert found.train.images.dtype == found.held_out.images.dtype == torch.uint8
    assert found.train.images.shape == (30, *found.shape) == (30, 1, 28, 28)
    assert len(found.held_out) == 20
    assert found.train.labels.dtype == torch.int64
    prepared = found.prepare(found.train.images[:3])
    assert torch.allclose(prepared, (found.train.images[:3] / 255 - mean) / deviation)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_is_read_from_a_folder_of_images_there_or_one_folder_below(tmp_path, below) -> None:
    write_image_folder(tmp_path / below)
    found = load("cifar10", tmp_path)

    assert found.train.images.shape == (6, *found.shape) == (6, 3, 32, 32)
    assert found.train.images.dtype == torch.uint8
    # The class is the red channel, whatever the order of the images.
    assert torch.equal(found.train.images[:, 0, 0, 0].long(), found.train.labels * 200)
    assert found.prepare(found.held_out.images).shape == (6, 3, 32, 32)


def test_cifar10_with_images_of_another_size_is_an_error_that_names_one(tmp_path) -> None:
    write_image_folder(tmp_path, size=16)

    with pytest.raises(ConfigError, match=r"loading cifar10: reading .*\.png: expected 32x32 pixels, got 16x16"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("failure", [RuntimeError("Error downloading x"), OSError("no route to host")])
def test_data_that_are_not_there_and_cannot_be_downloaded_are_an_error_that_says_what_to_do(
    tmp_path, monkeypatch, failure
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(data, "open_data_set", fail)

    with pytest.raises(ConfigError) as caught:
        load("mnist", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert str(failure) in str(caught.value)
    assert "DPWA_DATA_DIR" in str(caught.value)


def test_an_unknown_data_set_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='expected one of digits, mnist, fashion_mnist, cifar10, got "imagenet"'):
        load("imagenet", None)


@given(
    count=st.integers(0, 200),
    share=st.floats(0, 1),
    classes=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_exactly_the_asked_share_of_labels_is_wrong_and_all_are_classes(count, share, classes, seed) -> None:
    samples = Samples(torch.zeros(count, 1, 1, 1), torch.arange(count) % classes)
    before = samples.labels.clone()
    wrong = with_wrong_labels(samples, share, classes, seed=seed)

    assert int((wrong.labels != before).sum()) == round(share * count)
    assert bool(((wrong.labels >= 0) & (wrong.labels < classes)).all())
    assert torch.equal(samples.labels, before)
    assert wrong.images is samples.images
    assert torch.equal(with_wrong_labels(samples, share, classes, seed=seed).labels, wrong.labels)


def test_wrong_labels_are_spread_over_all_other_classes_and_differ_between_seeds() -> None:
    samples = Samples(torch.zeros(3000, 1, 1, 1), torch.full((3000,), 2))
    wrong = with_wrong_labels(samples, 1.0, 4, seed=1).labels
    counts = torch.bincount(wrong, minlength=4)

    assert counts[2] == 0
    # Binomial with 3000 draws of probability 1/3: a deviation of 26, so that 150 is nearly six of them.
    assert all(abs(int(counts[label]) - 1000) < 150 for label in (0, 1, 3))
    assert not torch.equal(wrong, with_wrong_labels(samples, 1.0, 4, seed=2).labels)


@pytest.mark.parametrize(("share", "classes"), [(-0.1, 10), (1.1, 10), (float("nan"), 10), (0.5, 1)])
def test_a_share_outside_of_0_to_1_and_a_single_class_are_refused(share, classes) -> None:
    with pytest.raises(ValueError, match="replacing labels: expected"):
        with_wrong_labels(Samples(torch.zeros(4, 1, 1, 1), torch.zeros(4).long()), share, classes, seed=1)
