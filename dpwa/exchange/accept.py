"""The side of a push or a pair that a peer has begun.

Must not know: sockets, threads, what a mass means. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dpwa.errors import TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Fetched, Fetcher, state_of
from dpwa.exchange.lineage import Relation, Standing, reason_apart
from dpwa.exchange.messages import Offer, Past, Propose, Verdict
from dpwa.exchange.proposals import Notice, Proposals
from dpwa.exchange.result import Exchange, Outcome
from dpwa.exchange.results import Results
from dpwa.exchange.slices import Rotation
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import State

__all__ = ["Accepter"]

# A proposer that is silent for so many timeouts after its half was fetched is gone.
_PATIENCE = 2.0


@dataclass(frozen=True)
class _Prepared:
    notice: Notice
    ended: Exchange
    due_s: float


class Accepter:
    """Takes part for one node.

    Args:
        fetcher: fetches what was proposed.
        stagings: one for a pair; two for pushes, which are merged.
        rotation: knows the part that a pair is about.
        proposals: those under way.
        standing: what the own model is.
        results: where values go that are to be blended.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        stagings: tuple[Staging, ...],
        rotation: Rotation,
        proposals: Proposals,
        standing: Standing,
        results: Results,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._fetcher = fetcher
        self._stagings = stagings
        self._rotation = rotation
        self._proposals = proposals
        self._standing = standing
        self._results = results
        self._monotonic_s = monotonic_s
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

    def work(self, client: Client) -> None:
        """Fetch what has been accepted, and hand over pairs that have been settled.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        self._end_pair()
        while self._proposals.has_notice and not self._standing.is_changing:
            staging = next((staging for staging in self._stagings if staging.is_free), None)
            notice = self._proposals.next_notice() if staging is not None else None
            if staging is None or notice is None:
                return  # the trainer rings when it has made room
            start_s = self._monotonic_s()
            ended = self._fetch(notice, staging, client)
            if ended is not None:
                ended = replace(ended, duration_s=self._monotonic_s() - start_s)
            if notice.propose.is_pair:
                self._prepare(notice, ended, client)
            elif ended is not None:
                self._deliver(ended)

    def _fetch(self, notice: Notice, staging: Staging, client: Client) -> Exchange | None:
        """Fetch the values of a proposal and decide on it; None if they did not come, or are not taken."""
        propose = notice.propose
        part = self._rotation.window(propose.piece, propose.pieces)
        try:
            fetched = self._fetcher.fetch(
                propose.node, client, staging, notice.reference, part, exchange=propose.exchange
            )
        except TransportError:
            self._proposals.decide(propose, has_all=False)
            return None
        offer = fetched.answer
        if isinstance(offer, Past):
            self._proposals.deny(propose)
            return None
        # Another life of the peer has nothing to do with what this one proposed.
        if not isinstance(offer, Offer) or offer.incarnation != propose.incarnation:
            self._proposals.decide(propose, has_all=False)
            return None
        # The age is that of what has come, and not what anybody said in the proposal.
        peer_state = replace(state_of(offer), mass=propose.mass)
        own = notice.reference.state if notice.reference is not None else self._standing.own
        relation = self._standing.relation(peer_state, own)
        has_all = fetched.is_finite and relation.mixes
        verdict = self._proposals.decide(propose, has_all=has_all)
        if not has_all:
            self._report(notice, staging, relation, own, peer_state, is_finite=fetched.is_finite)
        if not has_all or verdict is Verdict.ABORTED:
            return None
        return _ended(notice, staging, fetched, part.share, peer_state, relation)

    def _report(
        self, notice: Notice, staging: Staging, relation: Relation, own: State, peer_state: State, *, is_finite: bool
    ) -> None:
        """Tell the trainer, and the journal, why what a peer proposed was not taken."""
        propose = notice.propose
        peer, kind = propose.node, _kind_of(propose)
        if not is_finite:
            outcome, reason = self._fetcher.not_finite(peer, staging, notice.reference)
            self._results.put(Exchange(outcome, None, kind, peer, propose.exchange, reason=reason))
            return
        reason = reason_apart(peer, relation, own, peer_state)
        elder = peer if relation is Relation.ELDER else None
        self._results.put(Exchange(Outcome.ABORTED, None, kind, peer, propose.exchange, reason=reason, elder=elder))

    # --- Push -----------------------------------------------------------------------------------------------------

    def _deliver(self, ended: Exchange) -> None:
        """Hand over what was pushed; merge it with what the trainer has not taken yet."""
        earlier = self._results.recall_push()
        if earlier is None or earlier.staging is None or ended.staging is None:
            if ended.staging is not None:
                ended.staging.is_free = False
            self._results.put(ended)
            return
        weight = earlier.weight + ended.weight
        share = ended.weight / weight if weight > 0 else 0.0
        earlier.staging.merge(ended.staging, share)
        state, other = earlier.peer_state, ended.peer_state
        if state is not None and other is not None:
            clock = state.clock + share * (other.clock - state.clock)
            lineage = min(state.lineage, other.lineage)
            state = State(other.loss, clock, weight, max(state.round, other.round), lineage)
        self._results.put(
            replace(
                ended,
                peer_state=state,
                weight=weight,
                relation=Relation.NEAR if Relation.NEAR in (earlier.relation, ended.relation) else ended.relation,
                merged=earlier.merged + ended.merged,
                staging=earlier.staging,
                received_bytes=earlier.received_bytes + ended.received_bytes,
                is_shared=earlier.is_shared and ended.is_shared,
            )
        )

    # --- Pair -----------------------------------------------------------------------------------------------------

    def _prepare(self, notice: Notice, ended: Exchange | None, client: Client) -> None:
        if ended is None:
            self._proposals.disengage(notice.propose.exchange)
            return
        self._prepared = _Prepared(notice, ended, self._monotonic_s() + _PATIENCE * client.patience_s)

    def _end_pair(self) -> None:
        """Hand over what has been settled; give up what never will be."""
        prepared = self._prepared
        if prepared is None:
            return
        propose = prepared.notice.propose
        verdict = self._proposals.verdict(propose)
        if verdict is Verdict.PENDING and self._monotonic_s() >= prepared.due_s:
            verdict = self._proposals.abort(propose)
        if verdict is Verdict.PENDING:
            return
        self._prepared = None
        if verdict is Verdict.TAKEN:
            self._results.put(prepared.ended)
        else:
            self._proposals.disengage(propose.exchange)


def _kind_of(propose: Propose) -> ExchangeKind:
    return ExchangeKind.PAIR if propose.is_pair else ExchangeKind.PUSH


def _ended(
    notice: Notice, staging: Staging, fetched: Fetched, share: float, peer_state: State, relation: Relation
) -> Exchange:
    propose: Propose = notice.propose
    return Exchange(
        Outcome.BLENDED,
        None,
        _kind_of(propose),
        propose.node,
        propose.exchange,
        reference=notice.reference,
        peer_state=peer_state,
        relation=relation,
        share=share,
        weight=propose.mass,
        merged=1,
        staging=staging,
        received_bytes=fetched.pulled.received_bytes,
        is_shared=fetched.pulled.is_shared,
        codec=fetched.codec,
        note=fetched.pulled.note,
    )
