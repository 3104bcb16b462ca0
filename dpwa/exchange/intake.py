"""How much a node takes in: within its bandwidth limit, and no more than a link bears.

What it asks for itself is planned by the trainer, what peers begin is accepted by the Rx thread, and what has come is
counted where all of it comes, in the thread that makes the exchanges. One lock is held for a few additions.

Must not know: messages, models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dpwa.exchange.budget import Budget

__all__ = ["Intake", "Stride"]

# Cycles of skipped and made rounds that the mean time of a round is taken over.
_CYCLES = 4

# Rounds are made more often again when there is so much more room than that would take.
_ROOM = 1.5

_LARGEST_STRIDE = 1 << 20


class Stride:
    """Which rounds a node makes, where a limit does not let it make all.

    Every 2^k-th: so nodes of one cluster file and about one pace make the same rounds, without a word about it, and
    those that they make miss nobody. A node that makes every fourth makes none that one of every second leaves out.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._seen = 0
        self._round_s = 0.0
        self._last: tuple[int, float] | None = None

    def has_turn(self, round_: int, now_s: float, least_s: float) -> bool:
        """Whether this round is made.

        Args:
            round_: its number.
            now_s: monotonic time.
            least_s: seconds that the limit allows one round to cost.
        """
        if self._last is not None and round_ > self._last[0]:
            last_round, last_s = self._last
            self._seen = min(self._seen + 1, _CYCLES * max(2, self._stride))
            self._round_s += ((now_s - last_s) / (round_ - last_round) - self._round_s) / self._seen
            while self._stride < _LARGEST_STRIDE and self._stride * self._round_s < least_s:
                self._stride *= 2
            while self._stride > 1 and self._stride / 2 * self._round_s > _ROOM * least_s:
                self._stride //= 2
        self._last = round_, now_s
        return round_ % self._stride == 0


class Intake:
    """Of one node.

    Args:
        budget: of the limit.
        bears: how much of the parameters the link to a peer bears in one exchange.
        models: how many models one exchange of this node brings.
        is_whole: exchanges that peers begin bring whole models.
        is_waiting: whether something that peers have begun is still to come.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        bears: Callable[[str], float],
        models: int,
        is_whole: bool,
        is_waiting: Callable[[], bool],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._budget = budget
        self._bears = bears
        self._models = models
        self._is_whole = is_whole
        self._is_waiting = is_waiting
        self._monotonic_s = monotonic_s
        self._stride = Stride()
        self._step_interval_s = 0.0
        self._lock = threading.RLock()  # reentrant: a signal's handler may make a step within one

    def spent(self, received_bytes: int, share: float) -> None:
        """Something came over the network. Tx thread.

        Args:
            received_bytes: of it.
            share: of the parameters of one model that it is all of; 0: it broke off, or was no model.
        """
        with self._lock:
            self._budget.spent(received_bytes, self._monotonic_s(), share=share / self._models)

    def next_fraction(self, step_interval_s: float) -> float | None:
        """How much of the parameters the exchange that this node begins now may bring; None: it is left out. Trainer.

        Args:
            step_interval_s: seconds of a step.
        """
        if not self._budget.is_limited:
            return self._budget.next_fraction(0.0, 0.0)
        with self._lock:
            self._step_interval_s = step_interval_s
            return self._budget.next_fraction(self._monotonic_s(), step_interval_s)

    def has_turn(self, round_: int, step_interval_s: float) -> bool:
        """Whether this node makes a round now. Trainer."""
        if not self._budget.is_limited:
            return True
        with self._lock:
            has_turn = self._stride.has_turn(round_, self._monotonic_s(), self._budget.least_s)
        return has_turn and self.next_fraction(step_interval_s) is not None

    def takes(self, peer: str) -> float | None:
        """How much of the parameters this node takes now of what a peer proposes; None: nothing. Rx thread."""
        share = self._bears(peer)
        if not self._budget.is_limited:
            return share
        if self._is_whole and self._is_waiting():
            return None  # each by itself may fit, and both together not
        with self._lock:
            affordable = self._budget.next_fraction(self._monotonic_s(), self._step_interval_s)
        return None if affordable is None else min(share, affordable)
