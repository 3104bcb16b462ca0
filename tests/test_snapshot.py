"""Layouts and the buffers of snapshots."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import ConfigError
from dpwa.snapshot import ITEM_BYTES, BufferPool, Layout, Role, TensorSpec

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


def test_a_buffer_comes_back_when_the_last_slice_of_its_memory_is_gone():
    pool = BufferPool(1000, slots=2)
    buffer, memory = pool.lease()
    buffer[:] = 7
    last = memory[10:20]
    other = pool.lease()
    assert pool.lease() is None
    del memory
    gc.collect()
    assert pool.lease() is None, "a slice is still in use"
    assert bytes(last) == b"\x07" * 10
    del last
    assert pool.lease()[0] is buffer
    assert other is not None


def test_published_memory_cannot_be_written():
    _, memory = BufferPool(10, slots=1).lease()
    with pytest.raises(TypeError, match="read-only"):
        memory[0] = 1
