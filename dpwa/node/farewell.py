"""When a node that has finished its training may leave the others.

Whoever leaves before the last peer has asked it is taken for a failure by that peer. That peers have finished counts by
what they answered to this node: anybody could send requests in their names.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.service import Service

__all__ = ["Farewell"]

# Until a peer that has finished has asked this node whether it has, too: it does so next.
_FAREWELL_S = 1.0


class Farewell:
    """The farewell of one node.

    Args:
        peers: names of all other nodes.
        context: of the node's exchanges.
        service: knows who has asked.
    """

    def __init__(self, peers: Sequence[str], context: ExchangeContext, service: Service) -> None:
        self._peers = peers
        self._membership = context.membership
        self._flow_control = context.flow_control
        self._service = service
        self.told: set[str] = set()
        """Peers that have answered a request which said that this node has finished."""
        self._until_s = math.inf

    @property
    def to_tell(self) -> list[str]:
        """Peers that train, as far as this node knows, or have not heard from it that it has finished."""
        return [peer for peer in self._peers if peer not in self.told or not self._membership[peer].finished]

    @property
    def training(self) -> list[str]:
        """Peers that can be reached, and train as far as this node knows."""
        return [peer for peer in self._present() if not self._membership[peer].finished]

    def is_over(self, now_s: float) -> bool:
        """Whether all peers that can be reached have finished, know that this node has, and have asked it."""
        present = self._present()
        if self.training or not self.told.issuperset(present):
            self._until_s = math.inf
            return False
        self._until_s = min(self._until_s, now_s + _FAREWELL_S)
        return now_s >= self._until_s or self._service.asked_at_the_end.issuperset(present)

    def _present(self) -> list[str]:
        return [peer for peer in self._peers if not self._flow_control.is_failing(peer)]
