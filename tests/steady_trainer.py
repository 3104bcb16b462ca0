"""A training script for the reliability tests and the goodput benchmark: one step per so many milliseconds.

Each node descends towards a target of its own, so that nodes that do not exchange drift apart:
x -> x + 0.05 (rank - x).
Its metrics hold `x` and its scores of its peers. On SIGUSR1 it hangs as an extension in C can make it hang: it sleeps
with the interpreter's lock held, so that none of its threads runs, while ZeroMQ goes on answering heartbeats.

    python steady_trainer.py STEPS PACE_MS [FLOATS]

FLOATS more numbers make the model larger.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel

LOCK_HELD_S = 12


def main() -> None:
    steps, pace_s = int(sys.argv[1]), int(sys.argv[2]) / 1000
    name = os.environ["DPWA_NODE"]
    rank = float(name[1:])
    model = VectorModel([0.0, rank, *[0.0] * int((sys.argv[3:] or [0])[0])])
    config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
    node = Node(config, name, model, run_dir=Path(os.environ["DPWA_RUN_DIR"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGUSR1, lambda *_: ctypes.PyDLL(None).sleep(LOCK_HELD_S))
    try:
        node.start()
        due_s = time.monotonic()
        for _ in range(steps):
            # What was missed is not made up for, as in a training.
            due_s = max(due_s + pace_s, time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))
            model.vector[0] += 1.0
            model.vector[1] += 0.05 * (rank - model.vector[1])
            node.step(1.0)
            node.log(x=float(model.vector[1]), scores=dict(node.statistics().scores))
        node.finish(timeout_s=2.0)
    finally:
        node.close()


if __name__ == "__main__":
    main()
