"""Which steps begin an exchange: those that are drawn, and later ones for what was drawn and came to nothing.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random

__all__ = ["Draw"]

# How often what was drawn is tried again. Each time takes a snapshot or a message, and a peer may be busy for ever.
_MOST_TRIES = 8


class Draw:
    """Draws the steps that begin an exchange.

    What is refused is made up for in a later step, or nodes would exchange less often than they ask for.

    Args:
        retry_share: in which share of the steps, until the next is drawn, what came to nothing is tried again.
    """

    def __init__(self, *, retry_share: float) -> None:
        self._retry_share = retry_share
        self._is_owed = False  # an exchange was drawn and refused
        self._tries = 0  # that may still be made for it

    def begins(self, rng: random.Random, probability: float) -> bool:
        """Whether a step that is drawn with this probability begins an exchange."""
        if rng.random() < probability:
            self._tries = _MOST_TRIES
        elif not (self._is_owed and probability > 0 and rng.random() < self._retry_share):
            return False
        self._is_owed = False
        return True

    def refused(self, *, by_peers: bool) -> None:
        """The exchange that was begun last came to nothing: see `Method.refused`."""
        self._is_owed = self._tries > 0
        self._tries -= by_peers
