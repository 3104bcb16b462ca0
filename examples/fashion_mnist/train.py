"""Learns Fashion-MNIST; in a cluster, each node sees its own part of the 60,000 images.

Alone:         python examples/fashion_mnist/train.py
As a cluster:  dpwa launch samples/fashion-mnist.yaml -- python examples/fashion_mnist/train.py --epochs 3
Their average: dpwa average runs/RUN --evaluate dpwa.examples.fashion_mnist.train:evaluate
"""

import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler

from dpwa import DpwaPyTorchAdapter
from dpwa.examples.command_line import argument_parser, data_dir_of_environment
from dpwa.examples.devices import device_of_this_node
from dpwa.examples.evaluation import accuracy_of
from dpwa.examples.fashion_mnist.data import load_samples, prepare
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.examples.progress import TrainingProgress
from dpwa.examples.shards import part_of


def main() -> None:
    arguments = argument_parser("Learn Fashion-MNIST.", epochs=5).parse_args()
    device = device_of_this_node()
    train = part_of(load_samples(arguments.data_dir, train=True).data_set(), arguments.shard)
    test = load_samples(arguments.data_dir, train=False).to(device)
    some = test.first(1000)  # enough for a curve; the whole set is measured once, at the end
    torch.manual_seed(1)  # all nodes start from the same weights
    model = fashion_network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    with DpwaPyTorchAdapter(model) as node, TrainingProgress("Fashion-MNIST", arguments.epochs) as progress:
        # Dealt out once: a node never sees the images of the others, and its own in another order in each epoch.
        mine = list(DistributedSampler(train, num_replicas=node.world_size, rank=node.rank))
        torch.manual_seed(2 + node.rank)  # from here on, each node draws its own random numbers
        loader = DataLoader(train, batch_size=128, sampler=SubsetRandomSampler(mine), drop_last=True)

        accuracy = accuracy_of(model, some, prepare)
        node.log(epochs=arguments.epochs, test_accuracy=accuracy, training_started_s=time.time())
        for epoch in range(arguments.epochs):
            for batch, (images, labels) in enumerate(loader, start=1):
                loss = cross_entropy(model(prepare(images.to(device))), labels.to(device))
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
        print(f"Fashion-MNIST: test accuracy of {node.name}: {accuracy:.1%}", flush=True)


def evaluate(weights: dict[str, torch.Tensor]) -> float:
    """The test accuracy of a saved model, for `dpwa average`."""
    model = fashion_network()
    model.load_state_dict(weights)
    return accuracy_of(model, load_samples(data_dir_of_environment(), train=False), prepare)


if __name__ == "__main__":
    main()
