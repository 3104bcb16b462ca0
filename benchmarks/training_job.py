"""What the parents of `overhead.py` and `straggler.py` and their workers say to each other.

Must not know: any framework, so that the parents stay small. Runs in: both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpwa.config.cluster import ClusterConfig

Together = Literal["alone", "dpwa", "ddp"]


@dataclass(frozen=True)
class Block:
    """Some training steps that are timed together.

    Attributes:
        together: how the workers train together, if at all.
        steps: that are timed.
        seconds: or train so long, however many steps that makes; 0 goes by `steps`.
        warm_up: steps before those.
        config: of the cluster for "dpwa".
    """

    together: Together
    steps: int = 0
    seconds: float = 0.0
    warm_up: int = 3
    config: ClusterConfig | None = None


@dataclass(frozen=True)
class Timed:
    """What a worker found out in one block; parts are means per step.

    Attributes:
        steps: made while the clock ran.
        elapsed_s: for all of them.
        publish_s: of a step, in copying the model.
        apply_s: of a step, in applying an exchange.
        bookkeeping_s: of a step, in the rest of dpwa's `step`.
        blended: exchanges that were applied meanwhile.
        cpu_s: of a step, processor time of the trainer's thread inside dpwa.
    """

    steps: int
    elapsed_s: float
    publish_s: float = 0.0
    apply_s: float = 0.0
    bookkeeping_s: float = 0.0
    blended: int = 0
    cpu_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Mean time of a step."""
        return self.elapsed_s / self.steps
