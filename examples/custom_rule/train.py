"""Fit a small network to a curve. Each node has a learning rate of its own, and only the first one's is a good one.

Runs alone (`--learning-rate` chooses), or in a cluster by `dpwa launch`, where the nodes with the poor rates learn from
the one that does better. Their average: dpwa average runs/RUN --evaluate examples.custom_rule.train:evaluate
"""

import argparse

import torch
from torch import nn

from dpwa import DpwaPyTorchAdapter

LEARNING_RATES = [0.05, 0.001, 0.0001]
STEPS = 3000
POINTS = 256


def curve(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x) + 0.5 * x


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


@torch.no_grad()
def evaluate(weights: dict[str, torch.Tensor]) -> float:
    """The mean squared error against the true curve of a saved model; also for `dpwa average`."""
    model = network()
    model.load_state_dict(weights)
    x = torch.linspace(-2, 2, 200).unsqueeze(1)
    return nn.functional.mse_loss(model(x), curve(x)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning-rate", type=float, help="default: by the node's place in the cluster file")
    arguments = parser.parse_args()

    torch.manual_seed(0)  # all nodes begin with the same weights
    model = network()
    with DpwaPyTorchAdapter(model) as node:
        rate = arguments.learning_rate or LEARNING_RATES[node.rank % len(LEARNING_RATES)]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        torch.manual_seed(1 + node.rank)  # every node has points and noise of its own
        x = torch.rand(POINTS, 1) * 4 - 2
        y = curve(x) + 0.1 * torch.randn(POINTS, 1)
        for _ in range(STEPS):
            batch = torch.randint(POINTS, (16,))
            loss = nn.functional.mse_loss(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            node.step(loss)
        node.finish()  # stay until the others are done, too
        error = evaluate(model.state_dict())
        node.log(test_error=error)
        print(f"{node.name}: learning rate {rate}, mean squared error against the true curve {error:.4f}")


if __name__ == "__main__":
    main()
