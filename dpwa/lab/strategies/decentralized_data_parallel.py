"""Decent-DP as a row of the lab: in each step every process averages with one neighbour, and all wait for each other.

`DecentralizedDataParallel` (decent-dp 0.2) averages while gradients are computed, with what the neighbour had a step
before, and makes the optimizer's steps itself, in hooks of the backward pass (Wang et al., 2025, 2410.11998).

Must not know: data sets, networks. Runs in: the training thread; torch sends in its own threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpwa.errors import ConfigError
from dpwa.lab.strategies.torch_distributed import TorchDistributed
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.strategy import Strategy

__all__ = ["DecentralizedDataParallel", "make"]

_RENDEZVOUS = "rendezvous"
_STEP_TIMEOUT_S = 60.0


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:
    """The strategy of one process.

    Args:
        trial: of it.
        rank: of this process, from 0.
        size: number of processes.
        folder: of the trial. The processes find each other through a file in it, which must not exist yet.

    Raises:
        ConfigError: gradients are to be shortened.
    """
    if trial.settings.clip_norm is not None:
        raise ConfigError("decent_dp: expected no clip_norm: gradients are applied before all of them are known")
    return DecentralizedDataParallel(rank, size, folder.path / _RENDEZVOUS)


class DecentralizedDataParallel(TorchDistributed):
    """Averages with the left and the right neighbour of a ring in turn; an odd number of processes averages with all.

    `bytes_sent` counts the model once for each step. The first step has its average before the second one.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist yet, the same for all processes.
        timeout_s: how long a process may wait for another one, in each step.
    """

    averages: int = 0

    def __init__(self, rank: int, size: int, rendezvous: Path, *, timeout_s: float = _STEP_TIMEOUT_S) -> None:
        super().__init__(rank, size, rendezvous, timeout_s=timeout_s)

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`.

        Raises:
            ConfigError: the processes make different numbers of steps, so that the last ones would wait for ever.
        """
        super().begin(model, optimizer)
        ends = torch.tensor([self.total_steps, -self.total_steps], device=self._device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise ConfigError(
                f"decent_dp: expected as many steps of each process, got {-int(ends[1])} to {int(ends[0])}; "
                "give them shards of one size"
            )
        from decent_dp.ddp import DecentralizedDataParallel as Parallel  # noqa: PLC0415 - in an environment of its own

        self._optimizers: list[torch.optim.Optimizer] = []
        self._parallel: Any = Parallel(
            model,
            optim_fn=self._made,
            topology="ring" if self._size % 2 == 0 else "complete",
            _local_world_size=1,
        )
        self._payload_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        # The training loop goes on setting the rate of its own optimizer, and that one has nothing to train any more.
        for group in optimizer.param_groups:
            group["params"] = []

    def _made(self, named: Sequence[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        """An optimizer like that of the training loop, for some of the parameters."""
        made = type(self.optimizer)([parameter for _, parameter in named], **self.optimizer.defaults)
        self._optimizers.append(made)
        return made

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """See `Strategy.backward`; the steps of the optimizer are made in it."""
        for made in self._optimizers:
            for group in made.param_groups:
                group["lr"] = self.optimizer.param_groups[0]["lr"]
        scores = self._parallel(images)
        loss = self.loss(scores, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._size > 1:
            self.averages += 1
            self.bytes_sent += self._payload_bytes
        return loss.detach(), int((scores.argmax(dim=1) == labels).sum())

    def close(self) -> None:
        """See `Strategy.close`."""
        # First release what refers to the group.
        self._parallel = None
        super().close()
