"""What rounding takes from a snapshot, to the last bit: closed forms over types, roles and parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.snapshot.layout import Layout, Role, TensorSpec
from dpwa.snapshot.rounding import SentAs, add_rest
from dpwa.snapshot.staging import Staging, encode_chunk
from dpwa.snapshot.state import Codec

CHUNK = 4096
ROUNDING = [codec for codec in Codec if codec is not Codec.RAW]


def layout_of(dtype: str, sizes: tuple[int, int, int]) -> Layout:
    parameters, momentum, statistics = sizes
    return Layout(
        [
            TensorSpec("weights", (parameters,), dtype),
            TensorSpec("statistics", (statistics,), "float32", Role.BUFFER),
            TensorSpec("momentum", (momentum,), "float32", Role.MOMENTUM),
            TensorSpec("anchor", (parameters,), "float32", Role.ANCHOR),
        ]
    )


def snapshot(layout: Layout, seed: int, scale: float) -> memoryview:
    """Random finite values of each section's own type."""
    rng = np.random.default_rng(seed)
    memory = np.zeros(layout.total_bytes, np.uint8)
    for section in layout.sections:
        floats = rng.normal(scale=scale, size=section.size).astype(np.float32)
        part = memory[section.start_byte : section.stop_byte]
        if section.dtype == "bfloat16":
            part.view(np.uint16)[:] = floats.view(np.uint32) >> 16
        else:
            part.view(section.dtype)[:] = floats
    return memory.data.toreadonly()


def received(layout: Layout, mine: memoryview, theirs: memoryview, codec: Codec) -> Staging:
    """The difference that a node makes of a snapshot that comes in a codec."""
    staging = Staging(layout, absolute=False)
    staging.reference = mine
    staging.begin(whole=True)
    for first_byte in range(0, layout.total_bytes, CHUNK):
        stop_byte = min(first_byte + CHUNK, layout.total_bytes)
        used, body = encode_chunk(layout, theirs, first_byte, stop_byte, codec)
        staging.accept(first_byte, stop_byte, memoryview(body), used)
    assert staging.finish()
    return staging


def chunks(layout: Layout) -> range:
    return range(-(-layout.total_bytes // CHUNK))


@settings(deadline=None, max_examples=60)
@given(
    codec=st.sampled_from(ROUNDING),
    other=st.sampled_from(list(Codec)),
    dtype=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
    sizes=st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 50)),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
)
def test_the_differences_of_two_nodes_are_opposite_whichever_codec_each_way_has(
    codec, other, dtype, sizes, seed, scale
):
    layout = layout_of(dtype, sizes)
    first, second = snapshot(layout, seed, scale), snapshot(layout, seed + 1, scale)
    ways = (received(layout, first, second, codec), received(layout, second, first, other))
    for staging, mine, sent in zip(ways, (first, second), (other, codec), strict=True):
        add_rest(layout, staging.values, mine, SentAs(sent, CHUNK), chunks(layout))
    for one, another in zip(ways[0].values, ways[1].values, strict=True):
        if one.is_difference:
            assert np.abs(one.array + another.array).max() <= 16 * scale * np.finfo(one.array.dtype).eps


@pytest.mark.parametrize("codec", ROUNDING)
def test_what_is_left_and_what_was_given_are_the_snapshot(codec):
    layout = layout_of("float32", (2000, 1, 1))
    given_ = snapshot(layout, 1, 1.0)
    rest = Staging(layout, absolute=True)
    rest.clear()
    add_rest(layout, rest.values, given_, SentAs(codec, CHUNK), chunks(layout))
    taken = Staging(layout, absolute=True)
    taken.begin(whole=True)
    for first_byte in range(0, layout.total_bytes, CHUNK):
        stop_byte = min(first_byte + CHUNK, layout.total_bytes)
        used, body = encode_chunk(layout, given_, first_byte, stop_byte, codec)
        taken.accept(first_byte, stop_byte, memoryview(body), used)
    weights, whole = layout.sections[0], np.frombuffer(given_, np.uint8)
    own = whole[weights.start_byte : weights.stop_byte].view(np.float32)
    assert rest.values[0].is_difference
    assert np.abs(rest.values[0].array).max() > 0
    assert taken.values[0].array + rest.values[0].array == pytest.approx(own, abs=1e-7)


def test_nothing_is_left_of_what_travels_as_it_is():
    layout = layout_of("float32", (2000, 700, 30))
    memory = snapshot(layout, 1, 1.0)
    for sent_as in (SentAs(Codec.RAW, CHUNK), SentAs(Codec.INT8, CHUNK)):
        staging = Staging(layout, absolute=True)
        staging.clear()
        add_rest(layout, staging.values, memory, sent_as, chunks(layout))
        roles = {values.section.role for values in staging.values if np.abs(values.array).max() > 0}
        rounded = {Role.PARAMETER, Role.MOMENTUM, Role.ANCHOR}
        assert roles == (set() if sent_as.codec is Codec.RAW else rounded)


def test_a_part_leaves_an_optimizers_state_alone_even_in_a_chunk_that_holds_some_of_it():
    layout = layout_of("float32", (1500, 700, 30))  # the second chunk ends the weights and begins the momentum
    memory = snapshot(layout, 1, 1.0)
    staging = Staging(layout, absolute=True)
    staging.clear()
    add_rest(layout, staging.values, memory, SentAs(Codec.INT8, CHUNK), [1], is_whole=False)
    left = {values.section.role: np.abs(values.array).max() for values in staging.values}
    assert left[Role.PARAMETER] > 0
    assert left[Role.MOMENTUM] == 0


def test_anchors_keep_two_bytes_where_the_rest_has_one():
    layout = layout_of("float32", (4096, 1, 1))
    memory = snapshot(layout, 1, 1.0)
    staging = Staging(layout, absolute=True)
    staging.clear()
    add_rest(layout, staging.values, memory, SentAs(Codec.INT8, CHUNK), chunks(layout))
    left = {values.section.role: np.abs(values.array).max() for values in staging.values}
    assert 0 < left[Role.ANCHOR] < 5 / 2048
    assert 5 / 2048 < left[Role.PARAMETER] < 6 / 253
