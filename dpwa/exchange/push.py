"""The side of a push that begins it.

A push ends with the peer's word that it has taken the values or not, or when this node has taken the proposal back.

It neither chooses the peer nor knows what a mass means. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpwa.errors import TransportError
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.messages import Accepted, Settled, Verdict
from dpwa.exchange.rest import rest_of_push
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult, Outcome
from dpwa.snapshot.lineage import Relation, reason_apart
from dpwa.snapshot.state import Codec, State

__all__ = ["Pusher"]

# Questions to a peer what became of a push, before it counts as lost. Each takes up to the config's timeout.
_SETTLE_TRIES = 10


@dataclass
class _Pushed:
    request: ExchangeRequest
    peer: str
    incarnation: bytes
    began_s: float
    due_s: float
    tries: int = 0
    is_taken: bool = False
    is_questioned: bool = False
    relation: Relation = Relation.SAME
    why_apart: str = ""


class Pusher:
    """Pushes for one node, one at a time."""

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._pushed: _Pushed | None = None

    @property
    def deadline_s(self) -> float | None:
        """When the push under way becomes due for a question."""
        pushed = self._pushed  # of one that was taken, the trainer rings when there is room for what is left of it
        return None if pushed is None or pushed.is_taken else pushed.due_s

    @property
    def is_fetched(self) -> bool:
        """Whether the peer of the push under way has all of it, and is to be asked what became of it."""
        pushed = self._pushed
        is_open = pushed is not None and not pushed.is_taken and pushed.tries == 0
        return is_open and pushed is not None and self._context.proposals.is_fetched(pushed.request.exchange_id)

    def close(self) -> None:
        """Let go of a push under way, which holds a snapshot. The thread has ended."""
        self._pushed = None

    def push(self, peer: str, request: ExchangeRequest, client: Client) -> ExchangeResult | None:
        """Propose a push; None if the peer has accepted it, or may have.

        Raises:
            TransportError: the peer has not accepted it, and will not.
        """
        proposals, proposer = self._context.proposals, self._context.proposer
        proposals.address(request.exchange_id, peer, is_pair=False)
        now_s = self._context.monotonic_s()
        pushed = _Pushed(request, peer, self._incarnation_of(peer), now_s, now_s + client.patience_s)
        try:
            answer = proposer.propose(peer, request, client, None)
        except TransportError:
            # The peer may have heard and only its answer be lost. As long as it has not begun to fetch, that is over.
            if proposals.withdraw(request.exchange_id):
                raise
            self._pushed = pushed
            return None
        if isinstance(answer, Accepted):
            pushed.incarnation = answer.incarnation
            self._compare(pushed, answer)
            if not pushed.relation.mixes and proposals.withdraw(request.exchange_id):
                return self._end(pushed, Outcome.RETURNED, pushed.why_apart)
        elif proposals.withdraw(request.exchange_id):
            return proposer.declined(answer, peer, request)
        # What was declined and is being fetched all the same was delivered twice, and accepted the second time.
        self._pushed = pushed
        return None

    def conclude(self, client: Client) -> ExchangeResult | None:
        """The end of a push, if it is known by now.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        pushed = self._pushed
        # A peer that is asked may do its own work first, and ask this node in turn: then its question ends nothing.
        if pushed is None or pushed.is_questioned:
            return None
        if pushed.is_taken:
            return self._taken(pushed)
        exchange_id = pushed.request.exchange_id
        # A peer that has fetched all of it decides this moment, and only its word counts: it may find values that are
        # not finite, and as long as it has not decided it must not get a newer proposal.
        if not self.is_fetched and self._context.monotonic_s() < pushed.due_s:
            return None
        if self._context.proposals.withdraw(exchange_id):
            return self._end(pushed, Outcome.RETURNED, "it was not fetched in time")
        return self._question(pushed, client)

    def _question(self, pushed: _Pushed, client: Client) -> ExchangeResult | None:
        """Ask the peer of a push that it has begun to fetch; None while that is not known."""
        pushed.tries += 1
        pushed.due_s = self._context.monotonic_s() + client.patience_s
        exchange_id = pushed.request.exchange_id
        pushed.is_questioned = True
        try:
            answer = self._context.proposer.settle(pushed.peer, exchange_id, client)
        except TransportError as error:
            if pushed.tries < _SETTLE_TRIES:
                return None
            return self._end(pushed, Outcome.LOST, str(error))
        finally:
            pushed.is_questioned = False
        if isinstance(answer, Settled):
            if answer.verdict == Verdict.TAKEN:
                pushed.is_taken = True
                return self._taken(pushed)
            # Of a peer that was never heard before, whose answer was lost, only the life that answers now is known.
            if pushed.incarnation and answer.incarnation != pushed.incarnation:
                return self._end(pushed, Outcome.LOST, f"peer {pushed.peer} was restarted while it fetched")
            if answer.verdict == Verdict.ABORTED:
                reason = pushed.why_apart or f"peer {pushed.peer} could not fetch it"
                return self._end(pushed, Outcome.RETURNED, reason)
        return None

    def _taken(self, pushed: _Pushed) -> ExchangeResult | None:
        """The end of a push that was taken, with what rounding has left of it; None while there is no room for that."""
        staging = next((staging for staging in self._context.stagings if staging.is_free), None)
        if staging is None:
            return None
        codec = rest_of_push(self._context, pushed.request.exchange_id, pushed.request.reference, staging)
        staging.is_free = codec is Codec.RAW
        return replace(self._end(pushed, Outcome.PUSHED), codec=codec, staging=None if staging.is_free else staging)

    def _compare(self, pushed: _Pushed, answer: Accepted) -> None:
        """Note whether the peer can take what is pushed. It comes to the same result, and takes nothing if not."""
        own, peer = pushed.request.reference.state, State(None, answer.clock, lineage=answer.lineage)
        pushed.relation = self._context.standing.relation(peer, own)
        if not pushed.relation.mixes:
            pushed.why_apart = reason_apart(pushed.peer, pushed.relation, own, peer)

    def _end(self, pushed: _Pushed, outcome: Outcome, reason: str = "") -> ExchangeResult:
        self._pushed = None
        self._context.proposer.end(pushed.request, outcome)
        return replace(
            pushed.request.ended(outcome, pushed.peer, reason),
            weight=pushed.request.plan.mass,
            duration_s=self._context.monotonic_s() - pushed.began_s,
            elder=pushed.peer if pushed.relation is Relation.ELDER and outcome is Outcome.RETURNED else None,
        )

    def _incarnation_of(self, peer: str) -> bytes:
        return self._context.membership[peer].incarnation or b""
