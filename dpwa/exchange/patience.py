"""How long a peer's answer is waited for: by how long its answers have taken so far.

Two times are measured per peer: until the first word of an answer, and per byte of what follows. The deadline is the
median of the last ones plus a multiple of their deviation, within bounds. So a peer that hangs costs little, and a
large model over a slow link is given the time that it needs.

A peer that accepts connections and never answers would cost the same each time it is given another chance, and nothing
else is exchanged meanwhile. So after one such silence it is waited for even less, until it answers again.

Must not know: the clock. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

__all__ = ["Patience"]

_REMEMBERED = 16
"""Measurements per peer: of the last minutes, rather than of the run."""

_DEVIATIONS = 6.0
"""As many median absolute deviations beyond the median; a normal distribution keeps within it 99.99 % of the time."""

# Of the timeout: the least that the first word of an answer is waited for. A peer holds a pull for up to 0.3 of it.
_LEAST_SHARE = 0.4
_LEAST_SHARE_AFTER_SILENCE = 0.2

# A link of which nothing is known is taken to be as slow as this until something is: 4 Mbit/s.
_UNKNOWN_S_PER_BYTE = 1 / 500_000

# What is measured on a link may become twice as slow, for another transfer beside it, before a transfer is given up.
_RESERVE = 2.0

_LEAST_BYTES = 1 << 16
"""Shorter transfers say how long a word takes, and not how fast the link is."""


class Patience:
    """Remembers how fast each peer answers.

    Args:
        timeout_s: how long an answer, or what is left of it, is waited for as long as nothing else is known.
        longest_s: the longest that an exchange may take, whatever was measured.
    """

    def __init__(self, timeout_s: float, longest_s: float) -> None:
        self.timeout_s = timeout_s
        self.longest_s = longest_s
        self._words_s: dict[str, deque[float]] = {}
        self._s_per_byte: dict[str, deque[float]] = {}
        self._silent: set[str] = set()

    def first_word_s(self, peer: str) -> float:
        """How long to wait for the first word of an answer.

        The whole timeout while nothing is known of the peer. One that has been silent and has never answered is taken
        to be like the slowest of the others, and waited for in full if there is none.
        """
        known = self._words_s.get(peer)
        is_silent = peer in self._silent
        if known is None and is_silent:
            usual_s = max(map(_usual, self._words_s.values()), default=math.inf)
        else:
            usual_s = math.inf if known is None else _usual(known)
        share = _LEAST_SHARE_AFTER_SILENCE if is_silent else _LEAST_SHARE
        return min(self.timeout_s, max(share * self.timeout_s, usual_s))

    def rest_s(self, peer: str, wanted_bytes: float) -> float:
        """How long the rest of an answer may take.

        Args:
            peer: whose answer it is.
            wanted_bytes: at most so many bytes come.
        """
        known = self._s_per_byte.get(peer)
        if known is not None:
            s_per_byte = _usual(known)
        else:
            s_per_byte = max(map(_usual, self._s_per_byte.values()), default=_UNKNOWN_S_PER_BYTE)
        return min(self.longest_s, max(self.timeout_s, _RESERVE * wanted_bytes * s_per_byte))

    def answered(self, peer: str, after_s: float) -> None:
        """The first word came."""
        self._silent.discard(peer)
        self._words_s.setdefault(peer, deque(maxlen=_REMEMBERED)).append(after_s)

    def forget(self, peer: str) -> None:
        """The peer is gone for good."""
        self._silent.discard(peer)
        self._words_s.pop(peer, None)
        self._s_per_byte.pop(peer, None)

    def was_silent(self, peer: str) -> None:
        """No word came in time."""
        self._silent.add(peer)

    def received(self, peer: str, received_bytes: int, took_s: float) -> None:
        """So many bytes of an answer came in this time, whether that was all of it or not."""
        if received_bytes >= _LEAST_BYTES:
            self._s_per_byte.setdefault(peer, deque(maxlen=_REMEMBERED)).append(took_s / received_bytes)


def _usual(measured: deque[float]) -> float:
    """What a further measurement will hardly exceed."""
    middle = median(measured)
    return middle + _DEVIATIONS * median(abs(each - middle) for each in measured)
