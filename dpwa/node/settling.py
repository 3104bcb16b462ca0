"""Whether what this node and its peers have begun with each other has ended, before its model is let be or it leaves.

A node that left in between would take a push along that its peer believes to have made, or keep the peer waiting for
a word that nobody gives.

Must not know: who has finished, the model. Runs in: the trainer's thread.
"""

from __future__ import annotations

import math

from dpwa.exchange.proposals import Proposals
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind, Method

__all__ = ["WORD_S", "Settling"]

# The peer whose push was taken asks for the word as soon as it has given the last of it.
WORD_S = 1.0


class Settling:
    """See the module, of one node.

    Args:
        method: of the node.
        service: what peers propose is refused by it.
        proposals: those under way.
    """

    def __init__(self, method: Method, service: Service, proposals: Proposals) -> None:
        self._method = method
        self._service = service
        self._proposals = proposals
        self._refuses = False
        self._is_settled = False
        self._since_s = math.inf

    def has_settled(self, *, is_busy: bool) -> bool:
        """Accept nothing more, and say whether what was accepted before has come.

        At the second turn only: at the first, what was fetched may be on its way to the trainer.

        Args:
            is_busy: something of this node's own is under way.
        """
        takes_proposals = self._method.kind in (ExchangeKind.PUSH, ExchangeKind.PAIR)
        if takes_proposals and self._service.serving.first_round is not None:
            self._service.tell(first_round=None)
            self._refuses = True
        was_settled, self._is_settled = self._is_settled, not (is_busy or self._proposals.is_waiting)
        return was_settled and self._is_settled

    def may_leave(self, now_s: float, *, is_pushing: bool, at_most_s: float) -> bool:
        """Whether the node may leave, now that nobody trains any more; accepts nothing from then on.

        Args:
            now_s: monotonic time.
            is_pushing: what the node has given away may still come back.
            at_most_s: a peer that dies in the middle of an exchange is waited for no longer.
        """
        self._since_s = min(self._since_s, now_s)
        waited_s = now_s - self._since_s
        has_settled = self.has_settled(is_busy=is_pushing or self._proposals.is_paired)
        return (has_settled and (waited_s >= WORD_S or not self._proposals.owes_word)) or waited_s >= at_most_s

    def go_on(self) -> None:
        """The node stays, or trains on: proposals are welcome again if they were refused."""
        self._is_settled, self._since_s = False, math.inf
        if self._refuses:
            self._refuses = False
            self._service.tell(first_round=self._method.round)
