"""AD-PSGD: two nodes meet at the middle of their models, while both go on training.

`x_i += (s_j - s_i) / 2` and `x_j += (s_i - s_j) / 2`, with one and the same pair of snapshots on both sides, so that
the mean is conserved however late each side applies its half. Lian et al., "Asynchronous decentralized parallel
stochastic gradient descent", arXiv 1710.06952, algorithm 1, where the two models are averaged in place.

Both sides move or neither: see `dpwa.exchange.proposals`. A node is in one pair at a time and refuses others
meanwhile, so that nobody waits for somebody who waits, whatever the graph.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.methods.draw import Draw
from dpwa.snapshot.state import State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["ADPSGD", "Symmetric"]

# In which share of the steps a pair that was refused is proposed again: two nodes that asked each other in all of them
# would mostly find each other asking.
_RETRY_SHARE = 0.5


class Symmetric(Method):
    """What methods have in common whose pairs move by equal and opposite amounts.

    Args:
        links, count, probability: see `Method`.
        share: of the difference, for each side; below 1/2 they do not meet in the middle.
    """

    exchanges_slices = True
    follows_members = True
    kind = ExchangeKind.PAIR
    conservation = Conservation.DOUBLY

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, share: float) -> None:
        super().__init__(links, count, probability)
        self._share = share
        self._pairs = 0
        self._draw = Draw(retry_share=_RETRY_SHARE)

    @property
    def wants_snapshot(self) -> bool:
        """See `Method.wants_snapshot`: a peer's proposal takes the newest; waiting for one would engage both sides."""
        return True

    def plan(self, rng: random.Random) -> Plan | None:
        """See `Method.plan`: any neighbour, in or out, because a pair has no direction."""
        if not self._draw.begins(rng, self.probability):
            return None
        return Plan(ExchangeKind.PAIR, peers=self.links.meets(self.round), fraction=self.fraction)

    def refused(self, *, by_peers: bool) -> None:
        """See `Method.refused`."""
        self._draw.refused(by_peers=by_peers)

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`."""
        self._pairs += 1
        return self._share

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        return {"pairs": float(self._pairs)}


class ADPSGD(Symmetric):
    """See the module; it has no options of its own."""

    name = "adpsgd"
    summary = "random pairs meet in the middle"
    description = (
        "each step meets one random neighbour {often}, and both go to the middle. Doubly stochastic: the mean is "
        "conserved"
    )

    def __init__(self, links: Neighbourhood, count: int, probability: float) -> None:
        super().__init__(links, count, probability, share=0.5)
