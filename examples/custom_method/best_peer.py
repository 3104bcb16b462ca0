"""A custom averaging method: pull from the neighbour that did best when it was last heard.

The config finds it as `method: best_peer:BestPeer`; docs/methods.md goes through it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from dpwa import Conservation, ExchangeKind, ExchangeResult, Method, Neighbourhood, Plan, State


class BestPeer(Method):
    """Asks the neighbour with the lowest loss, and now and then any of them.

    Args:
        links, count, probability: see `Method`.
        explore: how often any neighbour is asked instead of the best one, above 0 to 1.
    """

    kind = ExchangeKind.PULL
    conservation = Conservation.ROW

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, explore: float = 0.2) -> None:
        super().__init__(links, count, probability)
        if not 0 < explore <= 1:
            raise ValueError(f"explore: expected a number above 0 up to 1, got {explore}")
        self._explore = explore
        self._losses: dict[str, float] = {}

    def plan(self, rng: random.Random) -> Plan | None:
        """The exchange to begin at this step, or None."""
        neighbours = sorted(self.links.row(self.round))
        if not neighbours or rng.random() >= self.probability:
            return None
        known = [peer for peer in neighbours if peer in self._losses]
        knows_best = known and rng.random() >= self._explore
        peer = min(known, key=self._losses.__getitem__) if knows_best else rng.choice(neighbours)
        # A method does not hear of failures. This way, a peer that does not answer is no longer the best.
        self._losses.pop(peer, None)
        return Plan(ExchangeKind.PULL, peers={peer: 1.0}, fraction=self.fraction)

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """The factor by which what came is applied: that of the config's interpolation, with all of its guards."""
        loss = result.peer_state.loss
        if result.peer is not None and loss is not None and math.isfinite(loss):
            self._losses[result.peer] = loss
        return result.factor

    def statistics(self) -> Mapping[str, float]:
        """Numbers for `statistics()` and the journal."""
        known = self._losses.copy()  # any thread may ask
        return {"known_peers": float(len(known)), **({"best_loss": min(known.values())} if known else {})}
