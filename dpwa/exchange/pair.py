"""The side of a pair that begins it.

A pair ends with the peer's word that it has taken its half; until that word this node does not move. If the peer
vanishes just then, this node keeps its own half aside and asks again later: the mean of the models is made good when
the peer is back.

Must not know: sockets, threads, which peer to ask. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpwa.errors import PeerUnreachable, TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Fetched, Fetcher, state_of
from dpwa.exchange.lineage import Relation, Standing, reason_apart
from dpwa.exchange.messages import Accepted, Offer, Settled, Verdict
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.propose import Proposer
from dpwa.exchange.result import Ask, Exchange, Outcome
from dpwa.exchange.slices import Slice
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.staging import Staging

__all__ = ["Pairer"]

# Questions to a peer what became of a pair, before this node goes on without its word. Each takes up to the config's
# timeout.
_SETTLE_TRIES = 10

# The pause before such a question is asked again of a peer that cannot be reached; doubles.
_FIRST_PAUSE_S = 0.05

# Between two later questions about a half that is owed.
_LONGEST_PAUSE_S = 30.0


# A half is kept for so long: it is as large as the model. The exchange was counted as lost when the peer vanished.
_KEPT_S = 3600.0


@dataclass
class _Owed:
    ended: Exchange
    incarnation: bytes
    due_s: float
    kept_until_s: float
    pause_s: float = 0.0
    is_questioned: bool = False


class Pairer:
    """Proposes pairs for one node, one at a time.

    Args:
        proposer: speaks to the peers.
        fetcher: fetches the other half.
        proposals: those under way.
        standing: what the own model is.
        repays: whether a half may be applied much later than it was made.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        *,
        proposer: Proposer,
        fetcher: Fetcher,
        proposals: Proposals,
        standing: Standing,
        repays: bool,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._repays = repays
        self._proposer = proposer
        self._fetcher = fetcher
        self._proposals = proposals
        self._standing = standing
        self._monotonic_s = monotonic_s
        self._owed: _Owed | None = None

    def close(self) -> None:
        """Let go of a half that is owed. The thread has ended."""
        self._owed = None

    def pair(self, peer: str, ask: Ask, client: Client, part: Slice, staging: Staging) -> Exchange:
        """Propose a pair and see it through: fetch the peer's half, and wait for its word.

        Raises:
            TransportError: it came to nothing.
        """
        if not self._proposals.address(ask.exchange, peer, is_pair=True):
            return Exchange(Outcome.BUSY, ask, ExchangeKind.PAIR, peer, ask.exchange)
        answer = self._proposer.propose(peer, ask, client, part)
        if not isinstance(answer, Accepted):
            return self._proposer.declined(answer, peer, ask)
        if not self._proposals.bind():
            self._give_up(peer, ask, client)
            return Exchange(Outcome.ABORTED, ask, ExchangeKind.PAIR, peer, ask.exchange)
        try:
            fetched = self._fetcher.fetch(
                peer, client, staging, ask.reference, part, exchange=ask.exchange, finished=ask.finished
            )
        except TransportError:
            self._give_up(peer, ask, client)
            raise
        offer = fetched.answer
        if not isinstance(offer, Offer):
            self._give_up(peer, ask, client)
            return Exchange(Outcome.ABORTED, ask, ExchangeKind.PAIR, peer, ask.exchange)
        relation = self._standing.relation(state_of(offer), ask.reference.state)
        if not fetched.is_finite or not relation.mixes:
            self._give_up(peer, ask, client)
            return self._not_mixed(peer, ask, offer, fetched, relation, staging)
        ended = Exchange(
            Outcome.BLENDED,
            ask,
            ExchangeKind.PAIR,
            peer,
            ask.exchange,
            version=offer.version,
            reference=ask.reference,
            peer_state=state_of(offer),
            share=part.share,
            merged=1,
            relation=relation,
            staging=staging,
            received_bytes=fetched.pulled.received_bytes,
            is_shared=fetched.pulled.is_shared,
            codec=fetched.codec,
            note=fetched.pulled.note,
        )
        outcome = self._word_of(peer, answer.incarnation, ask, client)
        if outcome is Outcome.LOST:
            reason = f"peer {peer} vanished before it said whether it has moved"
            if self._owed is None and self._repays:
                self._owed = _owed(ended, answer.incarnation, self._monotonic_s(), client.patience_s)
            return replace(ended, outcome=outcome, peer_state=None, staging=None, reason=reason)
        return ended if outcome is Outcome.BLENDED else replace(ended, outcome=outcome, peer_state=None, staging=None)

    def _not_mixed(
        self, peer: str, ask: Ask, offer: Offer, fetched: Fetched, relation: Relation, staging: Staging
    ) -> Exchange:
        """The end of a pair whose other half has come and cannot be used."""
        if not fetched.is_finite:
            outcome, reason = self._fetcher.not_finite(peer, staging, ask.reference)
            return Exchange(outcome, ask, ExchangeKind.PAIR, peer, ask.exchange, offer.version, reason=reason)
        reason = reason_apart(peer, relation, ask.reference.state, state_of(offer))
        elder = peer if relation is Relation.ELDER else None
        return Exchange(Outcome.ABORTED, ask, ExchangeKind.PAIR, peer, ask.exchange, reason=reason, elder=elder)

    # --- A half that is owed --------------------------------------------------------------------------------------

    @property
    def deadline_s(self) -> float | None:
        """When the peer of a half that is owed is asked again."""
        return self._owed.due_s if self._owed is not None else None

    @property
    def creditor(self) -> str | None:
        """The peer that a half is owed to. A newer proposal would make it forget the old one."""
        return self._owed.ended.peer if self._owed is not None else None

    def repay(self, client: Client) -> Exchange | None:
        """Ask a peer that had vanished whether it has moved; if so, this node's half, late but not lost.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        owed = self._owed
        if owed is None or owed.is_questioned or self._monotonic_s() < owed.due_s:
            return None
        if self._monotonic_s() >= owed.kept_until_s:
            self._owed = None
            return None
        owed.pause_s = min(2 * max(owed.pause_s, client.patience_s), _LONGEST_PAUSE_S) if client.patience_s > 0 else 0.0
        owed.due_s = self._monotonic_s() + owed.pause_s
        owed.is_questioned = True
        try:
            answer = self._proposer.settle(owed.ended.peer or "", owed.ended.exchange, client)
        except TransportError:
            return None
        finally:
            owed.is_questioned = False
        if not isinstance(answer, Settled) or answer.verdict == Verdict.PENDING:
            return None
        self._owed = None
        has_moved = answer.verdict == Verdict.TAKEN and answer.incarnation == owed.incarnation
        return owed.ended if has_moved else None

    def _word_of(self, peer: str, incarnation: bytes, ask: Ask, client: Client) -> Outcome:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_SETTLE_TRIES):
            try:
                answer = self._proposer.settle(peer, ask.exchange, client)
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
            self._proposer.settle(peer, ask.exchange, client, gives_up=True)


def _owed(ended: Exchange, incarnation: bytes, now_s: float, patience_s: float) -> _Owed:
    """A half set aside: with values of its own, because the staging is needed for others, and no snapshot's buffer."""
    staging = ended.staging.copy() if ended.staging is not None else None
    reference = replace(ended.reference, memory=memoryview(b"")) if ended.reference is not None else None
    kept = replace(ended, ask=None, reference=reference, staging=staging, note="its peer had vanished and is back")
    return _Owed(kept, incarnation, due_s=now_s + patience_s, kept_until_s=now_s + _KEPT_S)
