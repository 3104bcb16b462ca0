"""The arithmetic of a blend, up to the last multiply-add that the trainer does itself.

A peer's snapshot is received into the raw bytes of a `Staging`. `prepare` turns it, beside the training, into what
the trainer adds or interpolates in one pass: for parameters under delta blending the difference to the own
snapshot of the exchange, else the peer's values. Half precision becomes float32 here, because `factor * (peer -
own)` falls below the resolution of bfloat16 near consensus.

Must not know: sockets, threads, torch. Runs in: the thread that performs the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.snapshot import Buffer, Layout, Role, Section

__all__ = ["Staging", "Values"]

FloatArray = npt.NDArray[Any]

_WIRE_TYPES: dict[str, type[np.generic]] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}

# Elements that are looked at in one go when a suspicious sum asks for a full check: 4 MiB of float32.
_BLOCK = 1 << 20


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
        absolute: True for `blend: absolute`; then no differences are made.
    """

    def __init__(self, layout: Layout, *, absolute: bool) -> None:
        raw: Buffer = np.empty(layout.total_bytes, np.uint8)
        self.memory: memoryview = raw.data
        """Where the peer's bytes are received, (layout.total_bytes,)."""
        values = []
        for section in layout.sections:
            wire = _typed(raw, section)
            widened = section.dtype in ("float16", "bfloat16")
            array = np.empty(section.size, np.float32) if widened else wire
            values.append(Values(section, array, section.role is Role.PARAMETER and not absolute))
        self._raw = raw
        self.values = tuple(values)
        """What the trainer blends after `prepare`, section by section."""

    def prepare(self, reference: memoryview) -> bool:
        """Turn the received bytes into `values`.

        Args:
            reference: the own snapshot of this exchange, same layout.

        Returns:
            False if a value is NaN or infinite, in the peer's snapshot or in the own: then nothing may be blended.
        """
        own = np.frombuffer(reference, np.uint8)
        # A peer's numbers may overflow on the way; the check below is what decides, not a warning.
        with np.errstate(all="ignore"):
            for values in self.values:
                section = values.section
                peer_wire, out = _typed(self._raw, section), values.array
                if values.is_difference:
                    np.subtract(_widened(peer_wire, section), _widened(_typed(own, section), section), out=out)
                elif out is not peer_wire:
                    np.copyto(out, _widened(peer_wire, section))
                if not _all_finite(out):
                    return False
        return True


def is_finite(memory: memoryview, layout: Layout) -> bool:
    """Whether every value of a snapshot is finite."""
    raw = np.frombuffer(memory, np.uint8)
    with np.errstate(all="ignore"):
        return all(_all_finite(_widened(_typed(raw, section), section)) for section in layout.sections)


def _typed(raw: Buffer, section: Section) -> FloatArray:
    return raw[section.start_byte : section.stop_byte].view(_WIRE_TYPES[section.dtype])


def _widened(wire: FloatArray, section: Section) -> FloatArray:
    """The values in the type they are blended in: a view if that is the type they travel in."""
    if section.dtype == "bfloat16":
        # A bfloat16 is the upper 16 bits of the float32 with the same value.
        return np.left_shift(wire, 16, dtype=np.uint32).view(np.float32)
    if section.dtype == "float16":
        return wire.astype(np.float32)
    return wire


def _all_finite(array: FloatArray) -> bool:
    """A NaN or infinity makes the sum non-finite; so may large honest numbers, which the second look acquits.

    The sum costs about a twentieth of `isfinite(array).all()` and allocates nothing.
    """
    if np.isfinite(array.sum()):
        return True
    return all(bool(np.isfinite(array[i : i + _BLOCK]).all()) for i in range(0, array.size, _BLOCK))
