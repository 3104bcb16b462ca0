"""The arithmetic between two snapshots."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpwa.snapshot.layout import Layout, Role, TensorSpec
from dpwa.snapshot.staging import Staging, encode_chunk, encoded_chunk_bytes
from dpwa.snapshot.state import Codec

_DTYPES = ["float64", "float32", "bfloat16", "float16"]


def _memory(layout: Layout, tensors: list[torch.Tensor]) -> np.ndarray:
    raw = np.zeros(layout.total_bytes, np.uint8)
    for section, tensor in zip(layout.sections, tensors, strict=True):
        raw[section.start_byte : section.stop_byte] = tensor.view(torch.uint8).numpy()
    return raw


def _staged(
    layout: Layout,
    peer: np.ndarray,
    own: np.ndarray,
    *,
    absolute: bool = False,
    chunk_bytes: int | None = None,
    codec: Codec = Codec.RAW,
) -> Staging:
    """A staging that has taken all of the peer's snapshot, in chunks."""
    staging = Staging(layout, absolute=absolute)
    staging.reference = own.data
    staging.begin(whole=True)
    chunk_bytes = chunk_bytes or max(64, layout.total_bytes)
    for first_byte in range(0, layout.total_bytes, chunk_bytes):
        stop_byte = min(first_byte + chunk_bytes, layout.total_bytes)
        used, body = encode_chunk(layout, peer.data, first_byte, stop_byte, codec)
        assert len(body) == encoded_chunk_bytes(layout, first_byte, stop_byte, used)
        staging.accept(first_byte, stop_byte, memoryview(body), used)
    return staging


@pytest.mark.parametrize("dtype", _DTYPES)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-4, 1.0, 100.0]))
def test_differences_are_those_of_torch_in_at_least_float32(dtype, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    own, peer = (scale * torch.randn(33, generator=generator) for _ in range(2))
    own, peer = own.to(getattr(torch, dtype)), peer.to(getattr(torch, dtype))
    layout = Layout([TensorSpec("a", (33,), dtype)])
    staging = _staged(layout, _memory(layout, [peer]), _memory(layout, [own]))
    assert staging.finish()
    wide = torch.float64 if dtype == "float64" else torch.float32
    (values,) = staging.values
    assert values.is_difference
    assert torch.equal(torch.from_numpy(values.array), peer.to(wide) - own.to(wide))


def test_buffers_and_absolute_blends_get_the_peers_values_and_no_difference():
    layout = Layout([TensorSpec("w", (2,), "float32"), TensorSpec("mean", (2,), "float32", Role.BUFFER)])
    peer = _memory(layout, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])])
    own = _memory(layout, [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])])
    delta, absolute = _staged(layout, peer, own), _staged(layout, peer, own, absolute=True)
    assert delta.finish()
    assert absolute.finish()
    assert [list(values.array) for values in delta.values] == [[0.0, 1.0], [3.0, 4.0]]
    assert [list(values.array) for values in absolute.values] == [[1.0, 2.0], [3.0, 4.0]]
    assert [values.is_difference for values in (*delta.values, *absolute.values)] == [True, False, False, False]


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["peer", "own"])
@pytest.mark.parametrize("position", [0, 4999])
def test_one_value_that_is_not_finite_is_found(dtype, poison, side, position):
    layout = Layout([TensorSpec("a", (5000,), dtype)])
    sound, sick = torch.ones(5000), torch.ones(5000)
    sick[position] = poison
    peer, own = (sick, sound) if side == "peer" else (sound, sick)
    memories = [_memory(layout, [tensor.to(getattr(torch, dtype))]) for tensor in (peer, own)]
    assert not _staged(layout, memories[0], memories[1], chunk_bytes=4096).finish()


def test_large_finite_values_are_not_taken_for_infinite_ones():
    layout = Layout([TensorSpec("a", (100,), "float32")])
    large = _memory(layout, [torch.full((100,), 3e38)])
    zero = _memory(layout, [torch.zeros(100)])
    assert _staged(layout, large, zero).finish()


_MIXED = Layout(
    [TensorSpec(f"p {dtype}", (1500,), dtype) for dtype in _DTYPES]
    + [TensorSpec(f"b {dtype}", (90,), dtype, Role.BUFFER) for dtype in _DTYPES]
)


def _mixed(seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(section.size, generator=generator).to(getattr(torch, section.dtype)) for section in _MIXED.sections
    ]
    return _memory(_MIXED, tensors)


@pytest.mark.parametrize("absolute", [False, True])
@given(pieces=st.integers(1, 300))
def test_the_size_of_the_chunks_makes_no_difference(absolute, pieces):
    own, peer = _mixed(1), _mixed(2)
    whole = _staged(_MIXED, peer, own, absolute=absolute)
    cut = _staged(_MIXED, peer, own, absolute=absolute, chunk_bytes=64 * pieces)
    assert whole.finish()
    assert cut.finish()
    for one, other in zip(whole.values, cut.values, strict=True):
        assert np.array_equal(one.array, other.array)


_RELATIVE = {Codec.FP16: 2**-11, Codec.BF16: 2**-8}  # half of the last digit, of values that are not subnormal


@pytest.mark.parametrize("codec", [Codec.FP16, Codec.BF16, Codec.INT8])
@pytest.mark.parametrize("chunk_bytes", [64, 4096, 1 << 20])
def test_an_encoded_snapshot_is_blended_within_the_codecs_error_and_its_buffers_exactly(codec, chunk_bytes):
    own, peer = _mixed(1), _mixed(2)
    exact = _staged(_MIXED, peer, own)
    lossy = _staged(_MIXED, peer, own, chunk_bytes=chunk_bytes, codec=codec)
    assert lossy.finish()
    theirs = _staged(_MIXED, peer, own, absolute=True)
    for true, got, values in zip(exact.values, lossy.values, theirs.values, strict=True):
        if not true.is_difference:
            assert np.array_equal(true.array, got.array)
            continue
        error = np.abs(true.array.astype(np.float64) - got.array)
        if codec is Codec.INT8:
            assert error.max() <= np.abs(values.array).max() / 127 / 2 * 1.01
        else:
            assert (error <= _RELATIVE[codec] * np.abs(values.array) + 2**-24).all()


def test_a_chunk_that_the_codec_cannot_hold_travels_as_it_is():
    layout = Layout([TensorSpec("a", (100,), "float32")])
    large = _memory(layout, [torch.full((100,), 1e6)])
    used, body = encode_chunk(layout, large.data, 0, layout.total_bytes, Codec.FP16)
    assert used is Codec.RAW
    assert bytes(body) == large.tobytes()


def test_parameters_that_a_part_leaves_out_get_a_difference_of_zero():
    layout = Layout([TensorSpec("a", (64,), "float32")])
    own, peer = _memory(layout, [torch.zeros(64)]), _memory(layout, [torch.ones(64)])
    staging = _staged(layout, peer, own)  # leaves ones behind
    staging.reference = own.data
    staging.begin(whole=False)
    staging.accept(64, 128, peer.data[64:128])
    assert staging.finish()
    assert list(staging.values[0].array) == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_a_part_with_a_value_that_is_not_finite_is_found_and_the_next_exchange_starts_afresh():
    layout = Layout([TensorSpec("a", (64,), "float32")])
    own, sick = _memory(layout, [torch.zeros(64)]), _memory(layout, [torch.full((64,), torch.nan)])
    staging = Staging(layout, absolute=False)
    staging.reference = own.data
    staging.begin(whole=False)
    staging.accept(0, 64, sick.data[:64])
    assert not staging.finish()
    staging.reference = own.data
    staging.begin(whole=False)
    staging.accept(0, 64, own.data[:64])
    assert staging.finish()
    assert not staging.values[0].array.any()


def test_measuring_a_distance_leaves_the_other_cores_to_the_training():
    """The threads of OpenBLAS would spin for 60 ms after each product."""
    code = """if True:
        import os
        import time
        import numpy as np
        from dpwa.snapshot.distance import sum_of_squares
        values = np.ones(1 << 18)
        for _ in range(3):
            sum_of_squares(values)
            time.sleep(0.1)  # what spins does so now
        own_s, all_s = time.thread_time(), time.process_time()
        for _ in range(3):
            assert sum_of_squares(values) == 1 << 18
            time.sleep(0.1)
        print(time.process_time() - all_s - (time.thread_time() - own_s))
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 0.03
