"""The types of the elements that nodes exchange. NumPy has no bfloat16: it is kept as its 16 bits, as uint16.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "ITEM_BYTES", "widen_bfloat16", "widened"]

DTYPES: Final[dict[str, type[np.generic]]] = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
}
"""By name, in the order in which a snapshot holds them."""

ITEM_BYTES: Final = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
"""Bytes of one element."""


def widen_bfloat16(bits: npt.NDArray[np.uint16], out: npt.NDArray[np.float32]) -> None:
    """Puts the values of bfloat16 bits into `out`, of the same shape: they are the upper halves of float32 bits."""
    words = out.view(np.uint32)
    np.copyto(words, bits)
    words <<= 16


def widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values of 16 bits (uint16: bfloat16) as a new float32 array, which loses nothing; all others as they are."""
    if values.dtype == np.uint16:
        out = np.empty(values.shape, np.float32)
        widen_bfloat16(values, out)
        return out
    return values.astype(np.float32) if values.dtype == np.float16 else values
