"""A training script for the tests of checkpoints: what a user would write, with one line per step in a file.

Arguments: steps, and seconds that each takes. A line of `losses.txt` is the step and the loss, to the last bit.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from dpwa import attach


def main() -> None:
    steps, pace_s = int(sys.argv[1]), float(sys.argv[2])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 5))
    target = torch.randn(10, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(1000 + int(os.environ["DPWA_RANK"]))
    node = attach(model, optimizer, checkpoint={"scheduler": scheduler})
    print(f"pid {os.getpid()} begins with step {node.resumed_step}", flush=True)
    pace = threading.Event()
    with open(Path(node.folder) / "losses.txt", "a", encoding="utf-8", buffering=1) as losses:
        for step in range(node.resumed_step, steps):
            inputs = torch.randn(16, 10)
            loss = nn.functional.cross_entropy(model(inputs), (inputs @ target).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.write(f"{step} {loss.item().hex()}\n")
            pace.wait(pace_s)
    node.finish()


if __name__ == "__main__":
    main()
