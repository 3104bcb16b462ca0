"""What all kinds of exchange of one node work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpwa.exchange.fetch import Fetcher
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.guard import Guard
from dpwa.exchange.intake import Intake
from dpwa.exchange.membership import Membership
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.propose import Proposer
from dpwa.exchange.results import Results
from dpwa.exchange.slices import Rotation
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.staging import Staging

__all__ = ["ExchangeContext"]


@dataclass(frozen=True)
class ExchangeContext:
    """The parts that the exchanges of one node share; each says by itself which thread may call it.

    Attributes:
        fetcher: fetches snapshots.
        proposer: says what the side says that begins a push or a pair.
        proposals: pushes and pairs under way.
        stagings: receive the peers' bytes and hold the values to blend: one, or two for kinds that merge.
        rotation: chooses the part to exchange.
        results: takes the results to the trainer.
        flow_control: chooses the peer, and keeps its score.
        membership: what peers have said of themselves.
        standing: what this node's model is.
        guard: what of a peer's model and words is believed.
        intake: how much this node takes in.
        most_mass: the most that a push can carry, by what there is in the cluster.
        monotonic_s: the clock; a simulation passes its own.
    """

    fetcher: Fetcher
    proposer: Proposer
    proposals: Proposals
    stagings: tuple[Staging, ...]
    rotation: Rotation
    results: Results
    flow_control: FlowControl
    membership: Membership
    standing: Standing
    guard: Guard
    intake: Intake
    most_mass: float
    monotonic_s: Callable[[], float]

    def forget(self, peer: str) -> None:
        """A member is gone: keep nothing of it, or what is kept would grow with all that ever were. Tx thread."""
        self.flow_control.forget(peer)
        self.fetcher.forget(peer)
        self.proposals.forget(peer)
