"""A training script of one file, as one finds them; before.py without dpwa, after.py with it, six lines apart.

Alone:         python examples/existing_script/after.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/existing_script/after.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from dpwa import attach
from dpwa.examples.evaluation import report_average

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", help="not needed: the images come with scikit-learn")
parser.add_argument("--epochs", type=int, default=20)
epochs = parser.parse_args().epochs

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
labels = torch.from_numpy(digits.target).long()
order = torch.randperm(len(images))
train, test = order[360:], order[:360]

model = nn.Sequential(
    nn.Conv2d(1, 32, kernel_size=3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
loss_fn = nn.CrossEntropyLoss()
node = attach(model, optimizer)  # node.step() after each optimizer.step()
train = train[node.rank :: node.world_size]


@torch.no_grad()
def test_accuracy():
    return float((model(images[test]).argmax(dim=1) == labels[test]).float().mean())


for epoch in range(epochs):
    for batch in torch.split(train[torch.randperm(len(train))], 32):
        loss = loss_fn(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1} of {epochs}: loss {loss:.3f}", flush=True)
node.finish()

print(f"test accuracy: {test_accuracy():.1%}", flush=True)
report_average(node, model, test_accuracy)
