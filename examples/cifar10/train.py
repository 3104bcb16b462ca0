"""Learns CIFAR-10; in a cluster, each node sees its own part of the 50,000 images.

Alone:         python examples/cifar10/train.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/cifar10/train.py --model resnet18
Their average: dpwa average runs/RUN --evaluate dpwa.examples.cifar10.train:evaluate
"""

import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler

from dpwa import DpwaPyTorchAdapter
from dpwa.examples.cifar10.data import load_samples, open_images, prepare, shift_and_mirror
from dpwa.examples.cifar10.model import build_network, network_of
from dpwa.examples.command_line import argument_parser, data_dir_of_environment
from dpwa.examples.devices import device_of_this_node
from dpwa.examples.evaluation import accuracy_of
from dpwa.examples.progress import TrainingProgress
from dpwa.examples.shards import part_of


def main() -> None:
    parser = argument_parser("Learn CIFAR-10.", epochs=10)
    parser.add_argument("--model", choices=("small", "resnet18"), default="small", help="default: %(default)s")
    arguments = parser.parse_args()
    device = device_of_this_node()
    train = part_of(open_images(arguments.data_dir, train=True), arguments.shard)
    test = load_samples(arguments.data_dir, train=False).to(device)
    some = test.first(1000)  # enough for a curve; the whole set is measured once, at the end
    torch.manual_seed(1)  # all nodes start from the same weights
    model = build_network(arguments.model).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    with DpwaPyTorchAdapter(model) as node, TrainingProgress("CIFAR-10", arguments.epochs) as progress:
        # Dealt out once: a node never sees the images of the others, and its own in another order in each epoch.
        mine = list(DistributedSampler(train, num_replicas=node.world_size, rank=node.rank))
        torch.manual_seed(2 + node.rank)  # from here on, each node draws its own random numbers
        loader = DataLoader(train, batch_size=128, sampler=SubsetRandomSampler(mine), drop_last=True)

        accuracy = accuracy_of(model, some, prepare)
        node.log(epochs=arguments.epochs, test_accuracy=accuracy, training_started_s=time.time())
        for epoch in range(arguments.epochs):
            for batch, (images, labels) in enumerate(loader, start=1):
                inputs = shift_and_mirror(prepare(images.to(device)))
                loss = cross_entropy(model(inputs), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                node.step(loss)
                progress.show(epoch + batch / len(loader), loss, accuracy)
            accuracy = accuracy_of(model, some, prepare)
            node.log(epoch=epoch + 1, test_accuracy=accuracy)
        node.log(training_ended_s=time.time())
        node.finish()  # stay until the others are done, too

        accuracy = accuracy_of(model, test, prepare)
        node.log(test_accuracy=accuracy)
        print(f"CIFAR-10: test accuracy of {node.name}: {accuracy:.1%}", flush=True)


def evaluate(weights: dict[str, torch.Tensor]) -> float:
    """The test accuracy of a saved model, for `dpwa average`."""
    model = network_of(weights)
    model.load_state_dict(weights)
    return accuracy_of(model, load_samples(data_dir_of_environment(), train=False), prepare)


if __name__ == "__main__":
    main()
