"""A training script without a framework for tests of data that are shared out: each block takes a moment.

Writes a line with epoch and number for each block when it is trained, before it tells dpwa so.

Args on the command line: the cluster file, the name of the node, the folder to write to, seconds per block, epochs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.leasing import Leases
from dpwa.node.node import Node
from support import VectorModel

SAMPLES = 4000


def main() -> None:
    path, name, folder, block_s, epochs = sys.argv[1:]
    node = Node(ClusterConfig.load(path), name, VectorModel([1.0]))
    node.start()
    leases = node.lease_blocks(SAMPLES)
    with Path(folder, f"{name}.txt").open("a", encoding="utf-8", buffering=1) as out:
        for epoch in range(int(epochs)):
            train(node, leases, epoch, float(block_s), out)
        while leases.wait_for_all(int(epochs) - 1):
            train(node, leases, int(epochs) - 1, float(block_s), out)
    node.finish(timeout_s=20.0)
    node.close()
    print("done", flush=True)


def train(node: Node, leases: Leases, epoch: int, block_s: float, out) -> None:
    leases.begin(epoch)
    while (block := leases.next_block()) is not None:
        time.sleep(block_s)
        node.step(1.0)
        out.write(f"{block.epoch} {block.number}\n")
        leases.trained([block])
    leases.end()


if __name__ == "__main__":
    main()
