"""DiLoCo-style outer momentum on top of any method: every H steps, the way since the last time as one large gradient.

`D = phi - theta`, `m <- mu m + D`, `phi <- phi - lr (D + mu m)`, `theta <- phi`, with the model as the method has
averaged it. Douillard et al., "DiLoCo: Distributed low-communication training of language models", arXiv 2311.08105,
algorithm 1. Linear in the models: where the method conserves their mean, the mean moves as one model would under
the same rule.

Must not know: sockets, threads, peers, the method. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpwa.methods.outer import OuterOptimizer
from dpwa.snapshot.layout import Role
from dpwa.snapshot.model import Model
from dpwa.snapshot.staging import Values, parameter_arrays

__all__ = ["OuterMomentum"]


class OuterMomentum:
    """Makes an outer step every so many training steps.

    Memory: four times the parameters: anchor, momentum, a copy of the model and the increments.

    Args:
        model: the model.
        every: H.
        by_speed: whether that is the H of the fastest node, and slower ones make fewer steps.
        learning_rate: lr.
        momentum: mu.
        nesterov: whether the step looks ahead by one momentum.
    """

    def __init__(
        self, model: Model, *, every: int, by_speed: bool, learning_rate: float, momentum: float, nesterov: bool
    ) -> None:
        self._model = model
        self._every = every
        self.speed = 1.0
        """See `Method.speed`."""
        self.follows_speed_over = every if by_speed else None
        """See `Method.follows_speed_over`."""
        self._options: dict[str, Any] = {
            "learning_rate": learning_rate,
            "momentum": momentum,
            "nesterov": nesterov,
        }
        self._buffer = np.empty(model.layout.total_bytes, np.uint8)
        self._values = tuple(
            Values(section, np.zeros(section.size, section.value_type), is_difference=True)
            for section in model.layout.sections
        )
        self._steps = 0
        self._last = 0  # the step after which the last outer step was due
        self._outer: OuterOptimizer | None = None

    def restart(self) -> None:
        """Begin anew from the model as it is: at the start, and when the model was taken over from a peer."""
        self._steps = self._last = 0
        theta = self._theta()
        if self._outer is None:
            self._outer = OuterOptimizer(theta, **self._options)
        else:
            self._outer.restart(theta)

    def advance(self) -> bool:
        """Count a training step; after H of them, or this node's share by speed, make the outer step.

        Returns:
            Whether the model was moved. Not, if it holds a value that is not finite.
        """
        self._steps += 1
        if self._outer is None or self._steps - self._last < max(1, round(self._every * self.speed)):
            return False
        self._last = self._steps
        out = [values.array for values in self._values if values.section.role is Role.PARAMETER]
        if not self._outer.step(self._theta(), out=out):
            return False
        self._model.blend(self._values, 1.0)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        outer = {} if self._outer is None else self._outer.state_dict()
        return {"steps": self._steps, "last": self._last, "outer": outer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. The model has been loaded before.

        Raises:
            ConfigError: it is of another model.
        """
        self.restart()
        self._steps = int(state["steps"])
        self._last = int(state.get("last", self._steps - self._steps % self._every))
        if self._outer is not None and state["outer"]:
            self._outer.load_state_dict(state["outer"])

    def _theta(self) -> list[np.ndarray[Any, Any]]:
        ready = self._model.copy_into(self._buffer)
        if ready is not None:
            ready()
        return parameter_arrays(self._model.layout, self._buffer)
