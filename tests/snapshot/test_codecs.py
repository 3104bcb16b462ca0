"""Codecs: the stated sizes and errors, for any numbers; and nothing that is not finite ever gets lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpwa.snapshot.codecs import BLOCK_VALUES, decode, encode, encoded_bytes
from dpwa.snapshot.state import Codec

DTYPES = ("float64", "float32", "bfloat16", "float16")
HALVES = (Codec.FP16, Codec.BF16)
LOSSY = (*HALVES, Codec.INT8)
CASES = [(codec, dtype) for codec in Codec for dtype in DTYPES]
LOSSY_CASES = [(codec, dtype) for codec in LOSSY for dtype in ("float64", "float32")]
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# The edges of both halves and of float32: smallest, largest, ties, and their neighbours.
EDGES = [0.0, -0.0, 1.0, 1 / 3, 2**-126, 2**-133, 2**-134, 2**-149, 2**-150, 2**-14, 2**-24, 2**-25, 2**-26]
EDGES += [3 * 2**-25, 65504.0, 65519.0, 1 + 2**-8, 1 + 2**-9, 1 + 2**-11, 1 + 3 * 2**-11, 3.3895e38, 190.5 * 2**-149]


def _as(dtype: str, values: np.ndarray) -> np.ndarray:
    """Values as tensors of this dtype hold them; too large ones become infinite."""
    with np.errstate(all="ignore"):
        if dtype == "bfloat16":
            return torch.from_numpy(values.astype(np.float32)).bfloat16().view(torch.uint16).numpy()
        return values.astype(dtype)


def _exact(dtype: str, values: np.ndarray) -> np.ndarray:
    """The numbers that an array of `_as` holds."""
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        return values.astype(np.float64)


def _out(dtype: str, count: int) -> np.ndarray:
    return np.full(count, 7.0, np.float64 if dtype == "float64" else np.float32)


def _decoded(codec: Codec, dtype: str, data: bytes | memoryview, count: int) -> np.ndarray:
    out = _out(dtype, count)
    decode(codec, dtype, memoryview(data), out)
    return out


def _round_trip(codec: Codec, dtype: str, values: np.ndarray) -> np.ndarray:
    data = encode(codec, dtype, values)
    assert data is not None
    return _decoded(codec, dtype, data, values.size)


@st.composite
def _numbers(draw: st.DrawFn, largest: float = 6e4) -> np.ndarray:
    """Finite float64 of all kinds, some blocks of them: normal at one scale, all magnitudes mixed, with zeros."""
    if draw(st.booleans()):
        edges = [edge for edge in EDGES if edge <= largest]
        element = st.sampled_from([*edges, *(-edge for edge in edges)]) | st.floats(-largest, largest)
        return draw(hnp.arrays(np.float64, st.integers(0, 40), elements=element))
    count = draw(st.integers(0, 3 * BLOCK_VALUES + 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.standard_normal(count) * 10.0 ** draw(st.integers(-48, 30))
    if draw(st.booleans()):
        values *= 10.0 ** random.integers(-20, 20, count)
    values[random.random(count) < draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))] = 0.0
    return np.clip(values, -largest, largest)


# --- Sizes and bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "dtype"), CASES)
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_the_size_is_known_beforehand(codec, dtype, count):
    data = encode(codec, dtype, _as(dtype, np.linspace(-1.0, 1.0, count)))
    assert len(data) == memoryview(data).nbytes == encoded_bytes(codec, dtype, count)


def test_the_sizes_are_those_of_the_table():
    thousand = {codec: [encoded_bytes(codec, dtype, 1000) for dtype in DTYPES] for codec in Codec}
    assert thousand == {
        Codec.RAW: [8000, 4000, 2000, 2000],
        Codec.FP16: [2000, 2000, 2000, 2000],
        Codec.BF16: [2000, 2000, 2000, 2000],
        Codec.INT8: [1016, 1016, 1016, 1016],
    }


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_what_fits_is_sent_as_it_is_without_a_copy(codec, dtype):
    values = _as(dtype, np.linspace(-1.0, 1.0, 300))
    data = encode(codec, dtype, values)
    as_it_is = codec is Codec.RAW or (codec in HALVES and values.itemsize == 2)
    assert np.shares_memory(np.frombuffer(data, np.uint8), values) is as_it_is
    assert (bytes(data) == values.tobytes()) is as_it_is


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_neither_the_input_nor_its_neighbours_are_changed(codec, dtype):
    around = _as(dtype, np.linspace(-3.0, 3.0, 400))
    before = around.tobytes()
    data = encode(codec, dtype, around[50:350])
    target = _out(dtype, 320)
    decode(codec, dtype, memoryview(data), target[10:310])
    assert around.tobytes() == before
    assert (target[:10] == 7.0).all()
    assert (target[310:] == 7.0).all()


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_bytes_that_may_not_be_written_are_read(codec, dtype):
    values = _as(dtype, np.linspace(-3.0, 3.0, 300))
    values.flags.writeable = False
    data = memoryview(bytes(encode(codec, dtype, values)))
    assert np.allclose(_decoded(codec, dtype, data, 300), _exact(dtype, values), atol=3 / 253, rtol=0)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_bytes_may_begin_anywhere_in_a_buffer(codec, dtype):
    values = _as(dtype, np.linspace(-3.0, 3.0, 300))
    data = bytes(encode(codec, dtype, values))
    odd = memoryview(b"x" + data)[1:]
    assert np.array_equal(_decoded(codec, dtype, odd, 300), _decoded(codec, dtype, data, 300))


def test_int8_has_all_scales_first_and_then_all_values():
    values = np.concatenate([np.linspace(-127.0, 127.0, 255), [0.0], np.full(256, 0.0), [254.0, -3.0]])
    data = encode(Codec.INT8, "float32", values.astype(np.float32))
    assert np.frombuffer(data, "<f4", 3).tolist() == [1.0, 0.0, 2.0]
    assert np.array_equal(np.frombuffer(data, np.int8, offset=12)[:512], values[:512])
    assert np.frombuffer(data, np.int8, offset=12)[512:].tolist() == [127, -2]


# --- Errors of finite numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(numbers=_numbers(largest=1e300))
def test_raw_loses_nothing(dtype, numbers):
    values = _as(dtype, numbers)
    assert np.array_equal(_round_trip(Codec.RAW, dtype, values), _exact(dtype, values))


@pytest.mark.parametrize("dtype", DTYPES)
@given(numbers=_numbers())
def test_fp16_is_off_by_half_a_step_at_most(dtype, numbers):
    values = _as(dtype, numbers)
    exact = _exact(dtype, values)
    error = np.abs(_round_trip(Codec.FP16, dtype, values) - exact)
    assert (error <= np.maximum(np.abs(exact) / 2048, 2.0**-24)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(numbers=_numbers(largest=3.39e38))
def test_bf16_is_off_by_half_a_step_at_most(dtype, numbers):
    values = _as(dtype, numbers)
    exact = _exact(dtype, values)
    if dtype == "float16":
        exact = np.where(np.isfinite(exact), exact, 0.0)
        values = exact.astype(np.float16)
    error = np.abs(_round_trip(Codec.BF16, dtype, values) - exact)
    assert (error <= np.maximum(np.abs(exact) / 256, 2.0**-133)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(numbers=_numbers(largest=3.38e38))
def test_int8_is_off_by_a_253rd_of_the_blocks_largest_at_most(dtype, numbers):
    values = _as(dtype, np.clip(numbers, -6e4, 6e4) if dtype == "float16" else numbers)
    exact = _exact(dtype, values)
    decoded = _round_trip(Codec.INT8, dtype, values)
    for start in range(0, values.size, BLOCK_VALUES):
        block = slice(start, start + BLOCK_VALUES)
        error = np.abs(decoded[block] - exact[block])
        assert error.max() <= np.abs(exact[block]).max() / 253 + 2.0**-149


@pytest.mark.parametrize("codec", HALVES)
@given(numbers=_numbers())
def test_halves_round_as_torch_does(codec, numbers):
    values = numbers.astype(np.float32)
    dtype = torch.float16 if codec is Codec.FP16 else torch.bfloat16
    expected = torch.from_numpy(values).to(dtype)
    assert bytes(encode(codec, "float32", values)) == expected.view(torch.uint16).numpy().tobytes()
    assert np.array_equal(_round_trip(codec, "float32", values), expected.float().numpy())


def test_every_float16_comes_back_and_every_tie_goes_to_the_even_one():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    wide = finite.astype(np.float32)
    assert np.array_equal(_decoded(Codec.FP16, "float16", finite.tobytes(), finite.size).view("u4"), wide.view("u4"))
    assert bytes(encode(Codec.FP16, "float32", wide)) == finite.tobytes()
    magnitudes = np.sort(wide[wide >= 0])
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    for near in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))):
        assert bytes(encode(Codec.FP16, "float32", -near)) == (-near).astype(np.float16).tobytes()


def test_every_bfloat16_comes_back_and_every_tie_goes_to_the_even_one():
    words = np.arange(0x7F80, dtype=np.uint32)
    wide = (words << 16).view(np.float32)
    assert np.array_equal(_decoded(Codec.BF16, "bfloat16", words.astype(np.uint16).tobytes(), words.size), wide)
    middle = ((words[:-1] << 16) + 0x8000).view(np.float32)
    even = words[:-1] + words[:-1] % 2
    assert np.array_equal(np.frombuffer(encode(Codec.BF16, "float32", middle), np.uint16), even)
    assert np.array_equal(np.frombuffer(encode(Codec.BF16, "float32", -middle), np.uint16), even | 0x8000)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("codec", HALVES)
@given(numbers=_numbers())
def test_a_second_round_trip_through_a_half_changes_nothing(codec, dtype, numbers):
    first = encode(codec, dtype, _as(dtype, numbers))
    again = encode(codec, dtype, _decoded(codec, dtype, first, numbers.size))
    assert bytes(again) == bytes(first)


@pytest.mark.parametrize("codec", LOSSY)
def test_a_thread_that_flushes_subnormal_numbers_to_zero_gets_the_same(codec):
    values = np.logspace(-10, 3, 1000).astype(np.float32)
    before = _round_trip(codec, "float32", values)
    torch.set_flush_denormal(True)  # where the processor can
    try:
        after = _round_trip(codec, "float32", values)
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(after, before)


# --- Numbers that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fp16_refuses_what_it_would_make_infinite(dtype, sign):
    fits, too_large = (_as(dtype, np.array([1.0, sign * value])) for value in (65519.0, 65520.0))
    assert _round_trip(Codec.FP16, dtype, fits)[1] == sign * 65504.0
    assert encode(Codec.FP16, dtype, too_large) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("codec", [Codec.BF16, Codec.INT8])
def test_numbers_at_the_end_of_float32_stay_finite_or_are_refused(codec, sign):
    limit = np.float32(2.0**128 - 2.0**119)
    fits = sign * np.array([1.0, np.nextafter(limit, np.float32(0))], np.float32)
    assert np.isfinite(_round_trip(codec, "float32", fits)).all()
    for dtype, value in (("float32", limit), ("float64", LARGEST_FLOAT32), ("float64", 1e39), ("float64", 1e308)):
        assert encode(codec, dtype, _as(dtype, np.array([1.0, sign * float(value)]))) is None


@pytest.mark.parametrize("codec", list(Codec))
def test_the_largest_numbers_of_the_short_types_always_fit(codec):
    for dtype, bits in (("bfloat16", 0x7F7F), ("float16", 0x7BFF)):
        words = np.array([bits, bits | 0x8000, 0], np.uint16)
        values = words if dtype == "bfloat16" else words.view(np.float16)
        assert np.isfinite(_round_trip(codec, dtype, values)).all()


@pytest.mark.parametrize(("codec", "dtype"), CASES)
@pytest.mark.parametrize("position", [0, 255, 256, 599])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_become_a_number(codec, dtype, position, bad):
    numbers = np.linspace(-1.0, 1.0, 600)
    numbers[position] = bad
    values = _as(dtype, numbers)
    decoded = _round_trip(codec, dtype, values)
    assert not np.isfinite(decoded[position])
    if codec is not Codec.INT8:
        others = np.arange(600) != position
        assert np.allclose(decoded[others], numbers[others], rtol=2**-8, atol=2**-24)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("bits", [0x7F800001, 0x7F807FFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FFF8000])
def test_a_nan_of_any_payload_stays_one_that_is_not_finite(codec, bits):
    values = np.array([0x3F800000, bits], np.uint32).view(np.float32)
    assert not np.isfinite(_round_trip(codec, "float32", values)[1])


@pytest.mark.parametrize(("codec", "dtype"), LOSSY_CASES)
def test_infinity_beside_numbers_that_do_not_fit_is_refused_or_stays(codec, dtype):
    data = encode(codec, dtype, _as(dtype, np.array([np.inf, LARGEST_FLOAT32, 1.0])))
    assert data is None or not np.isfinite(_decoded(codec, dtype, data, 3)).all()


@pytest.mark.parametrize(("codec", "dtype"), CASES)
@given(data=st.data())
def test_bytes_from_a_liar_decode_to_something_without_an_error(codec, dtype, data):
    count = data.draw(st.integers(0, 300))
    size = encoded_bytes(codec, dtype, count)
    seed = data.draw(st.integers(0, 2**32))
    lies = np.random.default_rng(seed).bytes(size) if size else b""
    assert _decoded(codec, dtype, lies, count).shape == (count,)
