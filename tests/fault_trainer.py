"""A training script for the fault tests: one step per 50 ms, without a framework, so that it starts quickly.

Prints its process id first, and at the end the longest time that dpwa held a step up. With the name of a victim it
merges at the end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.node.last_models import LastModels
from dpwa.node.node import Node
from support import VectorModel

PACE_S = 0.05


def main() -> None:
    steps = int(sys.argv[1])
    name = os.environ["DPWA_NODE"]
    model = VectorModel([0.0, float(name[1:])])
    node = Node(ClusterConfig.load(os.environ["DPWA_CONFIG"]), name, model, run_dir=Path(os.environ["DPWA_RUN_DIR"]))
    node.start()
    print(f"pid {os.getpid()}", flush=True)
    pace = threading.Event()
    longest_s = 0.0
    for _ in range(steps):
        pace.wait(PACE_S)
        model.vector[0] += 1.0
        before_s = time.monotonic()
        node.step(1.0)
        longest_s = max(longest_s, time.monotonic() - before_s)
    print(f"longest {longest_s:.6f}", flush=True)
    if len(sys.argv) > 2:
        merge(node, model, victim=sys.argv[2])
    else:
        node.finish(timeout_s=2.0)
    node.close()


def merge(node: Node, model: VectorModel, victim: str) -> None:
    """Merge with the others; the victim is killed when it has fetched their models and served no mean of them."""
    write = LastModels.write

    def die_or_write(models: LastModels, *arguments) -> bool:
        if node.name == victim:
            print(f"dies with {len(models.names)} models", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(models, *arguments)

    LastModels.write = die_or_write
    node.finish(merge=True)
    print(f"merged {node.statistics().merged_models} {model.vector.tobytes().hex()}", flush=True)


if __name__ == "__main__":
    main()
