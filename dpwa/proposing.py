"""The side of a push or a pair that begins it.

A push ends with the peer's word that it has taken the values or not, or when this node has taken the proposal back. A
pair ends with the peer's word that it has taken its half; until that word this node does not move.

Must not know: sockets, threads, which peer to ask, what a mass means. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from dpwa.blending import Staging
from dpwa.errors import PeerUnreachable, TransportError
from dpwa.exchange import Ask, Exchange, Outcome
from dpwa.fetching import Fetcher
from dpwa.interpolation import State
from dpwa.methods.base import Kind
from dpwa.parts import Part
from dpwa.peers.membership import Membership
from dpwa.transport.messages import (
    NO_EXCHANGE,
    Accepted,
    Busy,
    Message,
    NotReady,
    Offer,
    Past,
    Propose,
    Refused,
    Settle,
    Settled,
    Verdict,
)
from dpwa.transport.proposals import Proposals
from dpwa.transport.pulling import Client

__all__ = ["Proposer"]

# Questions to a peer what became of a proposal, before it counts as lost. Each takes up to the config's timeout.
_SETTLE_TRIES = 10

# The pause before such a question is asked again of a peer that cannot be reached; doubles.
_FIRST_PAUSE_S = 0.05


@dataclass
class _Pushed:
    ask: Ask
    peer: str
    incarnation: bytes
    began_s: float
    due_s: float
    tries: int = 0
    is_questioned: bool = False


class Proposer:
    """Proposes for one node.

    Args:
        fetcher: fetches the other half of a pair.
        membership: told what peers say of themselves.
        proposals: those under way.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        membership: Membership,
        proposals: Proposals,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._fetcher = fetcher
        self._membership = membership
        self._proposals = proposals
        self._monotonic_s = monotonic_s
        self._pushed: _Pushed | None = None

    @property
    def deadline_s(self) -> float | None:
        """When a push becomes due for a question."""
        return self._pushed.due_s if self._pushed is not None else None

    def tell(self, peer: str, ask: Ask, client: Client) -> Exchange:
        """Tell a peer that this node has finished.

        Raises:
            TransportError: it did not hear.
        """
        answer = self._settle(peer, NO_EXCHANGE, client, finished=ask.finished)
        if isinstance(answer, Settled):
            return Exchange(Outcome.TOLD, ask, None, peer)
        return self._declined(answer, peer, ask)

    # --- Push -----------------------------------------------------------------------------------------------------

    def push(self, peer: str, ask: Ask, client: Client) -> Exchange | None:
        """Propose a push; None if the peer has accepted it, or may have.

        Raises:
            TransportError: the peer has not accepted it, and will not.
        """
        self._proposals.address(ask.exchange, peer, is_pair=False)
        now_s = self._monotonic_s()
        pushed = _Pushed(ask, peer, self._incarnation_of(peer), now_s, now_s + client.patience_s)
        try:
            answer = client.request(peer, self._proposal(ask, is_pair=False, part=None))
        except TransportError:
            # The peer may have heard and only its answer be lost. As long as it has not begun to fetch, that is over.
            if self._proposals.withdraw(ask.exchange):
                raise
            self._pushed = pushed
            return None
        self._fetcher.note(peer, answer)
        if isinstance(answer, Accepted):
            pushed.incarnation = answer.incarnation
        elif self._proposals.withdraw(ask.exchange):
            return self._declined(answer, peer, ask)
        # What was declined and is being fetched all the same was delivered twice, and accepted the second time.
        self._pushed = pushed
        return None

    def conclude(self, client: Client) -> Exchange | None:
        """The end of a push, if it is known by now.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        pushed = self._pushed
        # A peer that is asked may do its own work first, and ask this node in turn: then its question ends nothing.
        if pushed is None or pushed.is_questioned:
            return None
        exchange = pushed.ask.exchange
        # A peer that has fetched all of it decides this moment, and only its word counts: it may find values that are not
        # finite, and as long as it has not decided it must not get a newer proposal.
        is_decided = self._proposals.is_fetched(exchange) and pushed.tries == 0
        if not is_decided and self._monotonic_s() < pushed.due_s:
            return None
        if self._proposals.withdraw(exchange):
            return self._end(pushed, Outcome.RETURNED, "it was not fetched in time")
        return self._question(pushed, client)

    def _question(self, pushed: _Pushed, client: Client) -> Exchange | None:
        """Ask the peer of a push that it has begun to fetch; None while that is not known."""
        pushed.tries += 1
        pushed.due_s = self._monotonic_s() + client.patience_s
        exchange = pushed.ask.exchange
        pushed.is_questioned = True
        try:
            answer = self._settle(pushed.peer, exchange, client)
        except TransportError as error:
            if pushed.tries < _SETTLE_TRIES:
                return None
            return self._end(pushed, Outcome.LOST, str(error))
        finally:
            pushed.is_questioned = False
        if isinstance(answer, Settled):
            if answer.verdict == Verdict.TAKEN:
                return self._end(pushed, Outcome.PUSHED)
            # Of a peer that was never heard before, whose answer was lost, only the life that answers now is known.
            if pushed.incarnation and answer.incarnation != pushed.incarnation:
                return self._end(pushed, Outcome.LOST, f"peer {pushed.peer} was restarted while it fetched")
            if answer.verdict == Verdict.ABORTED:
                return self._end(pushed, Outcome.RETURNED, f"peer {pushed.peer} could not fetch it")
        return None

    def _end(self, pushed: _Pushed, outcome: Outcome, reason: str = "") -> Exchange:
        self._pushed = None
        self._proposals.close(pushed.ask.exchange)
        return Exchange(
            outcome,
            pushed.ask,
            Kind.PUSH,
            pushed.peer,
            pushed.ask.exchange,
            weight=pushed.ask.mass,
            duration_s=self._monotonic_s() - pushed.began_s,
            reason=reason,
        )

    # --- Pair -----------------------------------------------------------------------------------------------------

    def pair(self, peer: str, ask: Ask, client: Client, part: Part, staging: Staging) -> Exchange:
        """Propose a pair and see it through: fetch the peer's half, and wait for its word.

        Raises:
            TransportError: it came to nothing.
        """
        if not self._proposals.address(ask.exchange, peer, is_pair=True):
            return Exchange(Outcome.BUSY, ask, Kind.PAIR, peer, ask.exchange)
        answer = client.request(peer, self._proposal(ask, is_pair=True, part=part))
        self._fetcher.note(peer, answer)
        if not isinstance(answer, Accepted):
            return self._declined(answer, peer, ask)
        if not self._proposals.bind():
            self._give_up(peer, ask, client)
            return Exchange(Outcome.ABORTED, ask, Kind.PAIR, peer, ask.exchange)
        try:
            fetched = self._fetcher.fetch(
                peer, client, staging, ask.reference, part, exchange=ask.exchange, finished=ask.finished
            )
        except TransportError:
            self._give_up(peer, ask, client)
            raise
        offer = fetched.answer
        if not isinstance(offer, Offer) or not fetched.is_finite:
            self._give_up(peer, ask, client)
            if isinstance(offer, Offer):
                reason = f"the snapshot of peer {peer}, or the own one, holds NaN or infinite values"
                return Exchange(Outcome.REJECTED, ask, Kind.PAIR, peer, ask.exchange, offer.version, reason=reason)
            return Exchange(Outcome.ABORTED, ask, Kind.PAIR, peer, ask.exchange)
        outcome = self._word_of(peer, answer.incarnation, ask, client)
        return Exchange(
            outcome,
            ask,
            Kind.PAIR,
            peer,
            ask.exchange,
            version=offer.version,
            reference=ask.reference,
            peer_state=State(offer.loss, offer.clock, offer.mass, offer.round),
            share=part.share,
            merged=1,
            staging=staging,
            received_bytes=fetched.pulled.received_bytes,
            is_shared=fetched.pulled.is_shared,
            codec=fetched.codec,
            note=fetched.pulled.note,
            reason=f"peer {peer} vanished before it said whether it has moved" if outcome is Outcome.LOST else "",
        )

    def _word_of(self, peer: str, incarnation: bytes, ask: Ask, client: Client) -> Outcome:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_SETTLE_TRIES):
            try:
                answer = self._settle(peer, ask.exchange, client)
            except PeerUnreachable:
                client.pause(pause_s)
                pause_s = min(2 * pause_s, client.patience_s)
                continue
            except TransportError:
                continue
            if isinstance(answer, Settled):
                # A restarted peer knows of nothing: the life that may have moved is over.
                if answer.verdict == Verdict.ABORTED or answer.incarnation != incarnation:
                    return Outcome.ABORTED
                if answer.verdict == Verdict.TAKEN:
                    return Outcome.BLENDED
        return Outcome.LOST

    def _give_up(self, peer: str, ask: Ask, client: Client) -> None:
        """Tell the peer, so that it is free again; it would find out by itself."""
        with contextlib.suppress(TransportError):
            self._settle(peer, ask.exchange, client, gives_up=True)

    # --- Both -----------------------------------------------------------------------------------------------------

    def end(self, ask: Ask, outcome: Outcome) -> None:
        """The proposal of an ask has ended: its snapshot need not be kept, and a pair that fell through binds nobody."""
        if ask.exchange != NO_EXCHANGE:
            self._proposals.close(ask.exchange)
            if outcome is not Outcome.BLENDED:
                self._proposals.disengage(ask.exchange)

    def _incarnation_of(self, peer: str) -> bytes:
        return self._membership[peer].incarnation or b""

    def _proposal(self, ask: Ask, *, is_pair: bool, part: Part | None) -> Propose:
        identity, state = self._fetcher.identity, ask.reference.state
        return Propose(
            nonce=self._fetcher.next_nonce(),
            run=identity.run_id,
            node=identity.node,
            incarnation=identity.incarnation,
            fingerprint=self._fetcher.layout.fingerprint,
            exchange=ask.exchange,
            is_pair=is_pair,
            mass=ask.mass,
            clock=state.clock,
            loss=state.loss,
            round=state.round,
            piece=part.window[0] if part is not None else 0,
            pieces=part.window[1] if part is not None else 0,
        )

    def _settle(
        self, peer: str, exchange: bytes, client: Client, *, gives_up: bool = False, finished: bool = False
    ) -> Message:
        identity = self._fetcher.identity
        answer = client.request(
            peer,
            Settle(
                nonce=self._fetcher.next_nonce(),
                run=identity.run_id,
                node=identity.node,
                incarnation=identity.incarnation,
                exchange=exchange,
                gives_up=gives_up,
                finished=finished,
            ),
        )
        self._fetcher.note(peer, answer)
        return answer

    def _declined(self, answer: Message, peer: str, ask: Ask) -> Exchange:
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
