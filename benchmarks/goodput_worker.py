"""One node of `goodput.py`: a step per so many milliseconds, with a model of 64 kB, until it is told to end.

    python goodput_worker.py PACE_MS

Runs in: a process of its own, under `dpwa launch`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from dpwa.snapshot.layout import Buffer, Layout, TensorSpec
from dpwa.snapshot.staging import Values

SIZE = 8192


class Vector:
    """A model of one float64 vector."""

    def __init__(self) -> None:
        self.values = np.zeros(SIZE)
        self.layout = Layout([TensorSpec("vector", (SIZE,), "float64")])

    def copy_into(self, buffer: Buffer) -> None:
        """See `dpwa.snapshot.model.Model`."""
        buffer.view(np.float64)[:] = self.values

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.snapshot.model.Model`."""
        (only,) = values
        self.values += factor * (only.array if only.is_difference else only.array - self.values)


def main() -> None:
    """Train until SIGTERM."""
    pace_s = int(sys.argv[1]) / 1000
    model = Vector()
    config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
    node = Node(config, os.environ["DPWA_NODE"], model, run_dir=Path(os.environ["DPWA_RUN_DIR"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        node.start()
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + pace_s, time.monotonic())  # what was missed is not made up for
            time.sleep(max(0.0, due_s - time.monotonic()))
            model.values += 1.0
            node.step(1.0)
    finally:
        node.close()


if __name__ == "__main__":
    main()
