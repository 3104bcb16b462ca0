"""Learns handwritten digits; in a cluster, each node sees only five of the ten.

Alone:         python examples/digits/train.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/digits/train.py
Their average: dpwa average runs/RUN --evaluate dpwa.examples.digits.train:evaluate
What a node of the cluster would learn without the others:  python examples/digits/train.py --shard 1/4
"""

import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from dpwa import DpwaPyTorchAdapter
from dpwa.examples.command_line import argument_parser
from dpwa.examples.digits.data import load_split, shard_of_node
from dpwa.examples.digits.model import digits_network
from dpwa.examples.evaluation import accuracy_of
from dpwa.examples.progress import TrainingProgress

HELP = "Learn handwritten digits. The images come with scikit-learn: --data-dir is not needed."
EPOCHS = 44  # a shard holds 11 batches: 484 steps


def main() -> None:
    arguments = argument_parser(HELP, epochs=EPOCHS).parse_args()
    train, test = load_split()
    torch.manual_seed(1)  # all nodes start from the same weights
    model = digits_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    with DpwaPyTorchAdapter(model) as node, TrainingProgress("digits", arguments.epochs) as progress:
        rank, world_size = arguments.shard or (node.rank, node.world_size)
        shard = shard_of_node(train, rank, world_size)  # with five digits only; the other examples share evenly
        torch.manual_seed(2 + rank)  # from here on, each node draws its own random numbers
        loader = DataLoader(shard.data_set(), batch_size=32, shuffle=True, drop_last=True)

        accuracy = accuracy_of(model, test)
        node.log(epochs=arguments.epochs, test_accuracy=accuracy, training_started_s=time.time())
        for epoch in range(arguments.epochs):
            for batch, (images, labels) in enumerate(loader, start=1):
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                node.step(loss)
                progress.show(epoch + batch / len(loader), loss, accuracy)
            accuracy = accuracy_of(model, test)
            node.log(epoch=epoch + 1, test_accuracy=accuracy)
        node.log(training_ended_s=time.time())
        node.finish()  # stay until the others are done, too

        accuracy = accuracy_of(model, test)
        node.log(test_accuracy=accuracy)
        print(f"digits: test accuracy of {node.name}: {accuracy:.1%}", flush=True)


def evaluate(weights: dict[str, torch.Tensor]) -> float:
    """The test accuracy of a saved model, for `dpwa average`."""
    model = digits_network()
    model.load_state_dict(weights)
    return accuracy_of(model, load_split()[1])


if __name__ == "__main__":
    main()
