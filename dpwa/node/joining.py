"""The phase in which a node joins, and the lineage that it is of.

A node joins with the first exchange that brings the snapshot of a healthy peer. Until then it trains, pulls whole
models, and takes part in nothing else, also while nobody can be reached: the peer that comes back may be the one that
has trained for hours. A node that finds out later that a peer's model is to replace its own joins once more.

Must not know: how an exchange is made. Runs in: the trainer's thread.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from dpwa.exchange.service import Service
from dpwa.methods.base import Method
from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome, Plan
from dpwa.snapshot.lineage import Relation, Standing

__all__ = ["Joining"]

_NEVER = sys.maxsize


class Joining:
    """Joins for one node.

    Args:
        standing: what this node's model is.
        service: answers peers by whether the node takes part.
        method: hears when the node has joined.
        has_peers: whether there is anybody to join.
    """

    def __init__(self, standing: Standing, service: Service, method: Method, *, has_peers: bool) -> None:
        self.is_on = has_peers
        self.has_met_untrained = False
        """Whether a peer that has not begun to train either has given its model meanwhile."""
        self._standing = standing
        self._service = service
        self._method = method
        self._elder: str | None = None
        self._replaced_version = 0

    def resume_together(self) -> None:
        """Be a member from the start, because all nodes go on from checkpoints.

        Not with a method of rounds: checkpoints are of different moments, and a joining node finds its peers' round.
        """
        if self.is_on and self._method.kind is not ExchangeKind.GATHER:
            self._take_part()

    @property
    def is_copying(self) -> bool:
        """Whether the node has not begun to train, and waits for a model of a cluster that does."""
        return self._service.gives_from_version == _NEVER

    @is_copying.setter
    def is_copying(self, is_copying: bool) -> None:
        # A snapshot of before the model was replaced may still be the newest one.
        self._service.gives_from_version = _NEVER if is_copying else self._replaced_version + 1

    def plan(self) -> Plan:
        """The pull to begin: of the peer whose model is to replace this node's, or of any."""
        return Plan(ExchangeKind.PULL, peers=None if self._elder is None else {self._elder: 1.0})

    def is_outdated(self, result: ExchangeResult) -> bool:
        """Whether the exchange was made with a model that has been replaced since."""
        return result.reference is not None and result.reference.version <= self._replaced_version

    def ended(self, result: ExchangeResult, factor: float, version: int) -> bool:
        """Note the end of an exchange, after it was applied.

        Args:
            result: of the exchange.
            factor: by which it was applied.
            version: of this node's newest snapshot.

        Returns:
            Whether this node's model was replaced.
        """
        is_own_pull = result.request is not None and result.request.joining
        if is_own_pull:
            self._elder = None  # tried; if that has failed, any peer may lead further
        if result.takes_over:
            self._standing.is_changing = False
        peer = result.peer_state
        if result.outcome is Outcome.BLENDED:
            self._adopt(result, factor)
            is_replaced = result.takes_over and factor > 0.0
            if is_replaced:
                self._replaced_version = version
            has_met = self.is_on and is_own_pull and not peer.has_diverged
            self.has_met_untrained |= has_met and not is_replaced
            if is_replaced or (has_met and not self.is_copying):
                self._method.joined(peer, takes_over=is_replaced)
                self._take_part()
                return is_replaced
        if result.elder is not None and not self.is_on:
            self.is_on = True
            self._elder = result.elder
            self._service.tell(first_round=None)
        return False

    def _take_part(self) -> None:
        self.is_on = False
        self._service.tell(first_round=self._method.round)

    def _adopt(self, result: ExchangeResult, factor: float) -> None:
        """Be of the lineage that this node's model is of by now."""
        own, peer = self._standing.own, result.peer_state
        lineage = own.lineage
        if result.relation is Relation.NEAR and not peer.has_diverged and not self.is_outdated(result):
            lineage = min(own.lineage, peer.lineage)
        elif factor > 0.0 and not result.relation.mixes:
            lineage = peer.lineage
        if lineage != own.lineage:
            self._standing.own = replace(own, lineage=lineage)
