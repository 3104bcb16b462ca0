"""NoLoCo: many local steps, then an outer step with momentum together with one other node. No all-reduce anywhere.

After H steps a node meets another that is ready too. Both know each other's model theta and anchor phi, and make the
same outer step: momentum over the mean of their progress, and a pull between their anchors. Kolehmainen et al.,
"NoLoCo: No-all-reduce low communication training method for large models", arXiv 2506.10911, section 3.2. The mean of
all anchors moves as if it were one model's: exactly when all nodes step in the same round, and otherwise but for
momenta that one of a pair has spent and the other not yet.

Here nobody waits: a node that has made its steps asks others, who take part if they have made half of theirs and their
number of outer steps differs from its own by no more than a window. It trains on until it finds one. What both trained
between the snapshots and the step stays.

With `by_speed` a slow node makes fewer local steps, so that all are ready at about the same time. Its D is shorter by
as much, and not scaled up: each local step of each node moves the mean of the anchors by the same amount.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dpwa.errors import InternalError
from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.options import Options
from dpwa.snapshot.state import MAX_COUNTER, State
from dpwa.topology.neighbourhood import Neighbourhood

if TYPE_CHECKING:  # numpy; see `PairedAnchor`
    from dpwa.methods.paired_anchor import PairedAnchor
    from dpwa.snapshot.layout import Buffer, Layout, Section

__all__ = ["NoLoCo", "NoLoCoOptions"]

# A node is ready for a peer's proposal when half of its own H steps are over. Were it only a little before their end,
# two that have met would be ready at the same moment for ever, and meet nobody else.
_READY_SHARE = 0.5

# From then on it takes so many snapshots until its H steps are over: a proposal is made with the newest one.
_SNAPSHOTS = 5


class NoLoCoOptions(Options):
    """Options of the method noloco."""

    every: int = Field(50, ge=1, le=1_000_000, description="H: local steps between two outer steps.")
    beta: float = Field(0.7, gt=0, le=2, description="How much of the mean progress the anchor goes.")
    gamma: float = Field(0.7, ge=0, lt=2, description="How much the anchors of a pair pull at each other.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Share of the last outer step in the next.")
    window: int = Field(2, ge=0, le=1_000_000, description="Outer steps that a partner may be ahead or behind.")
    by_speed: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether a slow node makes fewer local steps, so that all make their outer steps together.",
    )

    @property
    def often(self) -> str:
        """How many local steps there are, in words."""
        return f"{self.every} local steps{' (slower nodes fewer)' if self.by_speed else ''}"


class NoLoCo(Method):
    """See the module.

    Args:
        links, count, probability: see `Method`; the probability is not used.
        every: H, local steps between two outer steps.
        beta: how much of the mean progress the anchor goes.
        gamma: how much the anchors pull at each other.
        momentum: share of the last outer step in the next.
        window: outer steps that a partner may be ahead or behind.
        by_speed: whether H is that of the fastest node, and slower ones make fewer steps.
    """

    name = "noloco"
    summary = "outer steps in random pairs"
    description = (
        "after {options.often} two nodes within {options.window} outer steps of each other make one "
        "together. Doubly stochastic: the anchors move as their mean would"
    )
    options = NoLoCoOptions
    uses_probability = False
    kind = ExchangeKind.PAIR
    conservation = Conservation.DOUBLY
    repays = False  # an outer step belongs to the anchor of its moment

    def __init__(
        self,
        links: Neighbourhood,
        count: int,
        probability: float,
        *,
        every: int = 50,
        beta: float = 0.7,
        gamma: float = 0.7,
        momentum: float = 0.5,
        window: int = 2,
        by_speed: bool = False,
    ) -> None:
        super().__init__(links, count, probability)
        self._every = every
        self._window = window
        if by_speed:
            self.follows_speed_over = every
        self._outer_options = {"beta": beta, "gamma": gamma, "momentum": momentum}
        self._steps = 0
        self._since = 0
        self._anchor: PairedAnchor | None = None
        self._refused = 0
        self._ended_after = 0  # outer steps of a node that has been closed

    @property
    def exchanges_per_step(self) -> float:
        """See `Method.exchanges_per_step`: a pair is an outer step of both, so that a node begins every other one."""
        return 0.5 / self.local_steps

    @property
    def local_steps(self) -> int:
        """Steps of this node between two outer steps: H, or its share by speed."""
        return max(1, round(self._every * self.speed))

    def advance(self) -> None:
        """See `Method.advance`: rounds are outer steps."""
        self._steps += 1
        self._since += 1

    @property
    def _ready(self) -> int:
        return self.local_steps - max(1, int(_READY_SHARE * self.local_steps))

    @property
    def wants_snapshot(self) -> bool:
        """See `Method.wants_snapshot`."""
        steps, ready = self.local_steps, self._ready
        pause = max(1, (steps - ready) // _SNAPSHOTS)
        return self._since >= ready and (self._since - ready) % pause == 0

    @property
    def pair_rounds(self) -> tuple[int, int] | None:
        """See `Method.pair_rounds`. A node that has found no partner for H steps takes any: it is behind for good."""
        if self._since >= 2 * self.local_steps:
            return (0, MAX_COUNTER)
        return (max(0, self.round - self._window), self.round + self._window) if self._since >= self._ready else None

    def plan(self, rng: random.Random) -> Plan | None:  # noqa: ARG002
        """See `Method.plan`."""
        return Plan(ExchangeKind.PAIR, peers=self.links.meets(self.round)) if self._since >= self.local_steps else None

    def extend(self, layout: Layout) -> Layout:
        """See `Method.extend`: an anchor for each section of parameters."""
        from dpwa.methods.paired_anchor import PairedAnchor  # noqa: PLC0415 - numpy, which only a node needs

        self._anchor = PairedAnchor(layout, **self._outer_options)
        return self._anchor.extended_layout

    def fill(self, own: Buffer, rest: Buffer, sections: tuple[Section, ...]) -> None:
        """See `Method.fill`."""
        if self._anchor is None:
            raise InternalError("a method that extends the layout was not asked to")
        self._anchor.fill(own, rest, sections)

    def joined(self, peer: State, *, takes_over: bool) -> None:
        """See `Method.joined`: the anchor is where this node begins to train."""
        super().joined(peer, takes_over=takes_over)
        if self._anchor is not None:
            self._anchor.restart()
        self._since = 0

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`."""
        if result.reference is None or self._anchor is None:
            raise InternalError("a pair without a reference")
        if not self._anchor.pair_step(result.reference.memory, result.values):
            self._refused += 1
            return 0.0
        # Whoever was behind is back in the window.
        self.round = min(max(self.round, result.peer_state.round) + 1, MAX_COUNTER)
        self._since = max(0, self._steps - result.reference.step)  # these are in no outer step yet
        return 1.0

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        anchor = self._anchor
        return {
            "outer_steps": float(self._ended_after if anchor is None else anchor.steps),
            "outer_refused": float(self._refused),
            "local_steps": float(self.local_steps),
        }

    def close(self) -> None:
        """See `Method.close`."""
        if self._anchor is not None:
            self._ended_after, self._anchor = self._anchor.steps, None

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`."""
        outer = {} if self._anchor is None else self._anchor.state_dict()
        return {**super().state_dict(), "since": self._since, "outer": outer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`. The model has been loaded before."""
        super().load_state_dict(state)
        self._since = int(state["since"])
        if state["outer"] and self._anchor is not None:
            self._anchor.load_state_dict(state["outer"])
