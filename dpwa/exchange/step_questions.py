"""Asks peers how many steps they have made, beside the exchanges.

The question is the `SETTLE` about nothing, which a node that has finished sends as well. It needs no snapshot and is
no exchange: it is in no statistics, and a trainer that wants to begin an exchange need not wait until it is answered.

Runs in: `ask` in the trainer's thread, `work` in the thread that makes the exchanges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.methods.exchange import NO_EXCHANGE

if TYPE_CHECKING:
    from dpwa.exchange.context import ExchangeContext

__all__ = ["StepQuestions"]


class StepQuestions:
    """Asks for one node.

    Args:
        context: of the node's exchanges. The answers are noted in its membership.
    """

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._peer: str | None = None

    def ask(self, peer: str) -> None:
        """Have a peer asked; instead of the one before, if that was not asked yet."""
        self._peer = peer
        self._context.proposals.wake()

    def work(self, client: Client) -> None:
        """Ask, unless the peer fails and is not due for another chance.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        peer, self._peer = self._peer, None
        flow_control, monotonic_s = self._context.flow_control, self._context.monotonic_s
        if peer is None or not flow_control.may_ask(peer, monotonic_s()):
            return
        try:
            self._context.proposer.settle(peer, NO_EXCHANGE, client)
        except (PeerTimeout, PeerUnreachable, ModelMismatch, RemoteProtocolError):
            flow_control.failed(peer, monotonic_s())
        else:
            flow_control.answered(peer)
