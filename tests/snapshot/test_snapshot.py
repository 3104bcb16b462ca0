"""Layouts and the buffers of snapshots."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import ConfigError
from dpwa.snapshot.layout import ITEM_BYTES, BufferPool, Layout, Role, TensorSpec

_SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text("abc.xyz", min_size=1, max_size=12),
        shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
        dtype=st.sampled_from(sorted(ITEM_BYTES)),
        role=st.sampled_from(Role),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda spec: spec.name,
)


@given(_SPECS)
def test_tensors_neither_overlap_nor_leave_the_buffer(specs):
    layout = Layout(specs)
    taken = np.zeros(layout.total_bytes, int)
    for section in layout.sections:
        assert section.start_byte % 64 == 0
        for spec, first in section.offsets():
            start = section.start_byte + first * ITEM_BYTES[spec.dtype]
            assert start + spec.size_bytes <= section.stop_byte
            taken[start : start + spec.size_bytes] += 1
    assert taken.max(initial=0) <= 1
    assert taken.sum() == sum(spec.size_bytes for spec in specs)
    assert sorted(map(str, layout.tensors)) == sorted(map(str, specs))


@given(_SPECS, _SPECS)
def test_equal_layouts_and_only_they_have_one_fingerprint(specs, others):
    layout, other = Layout(specs), Layout(others)
    assert Layout(list(specs)).fingerprint == layout.fingerprint
    assert (layout.fingerprint == other.fingerprint) == (layout.tensors == other.tensors)


@given(_SPECS, st.text(max_size=2000))
def test_the_difference_to_any_text_is_one_printable_line(specs, text):
    line = Layout(specs).first_difference(text)
    assert line.isprintable()
    assert len(line) < 1000


def _layout(*names: str) -> Layout:
    return Layout([TensorSpec(name, (2,), "float32") for name in names])


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (_layout("a", "c"), "tensor 2: b float32 [2] parameter here, c float32 [2] parameter there"),
        (_layout("a"), "tensor 2: b float32 [2] parameter here, nothing there (the peer has 1 tensors)"),
        (_layout("a", "b", "c"), "tensor 3: nothing here, c float32 [2] parameter there"),
    ],
)
def test_the_first_differing_tensor_is_named(peer, said):
    assert _layout("a", "b").first_difference(peer.text) == said


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "no floating-point tensor"),
        ([TensorSpec("a", (1,), "complex64")], "tensor a: dtype complex64 cannot be exchanged"),
        ([TensorSpec("a", (1,), "float32")] * 2, "tensor a: the name occurs twice"),
        ([TensorSpec("a\nb", (1,), "float32")], "printable"),
    ],
)
def test_tensors_that_cannot_be_exchanged_are_refused(specs, said):
    with pytest.raises(ConfigError, match=said):
        Layout(specs)


def _pool(slots: int, size_bytes: int = 1000) -> BufferPool:
    return BufferPool(lambda _: np.empty(size_bytes, np.uint8), slots)


@pytest.mark.seconds
def test_a_buffer_comes_back_when_the_last_slice_of_its_memory_is_gone():
    pool = _pool(2)
    lease = pool.lease()
    buffer, index, memory = lease.buffer, lease.index, lease.memory
    del lease
    buffer[:] = 7
    last = memory[10:20]
    other = pool.lease()
    assert pool.lease() is None
    del memory
    gc.collect()
    assert pool.lease() is None, "a slice is still in use"
    assert bytes(last) == b"\x07" * 10
    del last
    again = pool.lease()
    assert again.buffer is buffer
    assert again.index == index
    assert other.index != index


def test_buffers_are_made_one_by_one_when_they_are_needed_and_each_knows_its_number():
    made: list[int] = []

    def make(index: int) -> np.ndarray:
        made.append(index)
        return np.full(10, index, np.uint8)

    pool = BufferPool(make, slots=3)
    assert made == []
    leases = [pool.lease()]
    assert made == [0]
    leases.append(pool.lease())
    assert [(lease.index, lease.memory[0]) for lease in leases] == [(0, 0), (1, 1)]
    leases.clear()
    for _ in range(20):
        assert pool.lease() is not None
    assert made == [0, 1]


def test_published_memory_cannot_be_written():
    lease = _pool(1, 10).lease()
    with pytest.raises(TypeError, match="read-only"):
        lease.memory[0] = 1
    lease.buffer[0] = 1
    assert lease.memory[0] == 1


@pytest.mark.seconds
def test_a_pool_is_freed_with_its_node_although_a_lease_is_part_of_the_same_cycle():
    """The registry of finalizers must not keep a closed node's buffers: gigabytes in a process with several nodes."""

    class Holder:
        def __init__(self) -> None:
            self.pool = BufferPool(self.make, slots=2)
            self.lease = self.pool.lease()

        def make(self, _index: int) -> np.ndarray:
            return np.zeros(10, np.uint8)

    holder = weakref.ref(Holder())
    gc.collect()
    assert holder() is None
