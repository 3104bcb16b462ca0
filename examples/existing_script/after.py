"""A training script of one file, as one finds them; before.py without dpwa, after.py with it, four lines apart.

Alone:         python examples/existing_script/after.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/existing_script/after.py
Their average: dpwa average runs/RUN --evaluate examples.existing_script.after:accuracy
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from dpwa import attach

digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
labels = torch.from_numpy(digits.target).long()
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
test = order[:360]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


@torch.no_grad()
def accuracy(weights):
    model = network()
    model.load_state_dict(weights)
    return float((model(images[test]).argmax(dim=1) == labels[test]).float().mean())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", help="not needed: the images come with scikit-learn")
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs

    train = order[360:]
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    node = attach(model, optimizer)  # from here on each optimizer.step() is a step of the node
    train = train[node.rank :: node.world_size]
    for epoch in range(epochs):
        for batch in torch.split(train[torch.randperm(len(train))], 32):
            loss = loss_fn(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss:.3f}", flush=True)
    node.finish()

    print(f"test accuracy: {accuracy(model.state_dict()):.1%}", flush=True)


if __name__ == "__main__":
    main()
