"""Making exchanges: who is asked, by which kind of exchange, and what the answers mean for the peers' scores.

Must not know: sockets, threads, the trainer. Runs in: the Tx thread, or the trainer's own under the in-memory
transport; the same code in both, so that what a test shows of one holds for the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError, TransportError
from dpwa.exchange.accept import Accepter
from dpwa.exchange.client import Client
from dpwa.exchange.fetch import NOTHING_YET, Fetched, Fetcher, state_of
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.gather import Gatherer
from dpwa.exchange.lineage import JOIN_LEAD, Relation, Standing, reason_apart
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import Busy, NotModified, Offer, Refused
from dpwa.exchange.pair import Pairer
from dpwa.exchange.propose import Proposer
from dpwa.exchange.push import Pusher
from dpwa.exchange.result import Ask, Exchange, Outcome
from dpwa.exchange.results import Results
from dpwa.exchange.slices import Rotation, Slice
from dpwa.interpolation.interpolator import Interpolator
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import State

__all__ = ["Exchanger"]

_logger = logging.getLogger("dpwa")

# Peers that are asked for a pair, one after the other, while those asked before are taken.
_PAIR_TRIES = 3

_OUTCOME_OF_ERROR: dict[type[TransportError], Outcome] = {
    PeerTimeout: Outcome.TIMED_OUT,
    PeerUnreachable: Outcome.UNREACHABLE,
    ModelMismatch: Outcome.MISMATCH,
    RemoteProtocolError: Outcome.PROTOCOL_ERROR,
}


class Exchanger:
    """Makes exchanges for one node, one at a time, and takes part in those that peers begin.

    Args:
        fetcher: fetches snapshots.
        stagings: receive the peers' bytes and hold the values to blend; one, or two for kinds that merge.
        interpolator: computes the factor of a pull.
        standing: what the own model is.
        blends_when_joining: whether a joining node's pull blends, if the peer is not far ahead.
        flow_control: chooses the peer.
        membership: who is there.
        rotation: chooses the part to exchange.
        proposer: tells peers that this node has finished.
        pusher: makes pushes.
        pairer: makes pairs.
        accepter: takes part in those of peers.
        gatherer: fetches the snapshots of a round.
        results: where ended exchanges go.
        monotonic_s: the clock; a simulation passes its own.
        through: puts faults between this node and its transport, for experiments.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        stagings: tuple[Staging, ...],
        interpolator: Interpolator,
        standing: Standing,
        blends_when_joining: bool,
        flow_control: FlowControl,
        membership: Membership,
        rotation: Rotation,
        proposer: Proposer,
        pusher: Pusher,
        pairer: Pairer,
        accepter: Accepter,
        gatherer: Gatherer,
        results: Results,
        monotonic_s: Callable[[], float],
        through: Callable[[Client], Client] | None = None,
    ) -> None:
        self._through = through
        self._fetcher = fetcher
        self._stagings = stagings
        self._interpolator = interpolator
        self._standing = standing
        self._blends_when_joining = blends_when_joining
        self.flow_control = flow_control
        self._membership = membership
        self._rotation = rotation
        self._proposer = proposer
        self._pusher = pusher
        self._pairer = pairer
        self._accepter = accepter
        self._gatherer = gatherer
        self.results = results
        self._monotonic_s = monotonic_s
        self._warned: set[tuple[str, Outcome]] = set()

    def perform(self, ask: Ask, client: Client) -> None:
        """Make an exchange, or begin a push; its end goes to the results.

        Peer trouble is an outcome, never an exception.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._through is not None:
            client = self._through(client)
        for peer in self._membership.take_hints():
            self.flow_control.hinted(peer)
        if ask.kind is ExchangeKind.GATHER and not ask.joining:
            self.results.put(self._gatherer.gather(ask, client))
            return
        ended: Exchange | None = None
        refused: list[str] = []
        without = [self._pairer.creditor] if ask.kind is ExchangeKind.PAIR and self._pairer.creditor else []
        while ended is None or (ended.outcome is Outcome.BUSY and len(refused) < _PAIR_TRIES):
            start_s = self._monotonic_s()
            chosen = self.flow_control.choose(start_s, ask.peers, without=[*refused, *without])
            if chosen is None:
                ended = ended or Exchange(
                    Outcome.NO_PEER, ask, ask.kind, exchange=ask.exchange, reason="every peer failed lately"
                )
                break
            ended = self._with(chosen, ask, client)
            if ended is None:
                return  # a push that was accepted ends when it has been taken
            ended = replace(ended, duration_s=self._monotonic_s() - start_s)
            if ask.kind is not ExchangeKind.PAIR:
                break
            refused.append(chosen)
        self._proposer.end(ask, ended.outcome)
        self.results.put(ended)

    def work(self, client: Client) -> None:
        """Go on with what others have begun, and end what has become due.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._through is not None:
            client = self._through(client)
        for ended in (self._pusher.conclude(client), self._pairer.repay(client)):
            if ended is not None and ended.peer is not None:
                self._score(ended.peer, ended)
                self.results.put(ended)
        self._accepter.work(client)

    def close(self) -> None:
        """Let go of everything that holds a snapshot. The thread has ended."""
        self.results.close()
        self._pusher.close()
        self._pairer.close()
        self._accepter.close()

    def next_deadline_s(self) -> float | None:
        """When `work` has something to do at the latest."""
        deadlines = [self._pusher.deadline_s, self._pairer.deadline_s, self._accepter.deadline_s]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _with(self, peer: str, ask: Ask, client: Client) -> Exchange | None:
        """An exchange with one peer; None for a push that was accepted."""
        try:
            if ask.kind is None:
                exchange: Exchange | None = self._proposer.tell(peer, ask, client)
            elif ask.joining or ask.kind is ExchangeKind.PULL:
                exchange = self._pull(peer, ask, client)
            elif ask.kind is ExchangeKind.PUSH:
                exchange = self._pusher.push(peer, ask, client)
            else:
                exchange = self._pairer.pair(peer, ask, client, self._part(ask), self._stagings[0])
        except (PeerTimeout, PeerUnreachable, ModelMismatch, RemoteProtocolError) as error:
            outcome = _OUTCOME_OF_ERROR[type(error)]
            if outcome is Outcome.UNREACHABLE and self._membership.may_have_left(peer):
                outcome = Outcome.GONE
            received_bytes = error.received_bytes if isinstance(error, PeerTimeout) else 0
            exchange = Exchange(
                outcome, ask, ask.kind, peer, ask.exchange, reason=str(error), received_bytes=received_bytes
            )
        if exchange is not None:
            self._score(peer, exchange)
        return exchange

    def _score(self, peer: str, exchange: Exchange) -> None:
        outcome, now_s = exchange.outcome, self._monotonic_s()
        if outcome.is_failure:
            self.flow_control.failed(peer, now_s)
            self._warn_once(peer, exchange)
        elif outcome is Outcome.GONE:
            self.flow_control.failed(peer, now_s)  # it may come back, but is not worth asking often
        elif outcome in (Outcome.BLENDED, Outcome.PUSHED):
            self.flow_control.succeeded(peer)
        else:
            self.flow_control.answered(peer)

    def _warn_once(self, peer: str, exchange: Exchange) -> None:
        """Say it once per peer and kind: a cluster with a dead node must not fill its logs."""
        key = (peer, exchange.outcome)
        if key not in self._warned:
            self._warned.add(key)
            node = self._fetcher.identity.node
            _logger.warning("node %s: %s (further ones only in the journal)", node, exchange.reason)

    # --- Pulls ----------------------------------------------------------------------------------------------------

    def _part(self, ask: Ask) -> Slice:
        return self._rotation.whole() if ask.joining else self._rotation.next(ask.fraction)

    def _pull(self, peer: str, ask: Ask, client: Client) -> Exchange:
        fraction = self._fetcher.fitting_fraction(peer, ask.fraction)
        part = self._part(replace(ask, fraction=fraction) if fraction < ask.fraction and not ask.joining else ask)
        history = self._fetcher.history
        # Another part of a snapshot that was blended in part is worth having; the whole of it a second time is not.
        have = (history.have(peer) if part.is_whole else None) or NOTHING_YET
        staging = next(staging for staging in self._stagings if staging.is_free)
        fetched = self._fetcher.fetch(
            peer,
            client,
            staging,
            ask.reference,
            part,
            have=have,
            finished=ask.finished,
            shrinks=not ask.joining,
        )
        answer, pulled = fetched.answer, fetched.pulled
        if isinstance(answer, Offer):
            if history.is_older(peer, answer.version) or (part.is_whole and history.has_all(peer, answer.version)):
                raise RemoteProtocolError(peer, f"sent version {answer.version} of its snapshots after that or a newer")
            if history.has_all(peer, answer.version):
                exchange = Exchange(Outcome.NOT_MODIFIED, ask, peer=peer)
            else:
                history.take(peer, answer.version, part.share)
                exchange = self._examine(peer, ask, answer, fetched, staging)
            return replace(
                exchange,
                share=part.share,
                is_shortened=fraction < ask.fraction,
                received_bytes=pulled.received_bytes,
                is_shared=pulled.is_shared,
                codec=fetched.codec,
                note=pulled.note,
            )
        if isinstance(answer, NotModified):
            return Exchange(Outcome.NOT_MODIFIED, ask, peer=peer)
        if isinstance(answer, Refused):
            return Exchange(Outcome.REFUSED, ask, peer=peer, reason=f"peer {peer} refused: {answer.reason}")
        return Exchange(Outcome.BUSY if isinstance(answer, Busy) else Outcome.NOT_READY, ask, peer=peer)

    def _examine(self, peer: str, ask: Ask, offer: Offer, fetched: Fetched, staging: Staging) -> Exchange:
        if not fetched.is_finite:
            outcome, reason = self._fetcher.not_finite(peer, staging, ask.reference)
            return Exchange(outcome, ask, peer=peer, version=offer.version, reason=reason)
        own, peer_state = ask.reference.state, state_of(offer)
        relation = self._standing.relation(peer_state, own)
        factor = self._weigh(own, peer_state, relation, staging.distance)
        # A node that goes on from a checkpoint is of its peers' lineage and may be far behind all the same.
        is_far_ahead = relation is Relation.ELDER or (ask.joining and peer_state.clock >= own.clock + JOIN_LEAD)
        takes_over = is_far_ahead and factor > 0.0 and fetched.part.is_whole
        is_to_be_pulled = relation is Relation.ELDER and factor > 0.0 and not takes_over
        if takes_over:
            factor = 1.0
        elif relation is Relation.ELDER or (ask.joining and not self._blends_when_joining):
            factor = 0.0
        is_apart = not relation.mixes and factor == 0.0
        staging.is_free = False
        self._standing.is_changing = takes_over
        return Exchange(
            Outcome.BLENDED,
            ask,
            peer=peer,
            version=offer.version,
            reference=ask.reference,
            peer_state=peer_state,
            factor=factor,
            distance=staging.distance,
            takes_over=takes_over,
            relation=relation,
            elder=peer if is_to_be_pulled else None,
            staging=staging,
            reason=reason_apart(peer, relation, own, peer_state) if is_apart else "",
        )

    def _weigh(self, own: State, peer: State, relation: Relation, distance: float | None) -> float:
        """The share of the peer that the rule gives."""
        # An own model that has diverged is lost: whatever is finite is better, as young as it may be.
        if relation is Relation.YOUNGER and not own.has_diverged:
            return 0.0
        return self._interpolator.factor(own, peer, distance)
