"""The other process of the shared memory tests: writes patterns that show any mixture of two snapshots.

`writer RUN SIZE`: a segment of node w1 whose one slot is written over and over without regard to readers, until the
standard input ends. `node CONFIG NAME SECONDS`: a node of a cluster at full speed; prints what it blended.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from dpwa.snapshot.layout import Layout, TensorSpec
from dpwa.snapshot.staging import Values
from dpwa.transport.shared_memory import Segment

INCARNATION = b"\x01" * 8


class PatternModel:
    """Every published snapshot holds one number in all places; whatever is blended must, too."""

    def __init__(self, size: int) -> None:
        self.layout = Layout([TensorSpec("pattern", (size,), "float64")])
        self.published = 0
        self.blended = 0
        self.torn = 0
        self.seen: set[float] = set()

    def copy_into(self, buffer: np.ndarray) -> None:
        self.published += 1
        buffer.view(np.float64)[:] = self.published

    def blend(self, values: Sequence[Values], factor: float) -> None:  # noqa: ARG002
        (only,) = values
        self.blended += 1
        self.torn += bool((only.array != only.array[0]).any())
        self.seen.add(float(only.array[0]))


def train(config: ClusterConfig, name: str, seconds: float, size: int) -> PatternModel:
    """Steps at full speed for some seconds; the model tells what was blended."""
    model = PatternModel(size)
    node = Node(config, name, model)
    node.start()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        node.step(1.0)
    node.close()
    return model


def _write(run: str, size: int) -> None:
    segment = Segment(run_id=run, node="w1", incarnation=INCARNATION, size_bytes=8 * size, slots=1)
    slot = segment.slot(0).view(np.float64)
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    print(segment.token.hex(), flush=True)
    version = 0
    while not stopped.is_set():
        version += 1
        segment.mark(0, 0)
        slot[:] = version
        segment.mark(0, version)
        # Gaps of 0 to 150 µs, about as long as a read takes: so it is hit at every point.
        resume_s = time.perf_counter() + (version % 16) * 1e-5
        while time.perf_counter() < resume_s:
            pass
    segment.close()
    print(version, flush=True)


def main() -> None:
    if sys.argv[1] == "writer":
        _write(sys.argv[2], int(sys.argv[3]))
    else:
        model = train(ClusterConfig.load(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
        print(model.blended, model.torn, len(model.seen), flush=True)


if __name__ == "__main__":
    main()
