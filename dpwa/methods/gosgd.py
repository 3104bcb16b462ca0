"""GoSGD: give a copy of the model and half of its mass to a random peer; blend what comes by mass.

Every node begins with the mass 1 / M. With probability p a step pushes: `w_i <- w_i / 2`, and `(x_i, w_i)` is sent. The
receiver takes all that has come: `x_j <- (w_j x_j + w x) / (w_j + w)`, `w_j <- w_j + w`. The sums of w and of w x over
nodes and messages are conserved, so that the nodes agree at the mean of where they began and of all progress since.
Blot et al., "Gossip training for deep learning", arXiv 1611.09726, algorithms 1 and 2.

A node that has finished passes on what others still push to it, a push for a push. If it kept that, those who train
longest would give their mass away, get nothing any more, and end at their own samples. In the paper all end at once.

A node that joins late, or again after a crash, has mass 0: its model counts nothing until a peer gives it some. What a
crash takes away is gone, and the average is one over the survivors.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from dpwa.errors import ConfigError
from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.snapshot.state import MAX_MASS, State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["GoSGD"]

# Below this share of its first mass a node keeps what it has: halving on would end at 0, and 0 / 0 at a receiver.
_LEAST_SHARE = 2.0**-40


class GoSGD(Method):
    """See the module; it has no options of its own: p is the config's `pull_probability`."""

    name = "gosgd"
    summary = "push a copy and half of the mass to a random peer"
    description = (
        "each step gives model and half of the mass to one random neighbour {often}. Column-stochastic: the mean by "
        "mass is conserved, whatever is lost or late"
    )
    follows_members = True
    kind = ExchangeKind.PUSH
    conservation = Conservation.COLUMN
    best_probability = 0.2  # the mass under way is not trained: about p/4 of the progress is lost
    own_share = 0.5
    """Share of the mass that a push leaves at home."""

    def __init__(self, links: Neighbourhood, count: int, probability: float) -> None:
        super().__init__(links, count, probability)
        self._first_mass = self._mass = self._mass_of_one()
        self._under_way = 0.0
        self._lost = 0.0
        self._has_blended = False  # since the last push was given away
        self._passed_on = 0

    def _mass_of_one(self) -> float:
        return 1.0 / self.count

    @property
    def mass(self) -> float:
        """See `Method.mass`."""
        return self._mass

    @property
    def total_mass(self) -> float:
        """See `Method.total_mass`."""
        return self.count * self._mass_of_one()

    def plan(self, rng: random.Random) -> Plan | None:
        """See `Method.plan`."""
        return self._push(self.round) if rng.random() < self.probability else None

    def pass_on(self) -> Plan | None:
        """See `Method.pass_on`. Where each round has its own neighbours, it is the turn of the next ones each time."""
        self._passed_on += 1
        return self._push(self.round + self._passed_on)

    def _push(self, round_: int) -> Plan | None:
        if self._mass < self._first_mass * _LEAST_SHARE:
            return None
        return Plan(ExchangeKind.PUSH, peers=self.links.heard_by(round_), mass=self._mass * (1.0 - self.own_share))

    def gave(self, mass: float) -> None:
        """See `Method.gave`."""
        self._mass -= mass
        self._under_way += mass
        self._has_blended = False

    def took_back(self, mass: float) -> float:
        """See `Method.took_back`. Own training may stay: it only counts by all of the mass, as if nothing was given."""
        self._mass = min(self._mass + mass, MAX_MASS)
        self._under_way -= mass
        return mass / self._mass if self._has_blended else 0.0

    def lost(self, mass: float) -> None:
        """See `Method.lost`."""
        self._under_way -= mass
        self._lost += mass

    def delivered(self, mass: float) -> None:
        """See `Method.delivered`."""
        self._under_way -= mass

    def joined(self, peer: State, *, takes_over: bool) -> None:
        """See `Method.joined`."""
        super().joined(peer, takes_over=takes_over)
        if takes_over:
            self._mass = 0.0

    def resumed_together(self) -> None:
        """See `Method.resumed_together`. The sum of masses of different moments need not be right: all begin equal."""
        self._mass = self._first_mass

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`."""
        mass = min(self._mass + result.weight, MAX_MASS)
        if mass <= 0.0:
            return 0.0
        factor = min(result.weight / mass, 1.0)
        self._mass = mass
        self._has_blended = True
        return factor

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        return {"mass": self._mass, "mass_under_way": self._under_way, "mass_lost": self._lost}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`. A push under way counts as returned: whoever loads this has not made it."""
        return {**super().state_dict(), "mass": self._mass + self._under_way}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        mass = float(state["mass"])
        if not 0.0 <= mass <= self.count:
            raise ConfigError(f"checkpoint of a push method: expected a mass from 0 to {self.count}, got {mass}")
        self._mass = mass
