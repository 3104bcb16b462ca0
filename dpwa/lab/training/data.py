"""The data sets of the lab, each as two sets of labelled images and the transform that makes a model's input of them.

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpwa.errors import ConfigError
from dpwa.examples.command_line import data_dir_of_environment
from dpwa.examples.fashion_mnist import data as fashion_mnist
from dpwa.examples.samples import Samples, Transform, normaliser, unchanged
from dpwa.examples.torchvision_data import DEFAULT_DATA_DIR, MissingDataError, open_data_set

__all__ = ["DataSet", "load", "with_wrong_labels"]

CLASSES = 10  # of each of the data sets

_PARTS = ("train", "held_out")

# Of MNIST's training images, with pixels 0..1.
MNIST_MEAN = (0.1307,)
MNIST_DEVIATION = (0.3081,)


@dataclass(frozen=True)
class DataSet:
    """Images for training and for testing.

    Attributes:
        train: what all nodes together train on, in the same order in every process.
        held_out: what no node trains on.
        prepare: turns a batch of stored images into a model's input: floats, shape (count, *shape).
        classes: number of classes; labels are 0..classes-1.
        shape: channels, height and width of an image.
    """

    train: Samples
    held_out: Samples
    prepare: Transform
    classes: int
    shape: tuple[int, int, int]


def load(name: str, data_dir: Path | None, cache: Path | None = None) -> DataSet:
    """A data set, downloaded first if it is not on the disk.

    Args:
        name: "digits" (comes with scikit-learn), "mnist", "fashion_mnist" or "cifar10".
        data_dir: the folder of torchvision's data sets; for CIFAR-10 also one that holds train/CLASS/*.jpg and
            test/CLASS/*.jpg, directly or in its folder cifar10; None: ./data.
        cache: one file with all images, which many processes can read quickly; written if it is missing. None: none.

    Raises:
        ConfigError: there is no such data set, or it can be neither found nor downloaded.
    """
    if name not in _READERS:
        raise ConfigError(f'loading data: expected one of {", ".join(_READERS)}, got "{name}"')
    if cache is not None and cache.exists():
        found = load_file(cache)
        train, held_out = (Samples(found[f"{part}_images"], found[f"{part}_labels"]) for part in _PARTS)
    else:
        train, held_out = _read(name, data_dir)
        if cache is not None:
            _write(cache, train, held_out)
    channels, height, width = train.images.shape[1:]
    return DataSet(train, held_out, partial(_prepared, _preparation(name)), CLASSES, (channels, height, width))


def _read(name: str, data_dir: Path | None) -> tuple[Samples, Samples]:
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


def _write(path: Path, train: Samples, held_out: Samples) -> None:
    tensors = {
        f"{part}_{what}": getattr(samples, what).contiguous()
        for part, samples in zip(_PARTS, (train, held_out), strict=True)
        for what in ("images", "labels")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")  # several processes may come here at the same time
    save_file(tensors, draft)
    draft.replace(path)


def with_wrong_labels(samples: Samples, share: float, classes: int, *, seed: int) -> Samples:
    """The same images, some of them with a wrong label.

    Args:
        samples: images and their classes; they are not changed.
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
    distance = torch.randint(1, classes, chosen.shape, generator=generator)
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


_READERS: dict[str, Callable[[Path | None], tuple[Samples, Samples]]] = {
    "digits": _digits,
    "mnist": partial(_grey, "MNIST"),
    "fashion_mnist": partial(_grey, "FashionMNIST"),
    "cifar10": _cifar10,
}


def _preparation(name: str) -> Transform:
    if name == "mnist":
        return normaliser(MNIST_MEAN, MNIST_DEVIATION)
    if name == "fashion_mnist":
        return fashion_mnist.prepare
    if name == "cifar10":
        from dpwa.examples.cifar10.data import prepare  # noqa: PLC0415 - needs Pillow

        return prepare
    return unchanged


def _prepared(prepare: Transform, images: Tensor) -> Tensor:
    """A model's input, with the channels of a pixel side by side: saves a third of a convolution's time on a CPU."""
    prepared: Tensor = prepare(images)
    return prepared.to(memory_format=torch.channels_last)  # with one channel, `contiguous` would do nothing


def main() -> None:
    """Loads a data set into a file; exits with 2 and the reason if that is impossible."""
    name, cache = sys.argv[1:]
    try:
        load(name, data_dir_of_environment(), Path(cache))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
