"""How large a number of a peer may be, by what the last ones were: a multiple of their running median.

What is larger is cut down to the bound, and remembered as the bound. So a liar that gives fewer than half of the
numbers moves neither the median nor the bound beyond what the others gave, and a change that most peers show raises the
bound by its multiple each time half of the memory has been renewed: honest drift is followed, however far it goes.

Must not know: peers, models, time. Runs in: any thread, one call at a time.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

__all__ = ["LEAST", "SLACK", "WINDOW", "RunningBound"]

SLACK = 2.0
"""The bound, in medians. With 3, a replayed old model that a third of the exchanges brings can drag small models along,
because the steps towards it are what drives the others apart."""

WINDOW = 32
"""Numbers that are remembered."""

LEAST = 4
"""With fewer, there is no median to speak of: the bound is the one to begin with."""


class RunningBound:
    """The bound of one quantity; nothing is remembered at first."""

    def __init__(self) -> None:
        self._accepted: deque[float] = deque(maxlen=WINDOW)

    def bound(self, *, start: float, floor: float) -> float:
        """The largest number that passes uncut.

        Args:
            start: the bound while fewer than `LEAST` numbers are known.
            floor: the bound never falls below this: from 0 it could not rise again.
        """
        if len(self._accepted) < LEAST:
            return max(start, floor)
        return max(SLACK * median(self._accepted), floor)

    def take(self, number: float, *, start: float, floor: float) -> float:
        """Cut a number of at least 0 down to the bound, and remember what is left; NaN and infinity are the bound.

        Args:
            number: what came.
            start: see `bound`.
            floor: see `bound`.
        """
        bound = self.bound(start=start, floor=floor)
        kept = min(number, bound) if math.isfinite(number) else bound
        self._accepted.append(kept)
        return kept

    def forget(self) -> None:
        """Begin anew: what the numbers were measured from has been replaced."""
        self._accepted.clear()
