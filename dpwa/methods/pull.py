"""Pull interpolation: fetch a random peer's newest model, and go part of the way there. dpwa's own method.

`x += factor * (peer - own)`, where the factor comes from the config's `interpolation`. Each exchange is row-stochastic:
the nodes agree, at an average in which fast and often asked nodes weigh more. Jin et al., "How to scale distributed
deep learning?", arXiv 1611.04581, section 3; the loss and clock of the peer as in the 2017 dpwa.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random

from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.methods.draw import Draw
from dpwa.snapshot.state import State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["Pull"]


class Pull(Method):
    """See the module; it has no options of its own: the config's `interpolation` rules the factor."""

    name = "pull"
    summary = "pull a random peer's newest model, blend by a factor"
    description = (
        "each step asks one random neighbour {often}, and {wait}. Row-stochastic: models agree, at an average that is "
        "not exactly the mean"
    )
    follows_members = True
    uses_interpolation = True
    exchanges_slices = True
    kind = ExchangeKind.PULL
    conservation = Conservation.ROW

    def __init__(self, links: Neighbourhood, count: int, probability: float) -> None:
        super().__init__(links, count, probability)
        self._draw = Draw(retry_share=1.0)

    def plan(self, rng: random.Random) -> Plan | None:
        """See `Method.plan`."""
        if not self._draw.begins(rng, self.probability):
            return None
        return Plan(ExchangeKind.PULL, peers=self.links.hears(self.round), fraction=self.fraction)

    def refused(self, *, by_peers: bool) -> None:
        """See `Method.refused`."""
        self._draw.refused(by_peers=by_peers)

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`: the factor is ready, because the rule was asked where the states were at hand."""
        return result.factor
