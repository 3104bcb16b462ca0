"""How long the first word of a peer's answer is waited for.

A peer that accepts connections and never answers would cost the whole timeout each time it is given another chance,
and nothing else is exchanged meanwhile. So after one such silence it is waited for only a fraction of that, until it
answers again. This is about the first word alone: an answer that has begun may take its whole time, over however slow a
link.

Must not know: the clock. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

__all__ = ["Patience"]

# Of the timeout, for a peer that was silent last time.
_SHARE = 0.2

# How many times what it usually takes; a peer may hold its answer until its next step.
_USUAL = 4.0

# An answer that once took long says less about the next one with each that follows.
_FADING = 0.9


class Patience:
    """Remembers how fast each peer answers.

    Args:
        timeout_s: the longest wait.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._usual_s: dict[str, float] = {}
        self._silent: set[str] = set()

    def first_word_s(self, peer: str) -> float:
        """How long to wait for the first word of an answer.

        The whole timeout, but for a peer that was silent last time. Of one that has never answered, nobody knows what
        is usual: it is taken to be like the slowest of the others, and waited for in full if there is none.
        """
        if peer not in self._silent:
            return self._timeout_s
        usual_s = self._usual_s.get(peer, max(self._usual_s.values(), default=self._timeout_s))
        return min(self._timeout_s, max(_SHARE * self._timeout_s, _USUAL * usual_s))

    def answered(self, peer: str, after_s: float) -> None:
        """The first word came."""
        self._silent.discard(peer)
        self._usual_s[peer] = max(after_s, _FADING * self._usual_s.get(peer, 0.0))

    def forget(self, peer: str) -> None:
        """The peer is gone for good."""
        self._silent.discard(peer)
        self._usual_s.pop(peer, None)

    def was_silent(self, peer: str) -> None:
        """No word came in time."""
        self._silent.add(peer)
