"""How values become the bytes of a chunk, and back: smaller for slow links, within stated errors.

A codec is applied to runs of values of one dtype. `encode` says so when it cannot hold what it is given; NaN and
infinity always come out as something that is not finite, so that the receiver's check refuses them as it would have
refused the original. `docs/protocol.md` has the table of sizes and errors.

Half precision is converted by integer and float32 arithmetic on whole arrays: NumPy's own conversion of float16 works
value by value and is several times slower. No step meets a subnormal float32 on the way, so that the result is the
same on a thread that flushes them to zero. Little-endian hosts only, as the whole transport.

Must not know: sockets, threads, messages, layouts. Runs in: the Rx thread (encode), the Tx thread (decode); pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dpwa.snapshot.dtypes import DTYPES, ITEM_BYTES, widen_bfloat16
from dpwa.snapshot.state import Codec

__all__ = ["BLOCK_VALUES", "decode", "encode", "encoded_bytes"]

_Array = npt.NDArray[Any]
_Float32s = npt.NDArray[np.float32]
_Words = npt.NDArray[np.uint16]

BLOCK_VALUES: Final = 256
"""Values that share a scale in INT8: four bytes of scale are 1.6 % on top, and one large value spoils few others."""

_SCALE_BYTES: Final = 4
_NARROWED_TO: Final = {Codec.FP16: "float16", Codec.BF16: "bfloat16"}

_TOO_LARGE: Final = {Codec.FP16: 65520.0, Codec.BF16: 2.0**128 - 2.0**119, Codec.INT8: 2.0**128 - 2.0**119}
"""The smallest magnitude that would be rounded to infinity. INT8 could hold a little more; its decoded values must
not overflow float32, either, and one limit below that is simpler than two."""


def encoded_bytes(codec: Codec, dtype: str, count: int) -> int:
    """The exact size of `count` values in bytes.

    Args:
        codec: how they travel.
        dtype: the tensors' own: "float64", "float32", "float16" or "bfloat16".
        count: number of values, 0 or more.
    """
    if codec is Codec.INT8:
        return _blocks(count) * _SCALE_BYTES + count
    return count * ITEM_BYTES[_travels_as(codec, dtype)]


def encode(codec: Codec, dtype: str, values: _Array) -> bytes | memoryview | None:
    """Turn values into bytes.

    Args:
        codec: how they shall travel.
        dtype: the tensors' own, as in `encoded_bytes`.
        values: contiguous, shape (count,), of that dtype; bfloat16 as uint16. Not changed.

    Returns:
        `encoded_bytes(codec, dtype, count)` bytes; a view of `values` where they travel as they are. None if a
        finite value is too large for the codec: then they must travel as RAW.
    """
    if values.size == 0:
        return b""
    if _travels_as(codec, dtype) == dtype and codec is not Codec.INT8:
        return values.view(np.uint8).data
    # What cannot be represented is looked at below; it is no news for the log.
    with np.errstate(all="ignore"):
        largest = 0.0
        if dtype in ("float64", "float32"):
            largest = float(max(values.max(), -values.min()))
            if _TOO_LARGE[codec] <= largest < math.inf:
                return None
        floats = _as_float32(values, dtype)
        if codec is Codec.INT8:
            return _quantized(floats)
        narrow = _float16_bits if codec is Codec.FP16 else _bfloat16_bits
        return narrow(floats, all_finite=math.isfinite(largest)).view(np.uint8).data


def decode(codec: Codec, dtype: str, data: memoryview, out: _Array) -> None:
    """Turn bytes into values.

    Args:
        codec: how they travelled.
        dtype: the tensors' own, as in `encoded_bytes`.
        data: exactly `encoded_bytes(codec, dtype, count)` bytes; any content is safe, whatever a peer made it.
        out: filled; contiguous, shape (count,), float64 for "float64" and float32 for the others.
    """
    if out.size == 0:
        return
    with np.errstate(all="ignore"):
        if codec is Codec.INT8:
            _dequantize(data, out)
            return
        wire = _travels_as(codec, dtype)
        _widen(np.frombuffer(data, DTYPES[wire]), wire, out)


def _travels_as(codec: Codec, dtype: str) -> str:
    """The dtype on the wire, for every codec but INT8. Two-byte dtypes stay as they are."""
    if dtype in ("float64", "float32"):
        return _NARROWED_TO.get(codec, dtype)
    return dtype


def _blocks(count: int) -> int:
    return -(-count // BLOCK_VALUES)


# --- Two bytes per value ------------------------------------------------------------------------------------------


def _as_float32(values: _Array, dtype: str) -> _Float32s:
    if dtype == "float32":
        return values
    floats = np.empty(values.size, np.float32)
    if dtype == "float64":
        np.copyto(floats, values, casting="same_kind")
    else:
        _widen(values, dtype, floats)
    return floats


def _widen(values: _Array, dtype: str, out: _Array) -> None:
    """Put values of any dtype into float32, or float64, without loss."""
    if dtype in ("float64", "float32"):
        np.copyto(out, values)
    elif out.dtype != np.float32:
        np.copyto(out, _as_float32(values, dtype))
    elif dtype == "bfloat16":
        widen_bfloat16(values, out)
    else:
        _widen_float16(values, out)


def _bfloat16_bits(values: _Float32s, *, all_finite: bool) -> _Words:
    """To the nearest bfloat16; of two equally near ones to the even one."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    words = rounded.astype(np.uint16)
    if not all_finite:
        # Infinity stays what it is, but the carry of a full mantissa would turn a NaN into a zero.
        words[np.isnan(values)] = 0x7FC0
    return words


def _float16_bits(values: _Float32s, *, all_finite: bool) -> _Words:
    """To the nearest float16; of two equally near ones to the even one. Finite values are less than 65520.

    For 2^e <= |x| < 2^(e+1), the sum of |x| and 2^(e+13) has float16's spacing at x, 2^(e-10), so that the
    processor's own rounding makes its last bits the integer |x| / 2^(e-10). Float16's exponent and mantissa are that
    integer, plus e + 14 in the exponent's place. Below 2^-14 the spacing no longer shrinks: there e is -14.
    """
    if not all_finite:
        return values.astype(np.float16).view(np.uint16)
    sums = np.abs(values)
    powers = np.maximum(sums, 2.0**-14)
    power = powers.view(np.uint32)
    power &= 0x7F800000  # without its mantissa: 2^e, whose exponent field is e + 127
    power += 13 << 23
    sums += powers
    bits = sums.view(np.uint32)
    # Only the lower 16 bits count from here on: those of 2^(e+13) are zero, and what overflows is lost as it should.
    power >>= 13
    bits += power
    np.right_shift(values.view(np.uint32), 16, out=power)
    power &= 0x8000
    bits += power
    words = bits.astype(np.uint16)
    words -= ((127 + 13 - 14) << 10) & 0xFFFF
    return words


def _widen_float16(values: npt.NDArray[np.float16], out: _Float32s) -> None:
    """Put float16 into float32, exactly.

    With exponent field E and mantissa m / 1024, let a = (1 + m / 1024) 2^(E - 14), the bits moved to float32's place.
    The value is a / 2 for E > 0, and a - 2^-14 for the subnormal E = 0: in both cases the smaller of the two.
    """
    words = values.view(np.int16)
    # As signed numbers positive NaN and infinity are the largest, as unsigned ones the negative.
    if words.max() >= 0x7C00 or words.view(np.uint16).max() >= 0xFC00:
        np.copyto(out, values)
        return
    bits = out.view(np.int32)
    np.copyto(bits, words)
    bits <<= 13
    doubled = bits & 0x0FFFFFFF
    doubled += (127 - 14) << 23
    magnitude = doubled.view(np.float32)
    halved = magnitude * 0.5
    magnitude -= 2.0**-14
    np.minimum(magnitude, halved, out=magnitude)
    bits &= -0x80000000
    bits |= doubled


# --- One byte per value -------------------------------------------------------------------------------------------


def _quantized(values: _Float32s) -> memoryview:
    """All scales, then all values as multiples of their block's scale, -127 to 127."""
    blocks = _blocks(values.size)
    encoded = np.empty(blocks * _SCALE_BYTES + values.size, np.uint8)
    work = np.abs(values)
    peaks = np.maximum.reduceat(work, np.arange(0, values.size, BLOCK_VALUES))
    # Rounded up, and never to zero, so that no multiple exceeds 127 however coarse a tiny scale is.
    exact = peaks.astype(np.float64) / 127.0
    scales = encoded[: blocks * _SCALE_BYTES].view(np.float32)
    np.copyto(scales, exact, casting="same_kind")
    np.nextafter(scales, np.float32(math.inf), out=scales, where=scales < exact)
    divisors = np.where(scales == 0.0, np.float32(1.0), scales)
    for part, column in _by_block(values.size, divisors):
        np.divide(values[part].reshape(len(column), -1), column, out=work[part].reshape(len(column), -1))
    np.rint(work, out=work)
    np.copyto(encoded[blocks * _SCALE_BYTES :].view(np.int8), work, casting="unsafe")
    return encoded.data


def _dequantize(data: memoryview, out: _Array) -> None:
    blocks = _blocks(out.size)
    scales = np.frombuffer(data, np.float32, blocks)
    multiples = np.frombuffer(data, np.int8, out.size, blocks * _SCALE_BYTES)
    for part, column in _by_block(out.size, scales):
        np.multiply(multiples[part].reshape(len(column), -1), column, out=out[part].reshape(len(column), -1))


def _by_block(count: int, scales: _Float32s) -> Iterator[tuple[slice, _Float32s]]:
    """The whole blocks, and the shorter last one: where they are, and their scales as a column."""
    whole = count // BLOCK_VALUES
    if whole:
        yield slice(0, whole * BLOCK_VALUES), scales[:whole, np.newaxis]
    if whole < len(scales):
        yield slice(whole * BLOCK_VALUES, count), scales[whole:, np.newaxis]
