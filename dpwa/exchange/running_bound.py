"""How large a number of a peer may be, by what all peers gave lately.

Each peer has a level: the largest of its last numbers. The bound is a multiple of the median of all levels, the lower
of the two middle ones where they are even. So peers that are fewer than half, whatever they give, cannot raise it above
what an honest one has shown; what an honest peer shows now and then, because the two have just exchanged or have not
for long, is within its level. A change that most peers show raises the bound at least threefold each time they have
all been met: honest drift is followed, however far it goes.

Must not know: what the numbers mean, models, time. Runs in: any thread, one call at a time.
"""

from __future__ import annotations

from collections import deque

__all__ = ["GROWTH", "LEAST", "SLACK", "WINDOW", "RunningBound"]

SLACK = 1.5
"""The bound, in levels. With 2, nodes that begin together do not get away from a third of the peers that stay there."""

GROWTH = 2.0
"""What is larger than so many bounds is remembered as that."""

WINDOW = 8
"""Numbers of each peer that are remembered. What is older than so many exchanges per peer does not count: a peer that
has not been met for long says nothing of how far apart nodes are now."""

LEAST = 6
"""With fewer numbers there is no median to speak of: the bound is the one to begin with."""


# Numbers of all peers that are looked at: a few tens of microseconds of work, however many peers there are.
_MOST = 256


class RunningBound:
    """The bound of one quantity; nothing is remembered at first."""

    def __init__(self) -> None:
        self._taken = 0
        self._numbers: dict[str, deque[tuple[int, float]]] = {}
        """Of each peer the last ones, with how many had been taken before."""

    def bound(self, *, start: float, floor: float) -> float:
        """The largest number that passes.

        Args:
            start: the bound while fewer than `LEAST` numbers are known. Where they are of one peer alone, nobody can
                say whether they are usual: then the bound does not fall below this.
            floor: the bound never falls below this: from 0 it could not rise again.
        """
        recent = self._recent()
        # The largest of few numbers is smaller than that of many: what is missing is made up for.
        levels = sorted(max(numbers) * (1.0 + 1.0 / len(numbers)) for numbers in recent)
        if sum(map(len, recent)) < LEAST:
            return max(start, floor)
        usual = SLACK * levels[(len(levels) - 1) // 2]
        return max(usual, start if len(levels) == 1 else 0.0, floor)

    def take(self, peer: str, number: float, *, start: float, floor: float) -> float:
        """Remember a number of at least 0, as `GROWTH` bounds if it is larger or NaN.

        Args:
            peer: whose.
            number: what came.
            start: see `bound`.
            floor: see `bound`.

        Returns:
            The bound before that.
        """
        bound = self.bound(start=start, floor=floor)
        most = GROWTH * bound
        kept = number if number <= most else most
        self._numbers.setdefault(peer, deque(maxlen=WINDOW)).append((self._taken, kept))
        self._taken += 1
        oldest = self._oldest
        for silent in [name for name, numbers in self._numbers.items() if numbers[-1][0] < oldest]:
            del self._numbers[silent]
        return bound

    @property
    def _oldest(self) -> int:
        return self._taken - min(WINDOW * len(self._numbers), _MOST)

    def _recent(self) -> list[list[float]]:
        oldest = self._oldest
        recent = [[number for at, number in numbers if at >= oldest] for numbers in self._numbers.values()]
        return [numbers for numbers in recent if numbers]

    def forget(self, peer: str) -> None:
        """A peer is gone for good."""
        self._numbers.pop(peer, None)

    def clear(self) -> None:
        """Begin anew: what the numbers were measured from has been replaced."""
        self._numbers.clear()
