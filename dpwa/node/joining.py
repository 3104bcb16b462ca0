"""The phase in which a node joins, and the lineage that it is of.

A node joins with the first exchange that brings the snapshot of a healthy peer. Until then it pulls whole models, and
begins and takes part in nothing else; it trains on all the same. That nobody can be reached ends nothing: the peer that
comes back may be the one that has trained for hours. A node that finds out later that a peer's model is to replace its
own joins once more.

Must not know: sockets, files, how an exchange is made. Runs in: the trainer's thread.
"""

from __future__ import annotations

from dataclasses import replace

from dpwa.exchange.lineage import Relation, Standing
from dpwa.exchange.result import Exchange, Outcome
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind, Method, Plan

__all__ = ["Joining"]


class Joining:
    """Joins for one node.

    Args:
        standing: what the own model is.
        service: told whether the node takes part.
        method: told when it has joined.
        has_peers: whether there is anybody to join.
    """

    def __init__(self, standing: Standing, service: Service, method: Method, *, has_peers: bool) -> None:
        self.is_on = has_peers
        self._standing = standing
        self._service = service
        self._method = method
        self._elder: str | None = None
        self._replaced_version = 0

    def plan(self) -> Plan:
        """The pull to begin: of the peer whose model is to replace the own one, or of any."""
        return Plan(ExchangeKind.PULL, peers=None if self._elder is None else {self._elder: 1.0})

    def is_outdated(self, exchange: Exchange) -> bool:
        """Whether an exchange was made with a model that has been replaced since."""
        return exchange.reference is not None and exchange.reference.version <= self._replaced_version

    def ended(self, exchange: Exchange, factor: float, version: int) -> bool:
        """Note the end of an exchange, after it was applied.

        Args:
            exchange: it.
            factor: by which it was applied.
            version: of the newest own snapshot.

        Returns:
            Whether the own model was replaced.
        """
        is_own_pull = exchange.ask is not None and exchange.ask.joining
        if is_own_pull:
            self._elder = None  # tried; if that has failed, any peer may lead further
        if exchange.takes_over:
            self._standing.is_changing = False
        peer = exchange.peer_state
        if exchange.outcome is Outcome.BLENDED and peer is not None:
            self._adopt(exchange, factor)
            is_replaced = exchange.takes_over and factor > 0.0
            if is_replaced:
                self._replaced_version = version
            if is_replaced or (self.is_on and is_own_pull and not peer.has_diverged):
                self._method.joined(peer, takes_over=is_replaced)
                self._take_part()
                return is_replaced
        if exchange.elder is not None and not self.is_on:
            self.is_on = True
            self._elder = exchange.elder
            self._service.joined = False
            self._service.first_round = None
        return False

    def _take_part(self) -> None:
        self.is_on = False
        self._service.joined = True
        self._service.first_round = self._method.round

    def _adopt(self, exchange: Exchange, factor: float) -> None:
        """Be of the lineage that the own model is of by now."""
        own, peer = self._standing.own, exchange.peer_state
        if peer is None:
            return
        lineage = own.lineage
        if exchange.relation is Relation.NEAR and not peer.has_diverged and not self.is_outdated(exchange):
            lineage = min(own.lineage, peer.lineage)
        elif factor > 0.0 and not exchange.relation.mixes:
            lineage = peer.lineage
        if lineage != own.lineage:
            self._standing.own = replace(own, lineage=lineage)
