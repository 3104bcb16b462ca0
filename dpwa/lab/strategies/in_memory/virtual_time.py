"""Virtual time: what is due at which moment, and a clock that jumps from one moment to the next.

Must not know: nodes, messages. Runs in: the training thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["VirtualTime"]


class VirtualTime:
    """A clock that stands still while anything happens.

    Two runs that plan the same things do them in the same order: what is due at the same moment happens in the order in
    which it was planned.

    Attributes:
        now_s: seconds since the start.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def clock(self) -> float:
        """The time now, for whoever wants a function such as `time.monotonic`."""
        return self.now_s

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Plan something.

        Args:
            delay_s: from now on, at least 0.
            action: what is to happen; it may plan more.
        """
        heapq.heappush(self._due, (self.now_s + delay_s, self._planned, action))
        self._planned += 1

    def run(self) -> None:
        """Let everything happen that is planned, and what that plans, until nothing is left."""
        while self._due:
            self.now_s, _, action = heapq.heappop(self._due)
            action()
