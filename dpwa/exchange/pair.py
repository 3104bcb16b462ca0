"""The side of a pair that begins it.

A pair ends with the peer's word that it has taken its half; until that word this node does not move. If the peer
vanishes just then, this node keeps its own half aside and asks again later: the mean of the models is made good when
the peer is back.

It does not choose the peer. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from dpwa.errors import PeerUnreachable, RemoteProtocolError, TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.fetch import kept_apart
from dpwa.exchange.messages import Accepted, Settled, Verdict
from dpwa.exchange.rest import keep_rest
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult, Outcome

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
    result: ExchangeResult
    incarnation: bytes
    due_s: float
    kept_until_s: float
    pause_s: float = 0.0
    is_questioned: bool = False


class Pairer:
    """Proposes pairs for one node, one at a time.

    Args:
        context: of the node's exchanges.
        repays: whether a half may be applied much later than it was made.
    """

    def __init__(self, context: ExchangeContext, *, repays: bool) -> None:
        self._context = context
        self._repays = repays
        self._owed: _Owed | None = None

    def close(self) -> None:
        """Let go of a half that is owed. The thread has ended."""
        self._owed = None

    def pair(self, peer: str, request: ExchangeRequest, client: Client) -> ExchangeResult:
        """Propose a pair and see it through: fetch the peer's half, and wait for its word.

        Raises:
            TransportError: it came to nothing.
        """
        context = self._context
        fraction = context.fetcher.fitting_fraction(peer, request.plan.fraction)
        part, staging = context.rotation.next(fraction), context.stagings[0]
        if not context.proposals.address(request.exchange_id, peer, is_pair=True):
            return request.ended(Outcome.BUSY)  # this node is: the peer was not asked
        answer = context.proposer.propose(peer, request, client, part)
        if not isinstance(answer, Accepted):
            return context.proposer.declined(answer, peer, request)
        try:
            part = context.rotation.narrowed(part, answer.pieces)
        except ValueError as error:
            raise RemoteProtocolError(peer, f"accepts more than was proposed: {error}") from error
        aborted = request.ended(Outcome.ABORTED, peer)
        if not context.proposals.bind():
            self._give_up(peer, request, client)
            return aborted
        try:
            result = context.fetcher.fetch(peer, aborted, client, staging, part, shrinks=True)
        except TransportError:
            self._give_up(peer, request, client)
            raise
        if result.outcome is not Outcome.BLENDED or not result.relation.mixes:
            self._give_up(peer, request, client)
            if not result.outcome.has_snapshot:
                return aborted
            return kept_apart(peer, result, request.reference.state) if result.staging is not None else result
        outcome = self._word_of(peer, answer.incarnation, request, client)
        keep_rest(context, result, request.reference, part)
        if outcome is Outcome.BLENDED:
            return result
        if outcome is Outcome.LOST and self._owed is None and self._repays:
            self._owed = _owed(result, answer.incarnation, context.monotonic_s(), client.patience_s)
        reason = f"peer {peer} vanished before it said whether it has moved" if outcome is Outcome.LOST else ""
        return replace(result, outcome=outcome, staging=None, reason=reason)

    # --- A half that is owed --------------------------------------------------------------------------------------

    @property
    def deadline_s(self) -> float | None:
        """When the peer of a half that is owed is asked again."""
        return self._owed.due_s if self._owed is not None else None

    @property
    def creditor(self) -> str | None:
        """The peer that a half is owed to. A newer proposal would make it forget the old one."""
        return self._owed.result.peer if self._owed is not None else None

    def repay(self, client: Client) -> ExchangeResult | None:
        """Ask a peer that had vanished whether it has moved; if so, this node's half, late but not lost.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        owed = self._owed
        if owed is None or owed.is_questioned or self._context.monotonic_s() < owed.due_s:
            return None
        if self._context.monotonic_s() >= owed.kept_until_s:
            self._owed = None
            return None
        owed.pause_s = min(2 * max(owed.pause_s, client.patience_s), _LONGEST_PAUSE_S) if client.patience_s > 0 else 0.0
        owed.due_s = self._context.monotonic_s() + owed.pause_s
        owed.is_questioned = True
        try:
            answer = self._context.proposer.settle(owed.result.peer or "", owed.result.exchange_id, client)
        except TransportError:
            return None
        finally:
            owed.is_questioned = False
        if not isinstance(answer, Settled) or answer.verdict == Verdict.PENDING:
            return None
        self._owed = None
        has_moved = answer.verdict == Verdict.TAKEN and answer.incarnation == owed.incarnation
        return owed.result if has_moved else None

    def _word_of(self, peer: str, incarnation: bytes, request: ExchangeRequest, client: Client) -> Outcome:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_SETTLE_TRIES):
            try:
                answer = self._context.proposer.settle(peer, request.exchange_id, client)
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

    def _give_up(self, peer: str, request: ExchangeRequest, client: Client) -> None:
        """Tell the peer, so that it is free again; it would find out by itself."""
        with contextlib.suppress(TransportError):
            self._context.proposer.settle(peer, request.exchange_id, client, gives_up=True)


def _owed(result: ExchangeResult, incarnation: bytes, now_s: float, patience_s: float) -> _Owed:
    """A half set aside: with values of its own, because the staging is needed for others, and no snapshot's buffer."""
    staging = result.staging.copy() if result.staging is not None else None
    reference = replace(result.reference, memory=memoryview(b"")) if result.reference is not None else None
    kept = replace(result, request=None, reference=reference, staging=staging, note="its peer had vanished and is back")
    return _Owed(kept, incarnation, due_s=now_s + patience_s, kept_until_s=now_s + _KEPT_S)
