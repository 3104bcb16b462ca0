"""How far two models are apart.

Must not know: where the values come from. Runs in: any thread.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Apart", "sum_of_squares"]

# Values whose product OpenBLAS makes in the calling thread.
_OF_ONE_THREAD = 1 << 13


class Apart(NamedTuple):
    """How far a peer's values are from this node's, for tensors of one sort: sums over all that came.

    Attributes:
        squares: of the differences; infinite where they overflow.
        own_squares: of this node's values.
        values: how many there are.
    """

    squares: float = 0.0
    own_squares: float = 0.0
    values: int = 0

    @property
    def distance(self) -> float:
        """Root mean square of the differences."""
        return math.sqrt(self.squares / self.values) if self.values else 0.0

    @property
    def own_size(self) -> float:
        """Root mean square of this node's values."""
        return math.sqrt(self.own_squares / self.values) if self.values else 0.0


def sum_of_squares(values: npt.NDArray[Any]) -> float:
    """Of a flat array, without the threads of a linear algebra library.

    OpenBLAS takes several for a product of more than 10,000 values, and each then spins for milliseconds in case
    another follows: with a model per step that is a core less for the training.
    """
    total = 0.0
    for start in range(0, len(values), _OF_ONE_THREAD):
        block = values[start : start + _OF_ONE_THREAD]
        total += float(np.dot(block, block))
    return total
