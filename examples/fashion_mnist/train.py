"""Learns Fashion-MNIST; in a cluster, each node sees its own part of the 60,000 images.

Alone:         python examples/fashion_mnist/train.py
As a cluster:  dpwa launch samples/fashion-mnist.yaml -- python examples/fashion_mnist/train.py --epochs 3

The network is the one that "Communication-Efficient Learning of Deep Networks from Decentralized Data" (McMahan et
al., 2017) trains on MNIST, and that many later papers on averaged training compare with.

Must not know: how dpwa works inside. Runs in: the training thread.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dpwa.examples.samples import Samples, normaliser
from dpwa.examples.shards import Place, shard_evenly
from dpwa.examples.torchvision_data import open_data_set
from dpwa.examples.training import Recipe, Task, argument_parser, device_of_node, run_node

FIRST_WEIGHTS_SEED = 1
SHARD_SEED = 0

# Of the training images, with pixels 0..1.
PIXEL_MEAN = (0.2860,)
PIXEL_DEVIATION = (0.3530,)


def fashion_network(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """The network of McMahan et al.: 1,663,370 parameters for grey images of 28x28 pixels and ten classes.

    Args:
        shape: channels, height and width of an image.
        classes: how many scores it gives.
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


def load_samples(data_dir: Path | None, *, train: bool) -> Samples:
    """All images of one part of Fashion-MNIST, as bytes.

    Args:
        data_dir: torchvision's folder; None for ./data.
        train: whether the training part is wanted, or else the test part.
    """
    data_set = open_data_set("FashionMNIST", data_dir, train=train)
    return Samples(data_set.data.unsqueeze(1), data_set.targets.long())


def main() -> None:
    arguments = argument_parser("Learn Fashion-MNIST.", epochs=5).parse_args()
    place = arguments.shard or Place.of_this_node()
    trainable = load_samples(arguments.data_dir, train=True)
    shard = trainable.select(shard_evenly(len(trainable), place, seed=SHARD_SEED))
    torch.manual_seed(FIRST_WEIGHTS_SEED)
    device = device_of_node(place)
    task = Task(
        title="Fashion-MNIST",
        model=fashion_network().to(device),
        shard=shard.to(device),
        held_out=load_samples(arguments.data_dir, train=False).to(device),
        prepare=normaliser(PIXEL_MEAN, PIXEL_DEVIATION),
    )
    run_node(task, Recipe(epochs=arguments.epochs, batch_size=128), seed=place.index)


if __name__ == "__main__":
    main()
