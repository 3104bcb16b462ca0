"""The rounds of fedavg and fedprox: their numbers, and the averaging method that carries models.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", arXiv 1602.05629,
algorithm 1. All processes compute the same rounds from the same seed, so they need not agree on them.

Must not know: sockets, threads, time, torch, which node is the server. Runs in: the training thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.snapshot.state import State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["DEADLINE_S", "FederatedRounds", "round_of_model", "round_of_work", "samples_of"]

DEADLINE_S = 3600.0
"""What a client may take for a round. One that dies is noticed at once: this is for those that never end."""


def round_of_model(round_: int) -> int:
    """What the server's model is published as that the clients of a round begin from; after the last, the result."""
    return 2 * (round_ - 1)


def round_of_work(round_: int) -> int:
    """What the clients of a round publish their trained models as."""
    return 2 * round_ - 1


def samples_of(shard_size: int, batch_size: int, epochs: int) -> int:
    """Samples that the training loop draws from a shard: an incomplete last batch is left out."""
    return epochs * max(1, shard_size // batch_size) * min(shard_size, batch_size)


class FederatedRounds(Method):
    """Gathers on command, and replaces this node's model with the weighted mean of the models that come.

    Server and clients use it in the same way: a client gathers the server's model with weight 1, and the server gathers
    its clients' models, weighted by their numbers of samples. Models travel as absolute values, so that a client gets
    exactly the server's bits.

    Args:
        links, count, probability: see `Method`; not used, the trainer decides who asks whom, and when.
        deadline_s: how long a client may take for a round, in seconds.

    Attributes:
        planned: what the next step boundary begins.
        has_news: whether the next step boundary publishes the model.
        is_in: whether the node has joined.
        missed: how many models of the last gathering did not come.
    """

    kind = ExchangeKind.GATHER
    conservation = Conservation.ROW
    heeds_age = False  # clients train in some rounds and the server in none: ages say nothing here

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(links, count, probability)
        if not deadline_s > 0:
            raise ValueError(f"deadline_s: expected a number of seconds above 0, got {deadline_s}")
        self.deadline_s = deadline_s
        self.planned: Plan | None = None
        self.has_news = False
        self.is_in = False
        self.missed = 0
        self._gathered = 0

    def gather(self, weights: Mapping[str, float], wait_s: float) -> None:
        """Has the next step boundary begin a gathering.

        Args:
            weights: the peers, and how much each model counts; need not add up to 1.
            wait_s: how long to wait for the models.
        """
        self.planned = Plan(ExchangeKind.GATHER, peers=weights, wait_s=wait_s)
        self.missed = len(weights)

    @property
    def wants_snapshot(self) -> bool:
        """See `Method.wants_snapshot`."""
        return self.has_news

    def advance(self) -> None:
        """See `Method.advance`: the trainer sets the round."""

    def plan(self, rng: random.Random) -> Plan | None:  # noqa: ARG002
        """See `Method.plan`."""
        return self.planned

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`: the mean of those that came, whatever the sum of their weights."""
        self.missed = result.missed
        self._gathered += 1
        return 1.0

    def joined(self, peer: State, *, takes_over: bool) -> None:  # noqa: ARG002
        """See `Method.joined`."""
        self.is_in = True

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        return {"gathered": float(self._gathered), "missed": float(self.missed)}
