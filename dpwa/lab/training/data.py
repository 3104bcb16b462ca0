"""The data sets of the lab, each as two sets of labelled samples and the transform that makes a model's input of them.

A sample is an image with its class; or a sequence of characters, with the character that follows each of them.

Images stay as they are stored, mostly as bytes, and each batch is prepared when it is used: in every process,
Fashion-MNIST takes 47 MB like this, and would take 188 MB as floats.

The library of a data set is imported only when that data set is loaded.

As a program, `python -m dpwa.lab.training.data NAME FILE` loads one data set into one file. So a run knows before its
first trial whether the data can be had, and its user sees the download.

Must not know: models, nodes, partitions. Runs in: the training thread; as a program, the main thread.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpwa.custom_code import blamed, is_own, load_function
from dpwa.errors import ConfigError
from dpwa.examples.command_line import data_dir_of_environment
from dpwa.examples.fashion_mnist import data as fashion_mnist
from dpwa.examples.samples import Samples, Transform, normaliser, unchanged
from dpwa.examples.torchvision_data import DEFAULT_DATA_DIR, MissingDataError, open_data_set
from dpwa.lab.study.settings import TEXT_DATA_SETS

__all__ = ["DataSet", "load", "with_wrong_labels"]

CLASSES = 10  # of each of the data sets of images

_PARTS = ("train", "held_out")

Stored = tuple[Samples, Samples] | tuple[Samples, Samples, Tensor]
"""Training and held-out samples as they are stored, and perhaps the groups of the former."""

# Of MNIST's training images, with pixels 0..1.
MNIST_MEAN = (0.1307,)
MNIST_DEVIATION = (0.3081,)


@dataclass(frozen=True)
class DataSet:
    """Samples for training and for testing.

    Attributes:
        train: what all nodes together train on, in the same order in every process.
        held_out: what no node trains on.
        prepare: turns a batch of stored samples into a model's input, shape (count, *shape).
        classes: number of classes; labels are 0..classes-1.
        shape: of a sample: channels, height and width of an image, or the length of a sequence.
        groups: the group of each training sample, by which partitions with kinds divide: its class, or for a sequence
            who wrote it; int64, shape (count,).
    """

    train: Samples
    held_out: Samples
    prepare: Transform
    classes: int
    shape: tuple[int, ...]
    groups: Tensor


def load(name: str, data_dir: Path | None, cache: Path | None = None) -> DataSet:
    """A data set, downloaded first if it is not on the disk.

    Args:
        name: "digits" (comes with scikit-learn), "mnist", "fashion_mnist", "cifar10", "text" or "text_files" (see
            `text_data`), or a user's own "module:function" (see `own_arrays`).
        data_dir: the folder of torchvision's data sets; for CIFAR-10 also one that holds train/CLASS/*.jpg and
            test/CLASS/*.jpg, directly or in its folder cifar10; for text_files one with text/*.txt; None: ./data.
        cache: one file with all samples, which many processes can read quickly; written if it is missing. None: none.

    Raises:
        ConfigError: there is no such data set, or it can be neither found nor downloaded.
    """
    if name not in _READERS and not is_own(name):
        raise ConfigError(f'loading data: expected one of {", ".join(_READERS)}, got "{name}"')
    if cache is not None and cache.exists():
        found = load_file(cache)
    else:
        found = own_arrays(name, data_dir) if is_own(name) else _tensors(*_read(name, data_dir))
        if cache is not None:
            _write(cache, found)
    train, held_out = (Samples(found[f"{part}_images"], found[f"{part}_labels"]) for part in _PARTS)
    is_unprepared = name not in _PREPARATIONS  # such as a user's own data
    is_counted = is_unprepared or name in TEXT_DATA_SETS
    counted = [train.labels, held_out.labels]
    if name in TEXT_DATA_SETS:
        counted += [train.images, held_out.images]  # a character may be followed and follow none
    classes = 1 + max(int(found.max()) for found in counted) if is_counted else CLASSES
    prepare = _bytes_to_floats if is_unprepared else _PREPARATIONS[name]()
    shape = tuple(train.images.shape[1:])
    return DataSet(train, held_out, prepare, classes, shape, _groups(found))


def own_arrays(name: str, data_dir: Path | None) -> dict[str, Tensor]:
    """What a user's own function returns, checked: (train_x, train_y, test_x, test_y) or with train_groups after them.

    NumPy arrays or tensors. x: one sample per row, as the model takes them: floats; bytes, which become floats 0..1; or
    other whole numbers, which stay what they are. y: whole numbers from 0, shape (count,), or (count, length) for
    sequences. Groups: whole numbers from 0, shape (count,); see `DataSet`.

    Args:
        name: "module:function". The function is called with the folder of the data sets, or None.
        data_dir: that folder.

    Raises:
        ConfigError: there is no such function, it raised something, or it returned something else.
    """
    function = load_function(name, "data")
    with blamed(function, lambda error: f'data "{name}": the function raised {error}'):
        returned = function(data_dir)
    expected = "expected (train_x, train_y, test_x, test_y), optionally with train_groups, as arrays or tensors"
    if not isinstance(returned, (tuple, list)) or len(returned) not in (4, 5):
        size = f" of {len(returned)}" if isinstance(returned, (tuple, list)) else ""
        raise ConfigError(f'data "{name}": {expected}, got {type(returned).__name__}{size}; return such a tuple')
    names = ("train_images", "train_labels", "held_out_images", "held_out_labels", "train_groups")
    try:
        found = {key: torch.as_tensor(value) for key, value in zip(names, returned, strict=False)}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f'data "{name}": {expected}, got something that is no array ({error})') from error
    problems = list(_array_problems(found))
    if problems:
        raise ConfigError([f'data "{name}": {problem}' for problem in problems])
    for key, value in found.items():
        if "images" not in key or not (value.is_floating_point() or value.dtype == torch.uint8):
            found[key] = value.long()
        elif value.is_floating_point():
            found[key] = value.float()
    return found


def _array_problems(found: dict[str, Tensor]) -> Iterator[str]:
    shapes = {part: tuple(found[f"{part}_images"].shape) for part in _PARTS}
    if len(shapes["train"]) < 2 or shapes["train"][1:] != shapes["held_out"][1:]:
        yield (
            f"train_x and test_x: expected shape (count, ...) with samples of one shape, got {shapes['train']} and "
            f"{shapes['held_out']}"
        )
    for key, value in found.items():
        if "images" in key:
            continue
        samples = found["held_out_images" if "held_out" in key else "train_images"]
        shown = {"train_labels": "train_y", "held_out_labels": "test_y"}.get(key, key)
        if value.shape[:1] != samples.shape[:1] or not len(value):
            yield f"{shown}: expected a row for each of {len(samples)} samples, at least one, got {tuple(value.shape)}"
        elif value.is_floating_point() or value.dtype == torch.bool or int(value.min()) < 0:
            yield f"{shown}: expected whole numbers from 0, got {value.dtype}, from {value.min().item():g}"
        elif key == "train_groups" and value.ndim != 1:
            yield f"{shown}: expected one number per sample, got shape {tuple(value.shape)}"


def _groups(found: dict[str, Tensor]) -> Tensor:
    """The groups of a data set; without any, a sequence is of the same group as all."""
    labels = found["train_labels"]
    return found.get("train_groups", labels if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.int64))


def _read(name: str, data_dir: Path | None) -> Stored:
    try:
        return _READERS[name](data_dir)
    except (OSError, RuntimeError, MissingDataError) as error:
        images = (
            ", or train/CLASS/*.jpg and test/CLASS/*.jpg there or in its folder cifar10" if name == "cifar10" else ""
        )
        reason = error.reason if isinstance(error, MissingDataError) else error
        raise ConfigError(
            f"loading {name}: expected torchvision's files in {(data_dir or DEFAULT_DATA_DIR).resolve()}{images}, or a "
            f"network to download them from, got: {reason}; name the folder that holds them with --data-dir or in "
            f"DPWA_DATA_DIR"
        ) from error


def _tensors(train: Samples, held_out: Samples, groups: Tensor | None = None) -> dict[str, Tensor]:
    """The same as the content of a cache."""
    found = {
        f"{part}_{what}": getattr(samples, what).contiguous()
        for part, samples in zip(_PARTS, (train, held_out), strict=True)
        for what in ("images", "labels")
    }
    return found if groups is None else {**found, "train_groups": groups}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")  # several processes may come here at the same time
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
    draft.replace(path)


def with_wrong_labels(samples: Samples, share: float, classes: int, *, seed: int) -> Samples:
    """The same samples, some of them with wrong labels.

    Args:
        samples: images and their classes, or sequences, of which all labels become wrong; they are not changed.
        share: of the labels to replace, 0..1: exactly round(share * count) of them, chosen at random. Each of the
            other classes is equally likely.
        classes: number of classes.
        seed: the same seed gives the same wrong labels.

    Raises:
        ValueError: the share is outside 0..1, or there are fewer than two classes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"replacing labels: expected a share from 0 to 1, got {share}")
    if classes < 2:
        raise ValueError(f"replacing labels: expected at least 2 classes, got {classes}: there is no wrong one")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(samples), generator=generator)[: round(share * len(samples))]
    # Moved by 1..classes-1, modulo classes: never back to the right one.
    distance = torch.randint(1, classes, samples.labels[chosen].shape, generator=generator)
    labels = samples.labels.clone()
    labels[chosen] = (labels[chosen] + distance) % classes
    return Samples(samples.images, labels)


def _digits(data_dir: Path | None) -> tuple[Samples, Samples]:  # noqa: ARG001 - they come with scikit-learn
    from dpwa.examples.digits.data import load_split  # noqa: PLC0415 - needs scikit-learn

    train, held_out = load_split()
    return train, held_out


def _grey(name: str, data_dir: Path | None) -> tuple[Samples, Samples]:
    """A data set of torchvision whose images have one channel, and no dimension for it."""
    sets = (open_data_set(name, data_dir, train=train) for train in (True, False))
    train, held_out = (Samples(found.data.unsqueeze(1), found.targets.long()) for found in sets)
    return train, held_out


def _cifar10(data_dir: Path | None) -> tuple[Samples, Samples]:
    from dpwa.examples.cifar10.data import load_samples  # noqa: PLC0415 - needs Pillow

    if data_dir is not None and (data_dir / "cifar10" / "train").is_dir():
        data_dir = data_dir / "cifar10"
    try:
        train, held_out = (load_samples(data_dir, train=train) for train in (True, False))
    except ValueError as error:  # the folder holds no images, or images of another size
        raise ConfigError(f"loading cifar10: {error}") from error
    return train, held_out


def _text(data_dir: Path | None) -> tuple[Samples, Samples, Tensor]:  # noqa: ARG001 - it is made here
    from dpwa.lab.training.text_data import generated_text  # noqa: PLC0415 - only for this data set

    return generated_text()


def _text_files(data_dir: Path | None) -> tuple[Samples, Samples, Tensor]:
    from dpwa.lab.training.text_data import text_of_files  # noqa: PLC0415 - only for this data set

    return text_of_files((data_dir or DEFAULT_DATA_DIR) / "text")


_READERS: dict[str, Callable[[Path | None], Stored]] = {
    "digits": _digits,
    "mnist": partial(_grey, "MNIST"),
    "fashion_mnist": partial(_grey, "FashionMNIST"),
    "cifar10": _cifar10,
    "text": _text,
    "text_files": _text_files,
}


def _cifar10_preparation() -> Transform:
    from dpwa.examples.cifar10.data import prepare  # noqa: PLC0415 - needs Pillow

    found: Transform = prepare
    return found


def _bytes_to_floats(samples: Tensor) -> Tensor:
    return samples.float() / 255 if samples.dtype == torch.uint8 else samples


_PREPARATIONS: dict[str, Callable[[], Transform]] = {
    "digits": lambda: unchanged,
    "mnist": lambda: normaliser(MNIST_MEAN, MNIST_DEVIATION),
    "fashion_mnist": lambda: fashion_mnist.prepare,
    "cifar10": _cifar10_preparation,
    "text": lambda: Tensor.long,
    "text_files": lambda: Tensor.long,
}


def main() -> None:
    """Loads a data set into a file; exits with 2 and the reason if that is impossible."""
    name, cache = sys.argv[1:]
    try:
        load(name, data_dir_of_environment(), Path(cache))
    except ConfigError as error:
        if is_own(name) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # of the user's own code
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
