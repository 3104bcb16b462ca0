"""Learns CIFAR-10; in a cluster, each node sees its own part of the 50,000 images.

Alone:         python examples/cifar10/train.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/cifar10/train.py --model resnet18

Must not know: how dpwa works inside. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import nn

from dpwa.examples.cifar10.data import load_shard, shift_and_mirror
from dpwa.examples.samples import normaliser
from dpwa.examples.shards import Place
from dpwa.examples.torchvision_import import import_torchvision
from dpwa.examples.training import Recipe, Task, argument_parser, device_of_node, run_node

FIRST_WEIGHTS_SEED = 1

# Of the training images, with pixels 0..1.
PIXEL_MEAN = (0.4914, 0.4822, 0.4465)
PIXEL_DEVIATION = (0.2470, 0.2435, 0.2616)


def small_network() -> nn.Sequential:
    """A network of three convolutions with BatchNorm, small enough for a laptop."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 64), (64, 128)):
        layers += [
            nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))


def build_network(name: str) -> nn.Module:
    """A fresh model for images of 32x32 pixels and ten classes: "small" or "resnet18"."""
    if name == "small":
        return small_network()
    network: nn.Module = import_torchvision().models.resnet18(num_classes=10)
    return network


def main() -> None:
    parser = argument_parser("Learn CIFAR-10.", epochs=10)
    parser.add_argument("--model", choices=("small", "resnet18"), default="small", help="default: %(default)s")
    arguments = parser.parse_args()
    place = arguments.shard or Place.of_this_node()
    device = device_of_node(place)
    shard = load_shard(arguments.data_dir, place, train=True).to(device)
    held_out = load_shard(arguments.data_dir, Place(index=0, count=1), train=False).to(device)
    torch.manual_seed(FIRST_WEIGHTS_SEED)
    model = build_network(arguments.model).to(device)
    torch.manual_seed(FIRST_WEIGHTS_SEED + 1 + place.index)  # each node moves and mirrors its images in its own way
    task = Task(
        title="CIFAR-10",
        model=model,
        shard=shard,
        held_out=held_out,
        prepare=normaliser(PIXEL_MEAN, PIXEL_DEVIATION),
        augment=shift_and_mirror,
    )
    recipe = Recipe(epochs=arguments.epochs, batch_size=128, weight_decay=5e-4)
    run_node(task, recipe, seed=place.index)


if __name__ == "__main__":
    main()
