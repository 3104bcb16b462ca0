"""Whether what this node and its peers have begun with each other has ended, before its model is let be or it leaves.

A node that left in between would take a push along that its peer believes to have made, or keep the peer waiting for
a word that nobody gives.

Must not know: who has finished, the model. Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dpwa.exchange.proposals import Proposals
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind, Method
from dpwa.node.joining import Joining

__all__ = ["WORD_S", "Settling"]

# A peer whose push was taken asks what became of it when it has given the last of it, or a timeout later if it does not
# know that; and before that it ends what it is fetching itself.
WORD_S = 10.0


class Settling:
    """See the module, of one node.

    Args:
        method: of the node.
        service: what peers propose is refused by it.
        proposals: those under way.
        joining: whether the node takes part at all.
        longest_s: what fetching a proposal may take.
    """

    def __init__(
        self, method: Method, service: Service, proposals: Proposals, joining: Joining, *, longest_s: float
    ) -> None:
        self._method = method
        self._service = service
        self._proposals = proposals
        self._joining = joining
        self._longest_s = longest_s
        self._refuses = False
        self._is_settled = False
        self._since_s = math.inf
        self._settled_s = math.inf

    def refuse(self) -> None:
        """Accept nothing more."""
        takes_proposals = self._method.kind in (ExchangeKind.PUSH, ExchangeKind.PAIR)
        if takes_proposals and self._service.serving.first_round is not None:
            self._service.tell(first_round=None)
            self._refuses = True

    def has_settled(self, *, is_busy: bool) -> bool:
        """Accept nothing more, and say whether what was accepted before has come.

        At the second turn only: at the first, what was fetched may be on its way to the trainer.

        Args:
            is_busy: something of this node's own is under way.
        """
        self.refuse()
        was_settled, self._is_settled = self._is_settled, not (is_busy or self._proposals.is_waiting)
        return was_settled and self._is_settled

    def may_leave(self, now_s: float, *, is_pushing: bool, is_gone: Callable[[str], bool]) -> bool:
        """Whether the node may leave, now that nobody trains any more; accepts nothing from then on.

        Args:
            now_s: monotonic time.
            is_pushing: what the node has given away may still come back. That ends by itself.
            is_gone: whether a peer will ask no more.
        """
        self._since_s = min(self._since_s, now_s)
        if not self.has_settled(is_busy=is_pushing or self._proposals.is_paired):
            self._settled_s = math.inf
            return not is_pushing and now_s - self._since_s >= self._longest_s + WORD_S
        self._settled_s = min(self._settled_s, now_s)
        return now_s - self._settled_s >= WORD_S or all(map(is_gone, self._proposals.untold))

    def end(self) -> None:
        """The node leaves, whatever is under way: what has not been taken yet stays with its proposers."""
        self.refuse()
        self._proposals.abandon()

    def go_on(self) -> None:
        """The node stays, or trains on: proposals are welcome again if they were refused."""
        self._is_settled, self._since_s, self._settled_s = False, math.inf, math.inf
        if self._refuses:
            self._refuses = False
            if not self._joining.is_on:
                self._service.tell(first_round=self._method.round)
