"""The side of a push or a pair that a peer has begun.

It does not know what a mass means. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpwa.errors import TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.fetch import kept_apart
from dpwa.exchange.messages import Verdict
from dpwa.exchange.proposals import Notice
from dpwa.exchange.rest import keep_rest
from dpwa.exchange.results import merged
from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome
from dpwa.snapshot.staging import Staging

__all__ = ["Accepter"]

# A proposer that is silent for so many timeouts after its half was fetched is gone.
_PATIENCE = 2.0


@dataclass(frozen=True)
class _Prepared:
    notice: Notice
    result: ExchangeResult
    due_s: float


class Accepter:
    """Takes part for one node."""

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._proposals = context.proposals
        self._prepared: _Prepared | None = None

    @property
    def deadline_s(self) -> float | None:
        """When the proposer of a prepared pair has been silent for too long, or a proposal may be fetched at last."""
        due_s = [self._prepared.due_s] if self._prepared is not None else []
        later_s = self._proposals.deadline_s
        return min([*due_s, later_s] if later_s is not None else due_s, default=None)

    def close(self) -> None:
        """Let go of a pair under way, which holds a snapshot. The thread has ended."""
        self._prepared = None

    def take_one(self, client: Client) -> bool:
        """Fetch one proposal that has been accepted.

        Returns:
            Whether there was one.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if not self._proposals.has_notice or self._context.standing.is_changing:
            return False
        staging = next((staging for staging in self._context.stagings if staging.is_free), None)
        notice = self._proposals.next_notice() if staging is not None else None
        if staging is None or notice is None:
            return False  # the trainer rings when it has made room
        try:
            self._take(notice, staging, client)
        finally:
            self._proposals.handed_over()
        return True

    def _take(self, notice: Notice, staging: Staging, client: Client) -> None:
        start_s = self._context.monotonic_s()
        result = self._fetch(notice, staging, client)
        if result is not None:
            result = replace(result, duration_s=self._context.monotonic_s() - start_s)
        if notice.propose.is_pair:
            self._prepare(notice, result, client)
        elif result is not None:
            self._deliver(result)

    def _fetch(self, notice: Notice, staging: Staging, client: Client) -> ExchangeResult | None:
        """Fetch the values of a proposal and decide on it; None if they did not come, or are not taken."""
        context, propose, peer = self._context, notice.propose, notice.propose.node
        kind = ExchangeKind.PAIR if propose.is_pair else ExchangeKind.PUSH
        begun = ExchangeResult(Outcome.ABORTED, kind, None, peer, propose.exchange_id, reference=notice.reference)
        if propose.mass > context.most_mass:
            self._proposals.decide(propose, has_all=False)
            reason = f"peer {peer} pushes a mass of {propose.mass:g}; all that there is is {context.most_mass:g}"
            context.results.put(self._refused(peer, replace(begun, outcome=Outcome.REJECTED, reason=reason)))
            return None
        part = context.rotation.window(propose.piece, propose.pieces)
        try:
            result = context.fetcher.fetch(peer, begun, client, staging, part, shrinks=propose.is_pair)
        except TransportError:
            self._proposals.decide(propose, has_all=False)
            return None
        if result.outcome is Outcome.ABORTED:
            self._proposals.deny(propose)
            return None
        # Another life of the peer has nothing to do with what this one proposed.
        if not result.outcome.has_snapshot or context.membership[peer].incarnation != propose.incarnation:
            self._proposals.decide(propose, has_all=False)
            return None
        has_all = result.outcome is Outcome.BLENDED and result.relation.mixes
        verdict = self._proposals.decide(propose, has_all=has_all)
        if not has_all:
            own = context.standing.own if notice.reference is None else notice.reference.state
            # The trainer, and the journal, are to know why it was not taken.
            end = result if result.staging is None else kept_apart(peer, result, own)
            context.results.put(self._refused(peer, end) if end.outcome is Outcome.REJECTED else end)
            return None
        if verdict is Verdict.ABORTED:
            return None
        # The age is that of what has come, whatever the proposal said.
        peer_state = replace(result.peer_state, mass=propose.mass)
        return replace(result, peer_state=peer_state, weight=propose.mass)

    def _refused(self, peer: str, result: ExchangeResult) -> ExchangeResult:
        """Count a model that was refused."""
        rejections = self._context.flow_control.rejected(peer, self._context.monotonic_s())
        if rejections is not None:
            self._context.guard.quarantined(peer, rejections, result.reason)
        return result

    # --- Push -----------------------------------------------------------------------------------------------------

    def _deliver(self, result: ExchangeResult) -> None:
        """Hand over what was pushed; merge it with what the trainer has not taken yet."""
        earlier = self._context.results.recall_push()
        if earlier is not None:
            result = merged(earlier, result)
        elif result.staging is not None:
            result.staging.is_free = False
        self._context.results.put(result)

    # --- Pair -----------------------------------------------------------------------------------------------------

    def _prepare(self, notice: Notice, result: ExchangeResult | None, client: Client) -> None:
        if result is None:
            self._proposals.disengage(notice.propose.exchange_id)
            return
        self._prepared = _Prepared(notice, result, self._context.monotonic_s() + _PATIENCE * client.patience_s)

    def end_pair(self) -> None:
        """Hand over a pair that has been settled; give up one that never will be."""
        prepared = self._prepared
        if prepared is None:
            return
        propose = prepared.notice.propose
        verdict = self._proposals.verdict(propose)
        if verdict is Verdict.PENDING and self._context.monotonic_s() >= prepared.due_s:
            verdict = self._proposals.abort(propose)
        if verdict is Verdict.PENDING:
            return
        self._prepared = None
        if verdict is Verdict.TAKEN:
            part = self._context.rotation.window(propose.piece, propose.pieces)
            keep_rest(self._context, prepared.result, prepared.notice.reference, part)
            self._context.results.put(prepared.result)
        else:
            self._proposals.disengage(propose.exchange_id)
