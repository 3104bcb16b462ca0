"""D-PSGD: in each round every node blends its in-neighbours' models of that round by its row of the mixing matrix.

`x_i(t+1) = sum_j W_ij x_j(t) - lr * g(x_i(t))`: the exchange goes on while the gradient is computed; both are added.
Lian et al., "Can decentralized algorithms outperform centralized algorithms?", arXiv 1705.09056, algorithm 1.

A round has a deadline and no barrier. The weight of a neighbour whose model does not come in time goes to the node
itself, and is counted: with a doubly stochastic W the mean is conserved by every round in which nobody was missed.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.options import Options
from dpwa.snapshot.state import MAX_COUNTER, State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["DPSGD", "DPSGDOptions"]


class DPSGDOptions(Options):
    """Options of the method dpsgd."""

    every: int = Field(1, ge=1, le=1_000_000, description="Training steps in a round.")
    deadline_ms: int = Field(
        1000, ge=1, le=600_000, description="Milliseconds that a step may wait for the neighbours of its round."
    )

    @property
    def rounds(self) -> str:
        """How often there is a round, in words."""
        return "each step is a round" if self.every == 1 else f"every {self.every} steps are a round"

    def arguments(self) -> dict[str, Any]:
        """See `Options.arguments`; here milliseconds become seconds."""
        return {"every": self.every, "deadline_s": self.deadline_ms / 1000}


class DPSGD(Method):
    """See the module.

    Args:
        links, count, probability: see `Method`; the probability is not used, rounds are.
        every: training steps in a round.
        deadline_s: how long a step may wait for its round.
    """

    name = "dpsgd"
    summary = "rounds of a mixing matrix"
    description = (
        "{options.rounds}; a node blends all neighbours' models of the round by the topology's weights, waiting up to "
        "{options.deadline_ms} ms. The mean is conserved by rounds that miss nobody, if the matrix is doubly stochastic"
    )
    options = DPSGDOptions
    uses_probability = False
    blends_by_rows = True
    kind = ExchangeKind.GATHER
    conservation = Conservation.DOUBLY

    def __init__(
        self, links: Neighbourhood, count: int, probability: float, *, every: int = 1, deadline_s: float = 1.0
    ) -> None:
        super().__init__(links, count, probability)
        self._every = every
        self._deadline_s = deadline_s
        self._steps = 0
        self._rounds = 0
        self._missed = 0

    @property
    def exchanges_per_step(self) -> float:
        """See `Method.exchanges_per_step`: the rounds, however many neighbours each has; one without any is none."""
        return 1.0 / self._every if self.links.row(self.round) else 0.0

    def advance(self) -> None:
        """See `Method.advance`: rounds count, and not steps."""
        self._steps += 1
        if self._steps % self._every == 0:
            self.round = min(self.round + 1, MAX_COUNTER)

    def joined(self, peer: State, *, takes_over: bool) -> None:
        """See `Method.joined`. A node that is rounds behind would meet nobody: it goes on in its peer's round."""
        super().joined(peer, takes_over=takes_over)
        if peer.round > self.round + 1:
            self.round = peer.round

    def plan(self, rng: random.Random) -> Plan | None:  # noqa: ARG002
        """See `Method.plan`."""
        if self._steps % self._every:
            return None
        neighbours = self.links.row(self.round)
        return Plan(ExchangeKind.GATHER, peers=neighbours, wait_s=self._deadline_s)

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`: what came is the weighted mean of differences, so its factor is the sum of weights."""
        self._rounds += 1
        self._missed += result.missed
        return result.weight

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        return {"rounds": float(self._rounds), "missed": float(self._missed)}
