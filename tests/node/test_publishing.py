"""The buffers that snapshots are published from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from dpwa.exchange.service import Serving
from dpwa.node.publishing import SnapshotPublisher
from dpwa.snapshot.layout import Layout, TensorSpec
from dpwa.snapshot.state import State


class _TwoGroups:
    """A model whose groups of tensors do not follow each other without a gap."""

    def __init__(self) -> None:
        self.layout = Layout([TensorSpec("a", (3,), "float64"), TensorSpec("b", (5,), "float32")])

    def copy_into(self, buffer: np.ndarray) -> None:
        for section in self.layout.sections:
            buffer[section.start_byte : section.stop_byte] = 1


def test_the_gaps_between_groups_of_tensors_hold_zeros_and_nothing_of_the_process():
    source = _TwoGroups()
    total_bytes = source.layout.total_bytes
    secrets = [np.full(total_bytes, 0xAB, np.uint8) for _ in range(10)]
    del secrets  # numpy hands small blocks out again as they are
    service = SimpleNamespace(serving=Serving(), keeps_rounds=False, close=lambda: None)
    publisher = SnapshotPublisher(source, service, slots=3)
    gap = np.ones(total_bytes, bool)
    for section in source.layout.sections:
        gap[section.start_byte : section.stop_byte] = False
    assert gap.sum() == 40
    taken = [publisher.take(step=1, taken_s=0.0, state=State(None, 1.0)) for _ in range(3)]
    for each in taken:
        assert not np.frombuffer(each.snapshot.memory, np.uint8)[gap].any()
    publisher.close()
