"""Ended exchanges on their way to the trainer.

Must not know: what is in them, beyond whether two pushes can become one. Runs in: put by the thread that makes the
exchanges, taken by the trainer.
"""

from __future__ import annotations

import threading
from collections import deque

from dpwa.exchange.result import Exchange, Outcome
from dpwa.methods.base import ExchangeKind

__all__ = ["Results"]


class Results:
    """A mailbox. It stays short: a node begins one exchange at a time, and what peers push is merged into one."""

    def __init__(self) -> None:
        self._ended: deque[Exchange] = deque()
        self._change = threading.Condition()
        self._is_closed = False

    def put(self, exchange: Exchange) -> None:
        """Add one."""
        with self._change:
            self._ended.append(exchange)
            self._change.notify()

    def take(self, wait_s: float) -> Exchange | None:
        """The next one, waiting at most so long; None if there is none."""
        if not self._ended and wait_s <= 0:  # the usual case costs no lock
            return None
        with self._change:
            self._change.wait_for(lambda: self._ended or self._is_closed, wait_s)
            return self._ended.popleft() if self._ended else None

    def close(self) -> None:
        """Nothing more will come: nobody is to wait for it, nor to keep the snapshots of what nobody has taken.

        Any thread, and a signal's handler within `take`.
        """
        with self._change:
            self._is_closed = True
            self._ended.clear()
            self._change.notify_all()

    def recall_push(self) -> Exchange | None:
        """Take back values that peers have pushed and the trainer has not taken; None if there are none."""
        with self._change:
            for exchange in self._ended:
                if exchange.kind is ExchangeKind.PUSH and exchange.outcome is Outcome.BLENDED:
                    self._ended.remove(exchange)
                    return exchange
            return None
