"""Results of exchanges on their way to the trainer, and how two of them become one.

Runs in: put by the thread that makes the exchanges, taken by the trainer.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome
from dpwa.snapshot.lineage import Relation
from dpwa.snapshot.state import State

__all__ = ["Results", "merged"]


class Results:
    """A mailbox. It stays short: a node begins one exchange at a time, and what peers push is merged into one."""

    def __init__(self) -> None:
        self._ended: deque[ExchangeResult] = deque()
        self._change = threading.Condition()
        self._is_closed = False

    def put(self, result: ExchangeResult) -> None:
        """Add one."""
        with self._change:
            self._ended.append(result)
            self._change.notify()

    def take(self, wait_s: float) -> ExchangeResult | None:
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

    def recall_push(self) -> ExchangeResult | None:
        """Take back values that peers have pushed and the trainer has not taken; None if there are none."""
        with self._change:
            for result in self._ended:
                if result.kind is ExchangeKind.PUSH and result.outcome is Outcome.BLENDED:
                    self._ended.remove(result)
                    return result
            return None


def merged(earlier: ExchangeResult, later: ExchangeResult) -> ExchangeResult:
    """Two results with values as one, in the staging of the earlier; each counts by its weight."""
    weight = earlier.weight + later.weight
    share = later.weight / weight if weight > 0 else 0.0
    if earlier.staging is not None and later.staging is not None:
        earlier.staging.merge(later.staging, share)
    one, other = earlier.peer_state, later.peer_state
    clock = one.clock + share * (other.clock - one.clock)
    return replace(
        later,
        peer_state=State(other.loss, clock, weight, max(one.round, other.round), min(one.lineage, other.lineage)),
        weight=weight,
        relation=Relation.NEAR if earlier.relation is Relation.NEAR else later.relation,
        merged=earlier.merged + later.merged,
        staging=earlier.staging,
        received_bytes=earlier.received_bytes + later.received_bytes,
        is_shared=earlier.is_shared and later.is_shared,
    )
