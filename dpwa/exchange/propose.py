"""What the proposing side says: proposals, questions what became of them, and the ends that answers mean.

Must not know: sockets, threads, which peer to ask. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Fetcher
from dpwa.exchange.messages import (
    NO_EXCHANGE,
    Busy,
    Message,
    NotReady,
    Past,
    Propose,
    Refused,
    Settle,
    Settled,
)
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.result import Ask, Exchange, Outcome
from dpwa.exchange.slices import Slice

__all__ = ["Proposer"]


class Proposer:
    """Speaks for one node.

    Args:
        fetcher: knows who the node is, and is told what peers say of themselves.
        proposals: those under way.
    """

    def __init__(self, fetcher: Fetcher, proposals: Proposals) -> None:
        self._fetcher = fetcher
        self._proposals = proposals

    def tell(self, peer: str, ask: Ask, client: Client) -> Exchange:
        """Tell a peer that this node has finished.

        Raises:
            TransportError: it did not hear.
        """
        answer = self.settle(peer, NO_EXCHANGE, client, finished=ask.finished)
        if isinstance(answer, Settled):
            return Exchange(Outcome.TOLD, ask, None, peer)
        return self.declined(answer, peer, ask)

    def end(self, ask: Ask, outcome: Outcome) -> None:
        """A proposal has ended: its snapshot need not be kept, and a pair that fell through binds nobody."""
        if ask.exchange != NO_EXCHANGE:
            self._proposals.close(ask.exchange, is_taken=outcome in (Outcome.BLENDED, Outcome.PUSHED))
            if outcome is not Outcome.BLENDED:
                self._proposals.disengage(ask.exchange)

    def propose(self, peer: str, ask: Ask, client: Client, part: Slice | None) -> Message:
        """Propose an ask's exchange to a peer; the answer.

        Args:
            peer: whom.
            ask: the exchange, with its id.
            client: the way there.
            part: what a pair is about; None for a push.

        Raises:
            TransportError: the peer did not hear, or its answer was lost or cannot be.
        """
        answer = client.request(peer, self._proposal(peer, ask, part))
        self._fetcher.note(peer, answer)
        self._fetcher.refuse_impossible(peer, answer)
        return answer

    def _proposal(self, peer: str, ask: Ask, part: Slice | None) -> Propose:
        identity, state = self._fetcher.identity, ask.reference.state
        return Propose(
            nonce=self._fetcher.next_nonce(),
            run=identity.run,
            node=identity.node,
            incarnation=identity.incarnation,
            fingerprint=self._fetcher.layout.fingerprint,
            exchange=ask.exchange,
            is_pair=part is not None,
            mass=ask.mass,
            clock=state.clock,
            loss=state.loss,
            round=state.round,
            piece=part.window[0] if part is not None else 0,
            pieces=part.window[1] if part is not None else 0,
            previous=self._proposals.proof_for(peer),
            lineage=state.lineage,
        )

    def settle(
        self, peer: str, exchange: bytes, client: Client, *, gives_up: bool = False, finished: bool = False
    ) -> Message:
        """Ask a peer what became of a proposal; the answer, `Settled` if all is well.

        Args:
            peer: whom.
            exchange: id of the proposal; `NO_EXCHANGE` for none.
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
                exchange=exchange,
                gives_up=gives_up,
                finished=finished,
            ),
        )
        self._fetcher.note(peer, answer)
        return answer

    def declined(self, answer: Message, peer: str, ask: Ask) -> Exchange:
        """The end of an exchange that a peer does not take part in."""
        outcome, reason = Outcome.ABORTED, ""
        if isinstance(answer, Busy):
            outcome = Outcome.BUSY
        elif isinstance(answer, NotReady):
            outcome = Outcome.NOT_READY
        elif isinstance(answer, Refused):
            outcome, reason = Outcome.REFUSED, f"peer {peer} refused: {answer.reason}"
        elif isinstance(answer, Past):
            reason = "the proposal came too late"
        return Exchange(outcome, ask, ask.kind, peer, ask.exchange, reason=reason)
