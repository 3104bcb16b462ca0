"""A training script whose DataLoader workers are forked after its node has bound the port, for the tests of restarts.

It says when it is ready, waits for a line, and then says how long its node took to start, which its workers are, and
how long after the start it blended for the first time. Then it goes on until it is killed.

    python worker_trainer.py CLUSTER_FILE NODE
"""

from __future__ import annotations

import sys
import time

from torch.utils.data import DataLoader

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel

PACE_S = 0.02


def main() -> None:
    loader = DataLoader(range(1_000_000), num_workers=2)
    node = Node(ClusterConfig.load(sys.argv[1]), sys.argv[2], VectorModel([0.0]))
    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.monotonic()
    node.start()
    bound_s = time.monotonic()
    print(f"bound {bound_s - began_s:.3f}", flush=True)
    batches = iter(loader)
    print("workers", *(worker.pid for worker in batches._workers), flush=True)
    has_blended = False
    for _ in batches:
        node.step(1.0)
        if not has_blended and node.statistics().blended > 0:
            has_blended = True
            print(f"blended {time.monotonic() - bound_s:.3f}", flush=True)
        time.sleep(PACE_S)


if __name__ == "__main__":
    main()
