"""Fetching the snapshots of one round from all in-neighbours, until a deadline.

Must not know: sockets, threads, the trainer. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Fetched, Fetcher, state_of
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.lineage import Relation, Standing
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import Busy, NotReady, Offer, Past
from dpwa.exchange.result import Ask, Exchange, Outcome
from dpwa.exchange.slices import Rotation
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import State

__all__ = ["Gatherer"]

# Between two questions to a neighbour that is still on its way to the round. It answers late by itself, so this counts
# only where it does not.
_PAUSE_S = 0.005

# With a transport that answers at once, nothing changes while one waits; a message that was lost may come through.
_TRIES_AT_ONCE = 10

# A message that was lost must not cost the whole round.
_TRIES_IN_TIME = 4

# Rounds one after the other in which a neighbour has trained past the one wanted, before this node takes itself for the
# one that is behind. Nodes that begin together are a round or two apart at first.
_ROUNDS_AHEAD = 3


@dataclass
class _Sum:
    """What has come so far."""

    weight: float = 0.0
    merged: int = 0
    received_bytes: int = 0
    is_shared: bool = True
    peer: str | None = None
    peer_state: State | None = None
    relation: Relation = Relation.SAME
    elder: str | None = None
    """A neighbour whose model is to replace the own one."""
    ahead: str | None = None
    """A neighbour that has been rounds ahead for a while."""
    stranger_ahead: str | None = None
    """One of these whose snapshots this node has never seen: it may be of another lineage."""
    problem: tuple[Outcome, str] | None = None
    """Whose values were not finite."""


class Gatherer:
    """Gathers for one node.

    Args:
        fetcher: fetches snapshots.
        stagings: the sum, and what is being fetched. Empty for methods that do not gather.
        rotation: knows the whole snapshot.
        flow_control: told how the neighbours answer.
        membership: who has finished.
        standing: what the own model is.
        rng: the order in which neighbours are asked, so that not all ask the same one first.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        stagings: tuple[Staging, ...],
        rotation: Rotation,
        flow_control: FlowControl,
        membership: Membership,
        standing: Standing,
        rng: random.Random,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._fetcher = fetcher
        self._stagings = stagings
        self._rotation = rotation
        self._flow_control = flow_control
        self._membership = membership
        self._standing = standing
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._rounds_ahead: Counter[str] = Counter()  # one after the other, of each neighbour
        self._spent: set[str] = set()  # have finished, and nothing newer than what they were asked for last

    def gather(self, ask: Ask, client: Client) -> Exchange:
        """Fetch and merge what comes in time.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        start_s = self._monotonic_s()
        weights: Mapping[str, float] = ask.peers or {}
        missing = [peer for peer in weights if self._may_have_more(peer) and self._flow_control.may_ask(peer, start_s)]
        self._rng.shuffle(missing)
        total, tries = _Sum(), 0
        while missing:
            left_s = start_s + ask.wait_s - self._monotonic_s()
            missing = [
                peer for peer in missing if self._is_worth_asking_again(peer, weights, ask, client, total, left_s)
            ]
            tries += 1
            if missing and (left_s <= 0 or (client.patience_s == 0 and tries >= _TRIES_AT_ONCE)):
                break
            if missing:
                client.pause(_PAUSE_S)
        for peer in missing:
            self._flow_control.failed(peer, self._monotonic_s())
        outcome, reason = total.problem or (Outcome.NOT_READY, "")
        if outcome is not Outcome.OWN_NOT_FINITE:
            outcome = Outcome.BLENDED if total.merged else Outcome.NOT_READY
        return Exchange(
            outcome,
            ask,
            ExchangeKind.GATHER,
            peer=total.peer,
            reference=ask.reference,
            peer_state=total.peer_state,
            share=1.0,
            weight=total.weight,
            merged=total.merged,
            missed=len(weights) - total.merged,
            relation=total.relation,
            # Whoever gets nothing of a round that others have long left is out of step with all of them.
            elder=total.elder or total.stranger_ahead or (None if total.merged else total.ahead),
            staging=self._stagings[0] if total.merged else None,
            received_bytes=total.received_bytes,
            is_shared=total.is_shared and total.merged > 0,
            duration_s=self._monotonic_s() - start_s,
            reason=reason,
        )

    def _may_have_more(self, peer: str) -> bool:
        """Whether the neighbour trains, or has ended in a round that this node may still come to."""
        if not self._membership[peer].finished:
            self._spent.discard(peer)  # also one that has been started anew
        return peer not in self._spent

    def _is_worth_asking_again(
        self, peer: str, weights: Mapping[str, float], ask: Ask, client: Client, total: _Sum, left_s: float
    ) -> bool:
        """Ask one neighbour; False once it has answered, or will not."""
        staging = self._stagings[1 if total.merged else 0]
        try:
            fetched = self._fetcher.fetch(
                peer,
                client,
                staging,
                ask.reference,
                self._rotation.whole(),
                round_=ask.reference.state.round,
                finished=ask.finished,
                within_s=max(0.001, min(left_s, ask.wait_s / _TRIES_IN_TIME)),
            )
        except PeerTimeout:
            return True
        except (PeerUnreachable, ModelMismatch, RemoteProtocolError):
            self._flow_control.failed(peer, self._monotonic_s())
            self._ended_if_finished(peer)
            return False
        answer = fetched.answer
        if isinstance(answer, Offer):
            self._rounds_ahead[peer] = 0
            self._flow_control.succeeded(peer)
            if fetched.is_finite:
                self._take(peer, weights[peer], answer, fetched, ask, total)
            else:
                total.problem = self._fetcher.not_finite(peer, staging, ask.reference)
            return False
        self._flow_control.answered(peer)
        if isinstance(answer, NotReady | Busy):
            return True
        if isinstance(answer, Past) and not answer.finished:
            self._rounds_ahead[peer] += 1
            if self._rounds_ahead[peer] >= _ROUNDS_AHEAD:
                total.ahead = peer
                if not self._fetcher.history.knows(peer, answer.incarnation):
                    total.stranger_ahead = peer
        self._ended_if_finished(peer)
        return False

    def _ended_if_finished(self, peer: str) -> None:
        if self._membership[peer].finished:
            self._spent.add(peer)

    def _take(self, peer: str, weight: float, offer: Offer, fetched: Fetched, ask: Ask, total: _Sum) -> None:
        """Add what came, unless its age forbids that."""
        relation = self._standing.relation(state_of(offer), ask.reference.state)
        if relation is Relation.ELDER:
            total.elder = peer
        if not relation.mixes:
            return
        if relation is Relation.NEAR:
            total.relation = relation
        self._add(peer, weight, offer, fetched.pulled.received_bytes, total)
        total.is_shared = total.is_shared and fetched.pulled.is_shared

    def _add(self, peer: str, weight: float, offer: Offer, received_bytes: int, total: _Sum) -> None:
        total.weight += weight
        if total.merged:
            self._stagings[0].merge(self._stagings[1], weight / total.weight)
        total.merged += 1
        total.received_bytes += received_bytes
        total.peer = peer
        before = total.peer_state or state_of(offer)
        clock = before.clock + weight / total.weight * (offer.clock - before.clock)
        lineage = min(before.lineage, offer.lineage)
        total.peer_state = State(offer.loss, clock, offer.mass, offer.round, lineage)
