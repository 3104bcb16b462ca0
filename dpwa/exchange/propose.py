"""What the proposing side says: proposals, questions what became of them, and the ends that answers mean.

It does not choose the peer. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Fetcher, nothing_came
from dpwa.exchange.messages import Message, Past, Propose, Settle, Settled
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.slices import Slice
from dpwa.methods.exchange import NO_EXCHANGE, ExchangeRequest, ExchangeResult, Outcome

__all__ = ["Proposer"]


class Proposer:
    """Speaks for one node.

    Args:
        fetcher: knows who the node is, and notes what peers say of themselves.
        proposals: those under way.
    """

    def __init__(self, fetcher: Fetcher, proposals: Proposals) -> None:
        self._fetcher = fetcher
        self._proposals = proposals

    def tell(self, peer: str, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """Tell a peer that this node has finished.

        Raises:
            TransportError: it did not hear.
        """
        answer = self.settle(peer, NO_EXCHANGE, client, finished=request.finished)
        if isinstance(answer, Settled):
            return request.ended(Outcome.TOLD, peer)
        return self.declined(answer, peer, request)

    def end(self, request: ExchangeRequest, outcome: Outcome) -> None:
        """A proposal has ended: its snapshot need not be kept, and a pair that fell through binds nobody."""
        if request.exchange_id != NO_EXCHANGE:
            self._proposals.close(request.exchange_id, is_taken=outcome in (Outcome.BLENDED, Outcome.PUSHED))
            if outcome is not Outcome.BLENDED:
                self._proposals.disengage(request.exchange_id)

    def propose(self, peer: str, request: ExchangeRequest, client: Client, part: Slice | None) -> Message:
        """Propose an exchange to a peer, and return the answer.

        Args:
            peer: whom.
            request: the exchange, with its id.
            client: the way there.
            part: what a pair is about; None for a push.

        Raises:
            TransportError: the peer did not hear, or its answer was lost or cannot be.
        """
        answer = client.request(peer, self._proposal(peer, request, part))
        self._fetcher.note(peer, answer)
        self._fetcher.refuse_impossible(peer, answer)
        return answer

    def _proposal(self, peer: str, request: ExchangeRequest, part: Slice | None) -> Propose:
        identity, state = self._fetcher.identity, request.reference.state
        return Propose(
            nonce=self._fetcher.next_nonce(),
            run=identity.run,
            node=identity.node,
            incarnation=identity.incarnation,
            fingerprint=self._fetcher.layout.fingerprint,
            exchange_id=request.exchange_id,
            is_pair=part is not None,
            mass=request.plan.mass,
            clock=state.clock,
            loss=state.loss,
            round=state.round,
            piece=part.window[0] if part is not None else 0,
            pieces=part.window[1] if part is not None else 0,
            previous=self._proposals.proof_for(peer),
            lineage=state.lineage,
        )

    def settle(
        self, peer: str, exchange_id: bytes, client: Client, *, gives_up: bool = False, finished: bool = False
    ) -> Message:
        """Ask a peer what became of a proposal, and return the answer: `Settled` if all is well.

        Args:
            peer: whom.
            exchange_id: of the proposal; `NO_EXCHANGE` for none.
            client: the way there.
            gives_up: nothing may be taken any more.
            finished: this node has ended its training.

        Raises:
            TransportError: there was no answer.
        """
        identity = self._fetcher.identity
        answer = client.request(
            peer,
            Settle(
                nonce=self._fetcher.next_nonce(),
                run=identity.run,
                node=identity.node,
                incarnation=identity.incarnation,
                exchange_id=exchange_id,
                gives_up=gives_up,
                finished=finished,
            ),
        )
        self._fetcher.note(peer, answer)
        return answer

    def declined(self, answer: Message, peer: str, request: ExchangeRequest) -> ExchangeResult:
        """The end of an exchange that a peer does not take part in."""
        reason = "the proposal came too late" if isinstance(answer, Past) else ""
        return nothing_came(request.ended(Outcome.ABORTED, peer, reason), answer)
