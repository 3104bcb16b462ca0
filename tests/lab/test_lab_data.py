"""The lab's data sets, read from small files in the formats of the real ones, and labels that are made wrong."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
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
from dpwa.lab.training.models import build
from dpwa.lab.training.text_data import ALPHABET

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
    with pytest.raises(
        ConfigError, match='expected one of digits, mnist, fashion_mnist, cifar10, text, text_files, got "imagenet"'
    ):
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


def test_the_text_is_always_the_same_and_its_labels_are_the_characters_that_follow() -> None:
    text = load("text", None)

    assert (len(text.train), len(text.held_out)) == (5000, 1000)
    assert (text.shape, text.classes) == ((64,), 28)
    assert torch.equal(text.train.images[:, 1:].long(), text.train.labels[:, :-1])
    assert text.prepare(text.train.images[:3]).dtype == torch.int64
    assert torch.equal(torch.bincount(text.groups), torch.full((10,), 500))
    first = "".join(ALPHABET[place] for place in text.train.images[0].tolist())
    assert first == "amoce buhube sefumi subutu muci ci riru gu toti rotupu hamuku me"


def test_authors_of_the_text_use_the_same_words_and_have_habits_of_their_own() -> None:
    text = load("text", None)
    written = ["".join(ALPHABET[place] for place in sample) for sample in text.train.images.tolist()]
    pairs = []
    for author in (0, 1):
        words = " ".join(written[author * 500 : (author + 1) * 500]).replace(".", "").split()
        pairs.append({pair for pair, count in Counter(pairwise(words)).items() if count > 20})

    assert len(pairs[0]) > 50
    assert len(pairs[0] & pairs[1]) < len(pairs[0]) / 4


def written(folder: Path, **texts: str | bytes | None) -> Path:
    """A folder of data sets with these texts; None: a folder."""
    (folder / "text").mkdir()
    for name, text in texts.items():
        path = folder / "text" / f"{name}.txt"
        if text is None:
            path.mkdir()
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_each_text_of_a_user_is_an_author_and_a_tenth_of_it_is_held_out(tmp_path) -> None:
    first, second = ("to be, or not to be: " * 100)[:1950], ("é, \U0001f642\n" * 400)[:1300]
    found = load("text_files", written(tmp_path, b=second, a=first + "the end that fills no piece"))

    assert (len(found.train), len(found.held_out), found.shape) == (45, 5, (64,))
    assert torch.bincount(found.groups).tolist() == [27, 18]
    assert torch.equal(found.train.images[:, 1:].long(), found.train.labels[:, :-1])
    letters = sorted(set(first + second))
    assert found.classes == len(letters)
    samples = [*found.train.images[:9], found.held_out.images[0], *found.train.images[9:18]]
    last = [*found.train.labels[:9, -1], found.held_out.labels[0, -1], *found.train.labels[9:18, -1]]
    read = [[*sample.tolist(), int(end)] for sample, end in zip(samples, last, strict=True)]
    assert "".join(letters[place] for piece in read for place in piece) == first[: 19 * 65]
    assert found.prepare(found.train.images).dtype == torch.int64


@pytest.mark.parametrize("first", ["\ufeff", "\U0001f642"])
def test_a_character_that_follows_none_is_one_of_the_classes(tmp_path, first) -> None:
    found = load("text_files", written(tmp_path, a=first + "the quick brown fox jumps over it. " * 60))
    model = build("char_transformer", found.shape, found.classes, seed=0)
    letters = len(set("the quick brown fox jumps over it."))

    assert found.classes == letters + (first != "\ufeff")  # the mark of an encoding is no character
    assert model(found.prepare(found.train.images)).shape == (len(found.train), found.classes, 64)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, r"expected files \*.txt, one for each author, in .*text, found none.*--data-dir"),
        ({"a": "x" * 649}, r"at least 650 characters in .*a.txt, got 649"),
        ({"a": b"\xff" * 700}, r"expected UTF-8 in .*a.txt"),
        ({"a": None}, r"a.txt cannot be read \(Is a directory\)"),
        ({"a": "".join(map(chr, range(1000, 1700)))}, r"at most 256 different characters, got 650"),
    ],
)
def test_texts_that_cannot_be_learnt_are_told(tmp_path, texts, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load("text_files", written(tmp_path, **texts))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's own data sets."""
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\n"
        "X, Y = np.arange(24, dtype='f8').reshape(8, 3), np.arange(8) % 3\n"
        "def floats(folder): return X, Y, X[:4], Y[:4]\n"
        "B = X.astype('u1').reshape(8, 1, 3, 1)\n"
        "def bytes_(folder): return B, Y, B[:4], Y[:4]\n"
        "def colours(folder): return X.reshape(2, 3, 2, 2), Y[:2], X.reshape(2, 3, 2, 2), Y[:2]\n"
        "def grouped(folder): return X.astype('i4'), X.astype('i4'), X[:4].astype('i4'), X[:4].astype('i4'), Y\n"
        "def of_folder(folder): return floats(None) if (folder / 'there').exists() else None\n"
        "def three(folder): return X, Y, X\n"
        "def negative(folder): return X, Y - 1, X[:4], Y[:4]\n"
        "def unequal(folder): return X, Y[:5], X[:4, :2], Y[:4]\n"
        "def words(folder): return ['a'], ['b'], ['c'], ['d']\n"
        "def broken(folder): return {}['x']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_data", None)


@pytest.mark.usefixtures("own")
def test_a_users_own_arrays_become_a_data_set_and_come_the_same_from_the_cache(tmp_path) -> None:
    for cache in (None, tmp_path / "cache.safetensors", tmp_path / "cache.safetensors"):
        found = load("own_data:floats", None, cache)
        assert (len(found.train), len(found.held_out), found.classes, found.shape) == (8, 4, 3, (3,))
        assert found.prepare(found.train.images).dtype == torch.float32
        assert torch.equal(found.groups, found.train.labels)


@pytest.mark.usefixtures("own")
def test_images_come_in_the_order_in_which_a_network_of_the_user_can_view_what_its_convolutions_give() -> None:
    found = load("own_data:colours", None)
    given = torch.nn.Conv2d(3, 2, 2, padding=1)(found.prepare(found.train.images))
    assert given.view(2, -1).shape == (2, 18)


@pytest.mark.usefixtures("own")
def test_bytes_of_a_user_become_floats_up_to_1_and_other_whole_numbers_stay() -> None:
    found = load("own_data:bytes_", None)
    assert torch.allclose(found.prepare(found.train.images).flatten(), torch.arange(24) / 255)
    found = load("own_data:grouped", None)
    assert found.prepare(found.train.images).dtype == torch.int64
    assert (found.train.labels.shape, found.classes) == ((8, 3), 24)
    assert torch.equal(found.groups, torch.arange(8) % 3)


@pytest.mark.usefixtures("own")
def test_a_users_function_is_given_the_folder_of_the_data(tmp_path) -> None:
    (tmp_path / "there").touch()
    assert len(load("own_data:of_folder", tmp_path).train) == 8


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "three",
            "expected (train_x, train_y, test_x, test_y), optionally with train_groups, as arrays or tensors, got",
        ),
        ("negative", "train_y: expected whole numbers from 0, got torch.int64, from -1"),
        ("unequal", "train_y: expected a row for each of 8 samples, at least one, got (5,)"),
        ("unequal", "train_x and test_x: expected shape (count, ...) with samples of one shape, got (8, 3) and (4, 2)"),
        ("words", "got something that is no array"),
        ("broken", "the function raised KeyError('x')"),
    ],
)
def test_what_a_users_function_returns_is_checked_and_explained(name, message) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"own_data:{name}", None)
    assert f'data "own_data:{name}": ' in str(caught.value)
    assert message in str(caught.value)


def test_all_labels_of_the_chosen_sequences_become_wrong() -> None:
    samples = Samples(torch.zeros(10, 4).long(), torch.arange(40).view(10, 4) % 5)
    wrong = with_wrong_labels(samples, 0.3, 5, seed=1).labels
    assert int((wrong != samples.labels).sum()) == 12
    assert int((wrong != samples.labels).any(dim=1).sum()) == 3
