"""A training of Fashion-MNIST as in the examples, with small batches and a pace, so that many hosts fit on two cores.

    python fashion_trainer.py DATA_DIR STEPS FILE

Each node learns from its own part of the images, so many steps at least, and until the file is there. At the end it
says which share of 2000 test images it gets right.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from dpwa import DpwaPyTorchAdapter
from dpwa.examples.evaluation import accuracy_of
from dpwa.examples.fashion_mnist.data import load_samples, prepare
from dpwa.examples.fashion_mnist.model import fashion_network

BATCH = 32
PACE_S = 0.1


def main() -> None:
    data_dir, least_steps, is_enough = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    made = 0
    torch.manual_seed(1)
    model = fashion_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with DpwaPyTorchAdapter(model) as node:
        train = load_samples(data_dir, train=True)
        mine = torch.arange(node.rank, len(train), node.world_size)
        torch.manual_seed(2 + node.rank)
        while made < least_steps or not is_enough.exists():
            due_s = time.monotonic() + PACE_S
            batch = mine[torch.randint(len(mine), (BATCH,))]
            loss = cross_entropy(model(prepare(train.images[batch])), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            node.step(loss)
            made += 1
            time.sleep(max(0.0, due_s - time.monotonic()))
        node.finish()
        right = accuracy_of(model, load_samples(data_dir, train=False).first(2000), prepare)
        print(f"test accuracy of {node.name}: {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
