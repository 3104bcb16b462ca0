"""A user's script for `unequal.py`: digits, shared out with `node.sampler`; each step takes as long as it is told.

    python unequal_script.py SEED EPOCHS STEP_MS [SLOW]

The last node's steps take SLOW times as long (default: 1), as those of a slower machine would. dpwa is not told. A step
that is not done when its time is over ends later, and what was missed is not made up for.

Leaves `unequal.json` in the node's folder. Runs in: a process of its own, under `dpwa launch`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from dpwa import attach
from dpwa.examples.digits.data import load_split
from dpwa.examples.digits.model import digits_network
from dpwa.examples.evaluation import accuracy_of

BATCH = 16


def main() -> None:
    """Train."""
    seed, epochs, step_s = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000
    train, test = load_split()
    torch.manual_seed(seed)
    model = digits_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    node = attach(model, optimizer)
    if node.rank == node.world_size - 1:
        step_s *= float((sys.argv[4:] or [1])[0])
    sampler = node.sampler(train.data_set(), seed=seed)
    loader = DataLoader(train.data_set(), batch_size=BATCH, sampler=sampler)
    wait_for_all(node.rank, node.world_size)  # how long Python takes to start is not what is measured
    began_s = time.time()
    due_s, late_s = time.monotonic(), 0.0
    for _ in sampler.epochs(epochs):
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            due_s += step_s
            missed_s = max(0.0, time.monotonic() - due_s)
            due_s, late_s = due_s + missed_s, late_s + missed_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            optimizer.step()
    ended_s = time.time()
    node.finish(merge=True)
    did = node.statistics()
    found = {
        "began_s": began_s,
        "ended_s": ended_s,
        "late_s": late_s,
        "steps": did.step,
        "exchanges": dict(did.exchanges),
        "method": dict(did.method),
        "merged_models": did.merged_models,
        "accuracy": accuracy_of(model, test) if node.rank == 0 else None,
    }
    Path(node.folder or ".", "unequal.json").write_text(json.dumps(found), encoding="utf-8")


def wait_for_all(rank: int, world_size: int) -> None:
    """Wait until all nodes are about to train."""
    folder = Path(os.environ["DPWA_RUN_DIR"])
    (folder / f"ready-{rank}").touch()
    while not all((folder / f"ready-{other}").exists() for other in range(world_size)):
        time.sleep(0.01)


if __name__ == "__main__":
    main()
