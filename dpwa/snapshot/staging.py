"""The arithmetic of a blend, up to the last multiply-add that the trainer does itself.

A `Staging` takes a peer's snapshot piece by piece as it arrives and turns it into what the trainer adds or
interpolates in one pass: under delta blending, the difference between the peer's parameters and this node's snapshot of
the exchange; otherwise the peer's values. Working piece by piece keeps the numbers in the processor's cache and needs
no buffer for the peer's bytes. Half precision becomes float32 here, because `factor * (peer - own)` falls below the
resolution of bfloat16 near consensus.

Must not know: sockets, threads, torch. Runs in: the thread that performs the exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.snapshot.checksum import Checksum
from dpwa.snapshot.codecs import decode, encode, encoded_bytes
from dpwa.snapshot.distance import Apart, sum_of_squares
from dpwa.snapshot.dtypes import DTYPES, widened
from dpwa.snapshot.layout import Layout, Role, Section
from dpwa.snapshot.state import Codec

__all__ = [
    "Staging",
    "Values",
    "codec_of",
    "encode_chunk",
    "encoded_chunk_bytes",
    "first_not_finite",
    "parameter_arrays",
    "pieces_of",
    "section_values",
    "typed",
]

FloatArray = npt.NDArray[Any]

# Elements worked on at one time, 1 MiB each of own, peer and difference in float32: larger blocks fall out of the
# caches between subtraction and check, smaller ones cost more calls.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Values:
    """What the trainer blends in, for one section of the layout.

    Attributes:
        section: the tensors.
        array: one flat array of float32 (float64 for a float64 section), shape (section.size,).
        is_difference: True if it is peer minus own snapshot (to be added times factor), False if it is the peer's
            values (to be interpolated towards).
    """

    section: Section
    array: FloatArray
    is_difference: bool


class Staging:
    """The buffers of one exchange in flight, made once and reused.

    Thread: the exchanging thread until the exchange is handed over, then the trainer until it asks for the next.

    Args:
        layout: the model's layout.
        absolute: no differences are made: for `blend: absolute`, and for values that are merged by their masses.
        measures_distance: also measure how far the peer's values are from this node's.
    """

    def __init__(self, layout: Layout, *, absolute: bool, measures_distance: bool = False) -> None:
        self.layout = layout
        self.is_free = True
        """False from the moment in which values are handed to the trainer to the end of their blend."""
        self.disturb: Callable[[Section, int, FloatArray], None] | None = None
        """Changes the peer's parameters as they come, for experiments: of a section, from an element on."""
        self.values: tuple[Values, ...] = tuple(
            Values(
                section,
                np.zeros(section.size, section.value_type),
                not section.role.is_interpolated and not absolute,
            )
            for section in layout.sections
        )
        """What the trainer blends when all pieces have been accepted, section by section."""
        self._of_whole = self.values
        # A part of a model brings nothing of an optimizer's state, which then stays: a difference of zeros.
        self._of_part = tuple(
            replace(values, is_difference=True) if values.section.role.is_of_optimizer else values
            for values in self.values
        )
        self._plain_values = tuple(replace(values, is_difference=False) for values in self.values)
        self._differences = tuple(replace(values, is_difference=True) for values in self.values)
        self.reference: memoryview | None = None
        """This node's snapshot that differences are made against, from before `begin` to `finish`; None where values
        are absolute."""
        self._own: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._is_finite = True
        self.sums: Checksum | None = None
        """Sums up the bytes as they come, where the journal holds checksums."""
        self._measures_distance = measures_distance
        self._apart: dict[Role, Apart] = {}

    @property
    def is_plain(self) -> bool:
        """Whether a peer's values are taken as they are, without differences and noise, whatever is usual here."""
        return self.values is self._plain_values

    @is_plain.setter
    def is_plain(self, is_plain: bool) -> None:
        self.values = self._plain_values if is_plain else self._of_whole

    @property
    def distance(self) -> float | None:
        """Distance of the peer's parameters from this node's, relative to the latter; None if it was not measured."""
        measured = [apart for role, apart in self._apart.items() if role in (Role.PARAMETER, Role.ANCHOR)]
        own = sum(apart.own_squares for apart in measured)
        return math.sqrt(sum(apart.squares for apart in measured) / own) if own > 0 else None

    @property
    def apart(self) -> Mapping[Role, Apart]:
        """How far what came is from this node's snapshot, by role; empty where that was not measured."""
        return dict(self._apart)

    @property
    def checksum(self) -> int | None:
        """Of the peer's snapshot, if all its bytes came as they are and it is asked for; else None."""
        return None if self.sums is None else self.sums.of(self.layout.total_bytes)

    def begin(self, *, whole: bool) -> None:
        """Start from nothing, also after a way that failed.

        Args:
            whole: every byte will be accepted. Otherwise the differences that do not come are zero, as are those of an
                optimizer's state, whatever comes of it.
        """
        if not self.is_plain:
            self.values = self._of_whole if whole else self._of_part
        self._own = np.frombuffer(self.reference or b"", np.uint8)
        self._is_finite = True
        self._apart = {}
        if self.sums is not None:
            self.sums = Checksum()
        if not whole:
            for values in self.values:
                values.array.fill(0)

    def clear(self) -> None:
        """Become differences of zero, for what is added to them one by one; until the next `begin`."""
        self.values = self._differences
        for values in self.values:
            values.array.fill(0)

    def accept(self, first_byte: int, stop_byte: int, data: memoryview, codec: Codec = Codec.RAW) -> None:
        """Take a piece of the peer's snapshot.

        Args:
            first_byte: where it begins within the snapshot, a multiple of 64.
            stop_byte: one past its end.
            data: the piece in the codec, of exactly `encoded_chunk_bytes`.
            codec: how it is encoded.
        """
        taken = 0
        if self.sums is not None and codec is Codec.RAW:
            self.sums.add(first_byte, data)
        disturb = None if self.is_plain else self.disturb
        # A peer's numbers may overflow on the way; the check is what decides, not a warning.
        with np.errstate(all="ignore"):
            for values, first, count in self._pieces(first_byte, stop_byte):
                section, out = values.section, values.array[first : first + count]
                is_disturbed = disturb is not None and not section.role.is_interpolated
                is_wanted = self.values is not self._of_part or not section.role.is_of_optimizer
                if codec is Codec.RAW:
                    start = section.start_byte + first * section.item_bytes - first_byte
                    peer = typed(data[start : start + count * section.item_bytes], section)
                    if not is_wanted:
                        continue
                    if not is_disturbed:
                        self._take_raw(values, first, peer, out)
                        continue
                    np.copyto(out, widened(peer))
                else:
                    used = codec_of(codec, section)
                    size = encoded_bytes(used, section.dtype, count)
                    taken += size
                    if not is_wanted:
                        continue
                    decode(used, section.dtype, data[taken - size : taken], out)
                if disturb is not None and is_disturbed:
                    disturb(section, first, out)
                if values.is_difference:
                    own = self._own_values(section, first, count)
                    np.subtract(out, own, out=out)
                    self._measure(section, out, own)
                else:
                    self._measure_values(section, first, out)
                self._is_finite = self._is_finite and _all_finite(out)

    def copy(self) -> Staging:
        """Another with the same values, which needs no layout's worth of work more."""
        other = Staging(self.layout, absolute=False)
        other.values = tuple(
            Values(values.section, values.array.copy(), values.is_difference) for values in self.values
        )
        return other

    def merge(self, other: Staging, share: float) -> None:
        """Go the share of the way to the values of another staging of the same kind.

        Args:
            other: what came later.
            share: of it in the sum of all that came, 0 to 1.
        """
        for mine, theirs in zip(self.values, other.values, strict=True):
            for start in range(0, len(mine.array), _BLOCK):
                block, step = mine.array[start : start + _BLOCK], theirs.array[start : start + _BLOCK]
                # In place in `other`, whose values are not needed any more.
                np.subtract(step, block, out=step)
                np.multiply(step, share, out=step)
                np.add(block, step, out=block)

    def take_median(self, second: Staging, third: Staging) -> None:
        """Of each value take the median of three: coordinate-wise (Yin et al., "Byzantine-Robust Distributed Learning",
        ICML 2018).

        Args:
            second: of the same kind, made with the same reference.
            third: likewise.
        """
        for mine, others in zip(self.values, zip(second.values, third.values, strict=True), strict=True):
            for start in range(0, len(mine.array), _BLOCK):
                one, two, three = (values.array[start : start + _BLOCK] for values in (mine, *others))
                larger = np.maximum(one, two)
                np.minimum(one, two, out=one)
                np.minimum(larger, three, out=larger)
                np.maximum(one, larger, out=one)

    def close(self) -> None:
        """Let go of the buffers."""
        self.values = self._of_whole = self._of_part = self._plain_values = self._differences = ()
        self.finish()

    def finish(self) -> bool:
        """Whether all accepted values, and this node's snapshot beside them, were finite and so may be blended."""
        self.reference, self._own = None, np.empty(0, np.uint8)  # the snapshot's buffer can be used again
        return self._is_finite

    def first_not_finite(self) -> str | None:
        """Name of the first tensor that would be blended with a NaN or infinity; None if there is none."""
        for values in self.values:
            for spec, first in values.section.offsets():
                if not _all_finite(values.array[first : first + spec.size]):
                    return spec.name
        return None

    def _pieces(self, first_byte: int, stop_byte: int) -> list[tuple[Values, int, int]]:
        return [
            (self.values[index], first, count) for index, first, count in pieces_of(self.layout, first_byte, stop_byte)
        ]

    def _own_values(self, section: Section, first: int, count: int) -> FloatArray:
        start = section.start_byte + first * section.item_bytes
        return widened(typed(self._own.data[start : start + count * section.item_bytes], section))

    def _measure(self, section: Section, difference: FloatArray, own: FloatArray) -> None:
        if self._measures_distance:
            squares, own_squares, count = self._apart.get(section.role, Apart())
            self._apart[section.role] = Apart(
                squares + sum_of_squares(difference), own_squares + sum_of_squares(own), count + len(own)
            )

    def _measure_values(self, section: Section, first: int, values: FloatArray) -> None:
        """Measure where no differences are made: what is interpolated, or blended by value."""
        if self._measures_distance and self._own.size:
            for start in range(0, len(values), _BLOCK):
                block = values[start : start + _BLOCK]
                own = self._own_values(section, first + start, len(block))
                self._measure(section, block - own, own)

    def _take_raw(self, values: Values, first: int, peer: FloatArray, out: FloatArray) -> None:
        section = values.section
        for start in range(0, len(peer), _BLOCK):
            block = out[start : start + _BLOCK]
            theirs = widened(peer[start : start + _BLOCK])
            if values.is_difference:
                own = self._own_values(section, first + start, len(block))
                np.subtract(theirs, own, out=block)
                self._measure(section, block, own)
            else:
                np.copyto(block, theirs)
                self._measure_values(section, first + start, block)
            self._is_finite = self._is_finite and _all_finite(block)


def parameter_arrays(layout: Layout, memory: npt.NDArray[np.uint8]) -> list[FloatArray]:
    """The parameters of a snapshot, section by section, as views of the type they travel in (bfloat16 as uint16).

    Args:
        layout: whose sections are meant; the snapshot may have more behind them.
        memory: the snapshot.
    """
    return [
        memory[section.start_byte : section.stop_byte].view(DTYPES[section.dtype])
        for section in layout.sections
        if section.role is Role.PARAMETER
    ]


def section_values(section: Section, memory: npt.NDArray[np.uint8]) -> FloatArray:
    """A section of a snapshot in the type it is blended in: a view if it travels in that type."""
    return widened(memory[section.start_byte : section.stop_byte].view(DTYPES[section.dtype]))


def first_not_finite(layout: Layout, memory: memoryview) -> str | None:
    """Name of the first tensor of a snapshot that holds NaN or infinity; None if there is none."""
    for section in layout.sections:
        for spec, first in section.offsets():
            start = section.start_byte + first * section.item_bytes
            wire = typed(memory[start : start + spec.size_bytes], section)
            if not _all_finite(widened(wire)):
                return spec.name
    return None


def encode_chunk(
    layout: Layout, memory: memoryview, first_byte: int, stop_byte: int, codec: Codec
) -> tuple[Codec, memoryview | bytes]:
    """A piece of a snapshot in a codec, and the codec used: `RAW` where the wanted one cannot hold a value.

    Buffers (running statistics) are few and delicate: they are never encoded. Nor are Adam's moments, many of which
    are so small that they would become zero, which is what a step is divided by. An anchor travels with two bytes at
    least: what counts of it is how far the model has come from it.

    Args:
        layout: of the snapshot.
        memory: the whole snapshot.
        first_byte: where the piece begins.
        stop_byte: one past its end.
        codec: the codec wanted.
    """
    if codec is Codec.RAW:
        return codec, memory[first_byte:stop_byte]
    encoded = []
    for index, first, count in pieces_of(layout, first_byte, stop_byte):
        section = layout.sections[index]
        start = section.start_byte + first * section.item_bytes
        values = typed(memory[start : start + count * section.item_bytes], section)
        part = encode(codec_of(codec, section), section.dtype, values)
        if part is None:
            return Codec.RAW, memory[first_byte:stop_byte]
        encoded.append(part)
    return codec, b"".join(encoded)


def encoded_chunk_bytes(layout: Layout, first_byte: int, stop_byte: int, codec: Codec) -> int:
    """Exact size of a piece of a snapshot in a codec."""
    if codec is Codec.RAW:
        return stop_byte - first_byte
    sections = layout.sections
    return sum(
        encoded_bytes(codec_of(codec, sections[index]), sections[index].dtype, count)
        for index, _, count in pieces_of(layout, first_byte, stop_byte)
    )


def pieces_of(layout: Layout, first_byte: int, stop_byte: int) -> list[tuple[int, int, int]]:
    """The parts of sections within a range of bytes: index of the section, first element, number of elements."""
    pieces = []
    for index, section in enumerate(layout.sections):
        start, stop = max(first_byte, section.start_byte), min(stop_byte, section.stop_byte)
        if start < stop:
            first = (start - section.start_byte) // section.item_bytes
            pieces.append((index, first, (stop - start) // section.item_bytes))
    return pieces


def codec_of(codec: Codec, section: Section) -> Codec:
    """How a section travels within a chunk in a codec."""
    if section.role is Role.ANCHOR:
        return Codec.FP16 if codec is Codec.INT8 else codec
    return codec if section.role in (Role.PARAMETER, Role.MOMENTUM) else Codec.RAW


def typed(data: memoryview, section: Section) -> FloatArray:
    """Bytes of a section as the values that they are."""
    return np.frombuffer(data, DTYPES[section.dtype])


def _all_finite(array: FloatArray) -> bool:
    """Whether no value is NaN or infinite, from the bits: exact, and several times as fast as `isfinite(array).all()`.

    Read as unsigned integers, negative floats are the largest, and -inf and the NaNs beyond it the largest of them;
    read as signed integers, positive floats are, and +inf and the NaNs beyond it.
    """
    if array.size == 0:
        return True
    unsigned, signed = (np.uint64, np.int64) if array.dtype == np.float64 else (np.uint32, np.int32)
    infinity = array.dtype.type(np.inf)
    return bool(
        array.view(unsigned).max() < (-infinity).view(unsigned) and array.view(signed).max() < infinity.view(signed)
    )
