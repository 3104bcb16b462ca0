"""NoLoCo: many local steps, then an outer step with momentum together with one other node. No all-reduce anywhere.

After H steps a node meets another that is ready too. Both know each other's model theta and anchor phi, and make the
same outer step: momentum over the mean of their progress, and a pull between their anchors. Kolehmainen et al.,
"NoLoCo: No-all-reduce low communication training method for large models", arXiv 2506.10911, section 3.2. The mean of
all anchors moves as if it were one model's: exactly when all nodes step in the same round, and otherwise but for
momenta that one of a pair has spent and the other not yet.

Here nobody waits: a node that is ready trains on until it finds a partner whose number of outer steps differs from its
own by no more than a window. What both trained between the snapshots and the step stays.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.errors import InternalError
from dpwa.methods.base import Conservation, ExchangeKind, ExchangeResult, Method, Plan
from dpwa.methods.outer import OuterOptimizer
from dpwa.snapshot.layout import Buffer, Layout, Role, Section, TensorSpec
from dpwa.snapshot.staging import Values, parameter_arrays, section_values
from dpwa.snapshot.state import MAX_COUNTER, State
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["NoLoCo"]

# A node is ready for a peer's proposal a little before its own H steps are over.
_READY_SHARE = 0.1


class NoLoCo(Method):
    """See the module.

    Args:
        links, count, probability: see `Method`; the probability is not used.
        every: H, local steps between two outer steps.
        beta: how much of the mean progress the anchor goes.
        gamma: how much the anchors pull at each other.
        momentum: share of the last outer step in the next.
        window: outer steps that a partner may be ahead or behind.
    """

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
    ) -> None:
        super().__init__(links, count, probability)
        self._every = every
        self._window = window
        self._options: dict[str, Any] = {"learning_rate": beta, "anchor_pull": gamma, "momentum": momentum}
        self._since = 0
        self._outer: OuterOptimizer | None = None
        self._layout: Layout | None = None
        self._restarts = True
        self._refused = 0
        self._ended_after = 0  # outer steps of a node that has been closed

    def advance(self) -> None:
        """See `Method.advance`: rounds are outer steps."""
        self._since += 1

    @property
    def wants_snapshot(self) -> bool:
        """See `Method.wants_snapshot`."""
        return self._since >= self._every - max(1, int(_READY_SHARE * self._every))

    @property
    def pair_rounds(self) -> tuple[int, int] | None:
        """See `Method.pair_rounds`. A node that has found no partner for H steps takes any: it is behind for good."""
        if self._since >= 2 * self._every:
            return (0, MAX_COUNTER)
        return (max(0, self.round - self._window), self.round + self._window) if self.wants_snapshot else None

    def plan(self, rng: random.Random) -> Plan | None:  # noqa: ARG002
        """See `Method.plan`."""
        return Plan(ExchangeKind.PAIR, peers=self.links.meets(self.round)) if self._since >= self._every else None

    def extend(self, layout: Layout) -> Layout:
        """See `Method.extend`: an anchor for each section of parameters."""
        self._layout = layout
        anchors = [
            TensorSpec(f"anchor of {section.dtype} parameters", (section.size,), str(section.value_type), Role.ANCHOR)
            for section in layout.sections
            if section.role is Role.PARAMETER
        ]
        return Layout([*layout.tensors, *anchors])

    def fill(self, own: Buffer, rest: Buffer, sections: tuple[Section, ...]) -> None:
        """See `Method.fill`."""
        theta, outer = self._parameters(own), self._outer
        if outer is None:
            outer = self._outer = OuterOptimizer(theta, nesterov=False, **self._options)
        elif self._restarts:
            outer.restart(theta)
        self._restarts = False
        model_bytes = len(own)
        for section, anchor in zip(sections, outer.anchors, strict=True):
            start = section.start_byte - model_bytes
            rest[start : start + anchor.nbytes].view(anchor.dtype)[:] = anchor

    def joined(self, peer: State, *, takes_over: bool) -> None:
        """See `Method.joined`: the anchor is where this node begins to train."""
        super().joined(peer, takes_over=takes_over)
        self._restarts = True
        self._since = 0

    def blend(self, result: ExchangeResult, own_state: State) -> float:  # noqa: ARG002
        """See `Method.blend`."""
        if result.reference is None or self._outer is None:
            raise InternalError("a pair without a reference")
        memory = np.frombuffer(result.reference.memory, np.uint8)
        theta = self._parameters(memory)
        differences = [values.array for values in result.values if values.section.role is Role.PARAMETER]
        anchors = [values.array for values in result.values if values.section.role is Role.ANCHOR]
        if not self._outer.pair_step(theta, differences, anchors, out=differences):
            self._refused += 1
            return 0.0
        for values in result.values:
            if values.section.role is Role.BUFFER:
                _meet(values, memory)
        # Whoever was behind is back in the window.
        self.round = min(max(self.round, result.peer_state.round) + 1, MAX_COUNTER)
        self._since = 0
        return 1.0

    def statistics(self) -> Mapping[str, float]:
        """See `Method.statistics`."""
        return {
            "outer_steps": float(self._ended_after if self._outer is None else self._outer.steps),
            "outer_refused": float(self._refused),
        }

    def close(self) -> None:
        """See `Method.close`."""
        if self._outer is not None:
            self._ended_after, self._outer = self._outer.steps, None

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`."""
        outer = {} if self._outer is None else self._outer.state_dict()
        return {**super().state_dict(), "since": self._since, "outer": outer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`. The model has been loaded before."""
        super().load_state_dict(state)
        self._since = int(state["since"])
        if state["outer"] and self._layout is not None:
            zeros = [
                np.zeros(section.size, section.value_type)
                for section in self._layout.sections
                if section.role is Role.PARAMETER
            ]
            outer = OuterOptimizer(zeros, nesterov=False, **self._options)
            outer.load_state_dict(state["outer"])
            self._outer, self._restarts = outer, False

    def _parameters(self, memory: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        if self._layout is None:
            raise InternalError("a method that extends the layout was not asked to")
        return parameter_arrays(self._layout, memory)


def _meet(values: Values, memory: npt.NDArray[np.uint8]) -> None:
    """Running statistics of both in the middle, in place; they have no momentum."""
    np.add(values.array, section_values(values.section, memory), out=values.array)
    np.multiply(values.array, 0.5, out=values.array)
