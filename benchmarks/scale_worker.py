"""One node of `scale.py`: a small model without a framework, at a steady pace.

Must not know: the other nodes, the statistics. Runs in: the worker's main thread, which is the trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
from measure import pin

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from dpwa.snapshot.layout import Buffer, Layout, TensorSpec
from dpwa.snapshot.staging import Values


class SmallModel:
    """One float32 vector.

    Args:
        size: number of elements.
        value: of each at first.
    """

    def __init__(self, size: int, value: float) -> None:
        self.vector = np.full(size, value, np.float32)
        self.layout = Layout([TensorSpec("vector", self.vector.shape, "float32")])

    def copy_into(self, buffer: Buffer) -> None:
        """See `dpwa.node.Model`."""
        buffer.view(np.float32)[:] = self.vector

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.node.Model`."""
        (only,) = values
        self.vector += np.float32(factor) * (only.array if only.is_difference else only.array - self.vector)


def run_node(line: Connection, config: ClusterConfig, index: int, core: int, pace_s: float, size: int) -> None:
    """Step at a pace until the parent says "end"; tell it the exchanges so far, by outcome, when it asks.

    Args:
        line: to the parent.
        config: the cluster.
        index: of this node.
        core: to stay on.
        pace_s: time from step to step.
        size: elements of the model.
    """
    pin(core)
    node = Node(config, config.nodes[index].name, SmallModel(size, float(index)))
    node.start()
    try:
        line.send("up")
        line.recv()
        # Spread over the pace, so that the nodes do not all wake at the same moment.
        next_s = time.monotonic() + pace_s * (1 + index / len(config.nodes))
        while True:
            if line.poll(max(0.0, next_s - time.monotonic())):
                if line.recv() == "end":
                    break
                line.send(dict(node.statistics().exchanges))
            else:
                next_s = max(next_s + pace_s, time.monotonic())
                node.step(1.0)
    finally:
        node.close()
    line.send("ended")
