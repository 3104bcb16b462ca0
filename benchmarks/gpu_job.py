"""What `gpu.py` and its workers say to each other.

Must not know: any framework. Runs in: both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dpwa.config.cluster import ClusterConfig


@dataclass(frozen=True)
class GpuJob:
    """What a worker is started for.

    Attributes:
        case: name of the network.
        tiny: take its tiny twin, to see that all of it runs.
        device: "cuda" or "cpu".
        batch: samples per step; 0 for the case's own number.
        rank: number of the worker.
    """

    case: str
    tiny: bool
    device: str
    batch: int
    rank: int


@dataclass(frozen=True)
class GpuBlock:
    """Some steps that are timed together; with dpwa if there is a cluster."""

    steps: int
    warm_up: int = 3
    config: ClusterConfig | None = None


@dataclass(frozen=True)
class GpuTimed:
    """What a worker found out in one block. Lists hold one entry per event.

    Attributes:
        steps: made while the clock ran.
        elapsed_s: for all of them, from an idle GPU to an idle GPU.
        blended: exchanges that were applied meanwhile.
        publish_host_s: trainer's time for handing out a copy.
        publish_gpu_s: time that the training's stream spent on it; none without a GPU.
        ready_s: from there until the copy was in the host's memory.
        apply_host_s: trainer's time for applying an exchange.
        apply_gpu_s: time that the training's stream spent on it, waiting for the values included.
        exchange_s: from the choice of the peer to values ready to blend, of those exchanges that were blended.
        model_mb: exchanged bytes.
    """

    steps: int
    elapsed_s: float
    blended: int = 0
    publish_host_s: list[float] = field(default_factory=list)
    publish_gpu_s: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    apply_host_s: list[float] = field(default_factory=list)
    apply_gpu_s: list[float] = field(default_factory=list)
    exchange_s: list[float] = field(default_factory=list)
    model_mb: float = 0.0

    @property
    def step_s(self) -> float:
        """Mean time of a step."""
        return self.elapsed_s / self.steps
