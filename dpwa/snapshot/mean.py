"""The mean of several models: summed in float64, and rounded once to the type that each tensor has in the model.

Must not know: peers, messages. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.snapshot.dtypes import DTYPES, widened
from dpwa.snapshot.layout import Section
from dpwa.snapshot.staging import Values

__all__ = ["Mean", "rounded_to_bfloat16"]

# Elements worked on at one time: the temporary float64 values of a block are 2 MiB.
_BLOCK = 1 << 18


class Mean:
    """A weighted sum that grows model by model, and what it comes to. Takes 8 bytes per element.

    Args:
        sections: of the models.
    """

    def __init__(self, sections: Sequence[Section]) -> None:
        self._sections = sections
        self._sums = [np.zeros(section.size, np.float64) for section in sections]
        self.weight = 0.0
        """Sum of the weights so far."""

    def add(self, values: Sequence[Values], weight: float) -> None:
        """Add a model.

        Args:
            values: of its sections, and perhaps of further ones; no differences.
            weight: of it, at least 0.
        """
        self._add([one.array for one in values[: len(self._sections)]], weight)

    def add_snapshot(self, memory: memoryview, weight: float) -> None:
        """Add a model from the bytes of a snapshot."""
        flat = np.frombuffer(memory, np.uint8)
        self._add(
            [flat[section.start_byte : section.stop_byte].view(DTYPES[section.dtype]) for section in self._sections],
            weight,
        )

    def _add(self, arrays: Sequence[npt.NDArray[Any]], weight: float) -> None:
        self.weight += weight
        with np.errstate(all="ignore"):  # what overflows is noticed at the end
            for total, array in zip(self._sums, arrays, strict=True):
                for start in range(0, len(total), _BLOCK):
                    block = widened(array[start : start + _BLOCK]).astype(np.float64)
                    total[start : start + _BLOCK] += np.multiply(block, weight, out=block)

    def write(self, values: Sequence[Values]) -> bool:
        """Write the mean in the types that the sections are blended in, each value one that its tensor can hold.

        Args:
            values: of the same sections, and perhaps of further ones, which are left alone.

        Returns:
            Whether it is finite; otherwise what was written is worth nothing.
        """
        is_finite = True
        with np.errstate(all="ignore"):
            for section, total, into in zip(self._sections, self._sums, values, strict=False):
                for start in range(0, len(total), _BLOCK):
                    block = into.array[start : start + _BLOCK]
                    np.copyto(block, _rounded(total[start : start + _BLOCK] / self.weight, section.dtype))
                    is_finite = is_finite and bool(np.isfinite(block).all())
        return is_finite


def _rounded(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":
        return rounded_to_bfloat16(values)
    return values.astype(DTYPES[dtype])


def rounded_to_bfloat16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 of each value, as float32; of two equally near ones the even one.

    By way of float32 a value would be rounded twice, and in rare cases to the wrong side. So the first rounding is
    towards zero and leaves a mark of what it cut off in the last bit, which is far below those of bfloat16.
    """
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    back = narrow.astype(np.float64)
    bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)
    bits |= (back != values).astype(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF0000)
    return narrow
