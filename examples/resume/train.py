"""Learn handwritten digits with checkpoints. A node that is killed and started again goes on with the others.

    dpwa launch examples/resume/cluster.yaml --on-failure restart -- python examples/resume/train.py
    dpwa average runs/RUN --evaluate examples.resume.train:evaluate

Epoch and learning rate follow `node.clock`, the age of the model: it jumps when a peer's model is taken over.
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dpwa import DpwaPyTorchAdapter

digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
TRAINED_ON = 1437  # of 1797 images


def network() -> nn.Module:
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def evaluate(weights: dict[str, torch.Tensor]) -> float:
    (model := network()).load_state_dict(weights)
    return (model(images[TRAINED_ON:]).argmax(dim=1) == labels[TRAINED_ON:]).float().mean().item()


def save(path: Path, state: dict[str, object]) -> None:
    draft = path.with_suffix(".new")
    torch.save(state, draft)
    os.replace(draft, path)  # a kill at any moment leaves the old checkpoint or the new one, and never a part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)  # all nodes start from the same weights
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, epochs // 4), gamma=0.5)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    with DpwaPyTorchAdapter(model) as node:
        data = TensorDataset(images[:TRAINED_ON], labels[:TRAINED_ON])
        sampler = DistributedSampler(data, num_replicas=node.world_size, rank=node.rank)
        loader = DataLoader(data, batch_size=32, sampler=sampler)
        path = (node.folder or Path()) / "checkpoint.pt"
        parts["dpwa"] = node
        if path.exists():
            saved = torch.load(path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        print(f"process {os.getpid()} begins with clock {node.clock:.0f}", flush=True)

        while (epoch := int(node.clock / len(loader))) < epochs:
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                loss = nn.functional.cross_entropy(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                node.step(loss)
            while scheduler.last_epoch < int(node.clock / len(loader)):  # one epoch, or as many as a peer's model has
                scheduler.step()
            save(path, {name: part.state_dict() for name, part in parts.items()})
            told = f"clock {node.clock:.0f}, rate {scheduler.get_last_lr()[0]:.4f}, loss {loss:.4f}"
            print(f"epoch {epoch} of {epochs}: {told}", flush=True)
        node.finish()


if __name__ == "__main__":
    main()
