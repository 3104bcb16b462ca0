"""The strategies over torch.distributed: its DistributedDataParallel, and all-reduces of parameters every few steps.

Must not know: data sets, networks, who has started the processes. Runs in: the training thread; torch has threads of
its own for what it sends.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpwa.errors import ConfigError
from dpwa.lab.strategies.collective import (
    FlatTensors,
    allreduce_bytes,
    averaged_tensors,
    backward_of_part,
    meeting_steps,
    part_of_batch,
)
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.strategy import Strategy

__all__ = ["AllreduceEveryH", "Ddp", "make"]

_RENDEZVOUS = "rendezvous"

# Loading torch and the data in many processes on few cores takes its time.
_START_TIMEOUT_S = 300.0
# A killed process is noticed at once by its closed connection; these are for one that hangs.
_BATCH_TIMEOUT_S = 60.0
# Between two averages a process may have to wait for many steps of a slow one.
_AVERAGE_TIMEOUT_S = 600.0


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:
    """The strategy of one process.

    Args:
        trial: names the strategy: ddp or allreduce_every_h.
        rank: of this process, from 0.
        size: number of processes.
        folder: of the trial; the processes find each other through a file in it, which no earlier training may have
            left there.

    Raises:
        ConfigError: the strategy is none of these.
    """
    rendezvous = folder.path / _RENDEZVOUS
    if trial.settings.strategy == "ddp":
        return Ddp(rank, size, rendezvous)
    if trial.settings.strategy == "allreduce_every_h":
        return AllreduceEveryH(rank, size, rendezvous, every_steps=trial.settings.every_steps)
    raise ConfigError(f"strategy: expected ddp or allreduce_every_h, got {trial.settings.strategy}")


class _TorchDistributed(Strategy):
    """A process of a group of torch.distributed: over NCCL where each has a GPU of its own, else over gloo.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist, the same for all processes.
        timeout_s: how long one may wait for another one.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path, *, timeout_s: float) -> None:
        self._rank = rank
        self._size = size
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`; waits until all processes are here."""
        super().begin(model, optimizer)
        self._device = next(model.parameters()).device
        # NCCL refuses two processes on one GPU; gloo takes them, and copies through the host.
        nccl = self._device.type == "cuda" and torch.cuda.device_count() >= self._size
        store = dist.FileStore(str(self._rendezvous), self._size)  # type: ignore[attr-defined]
        store.set_timeout(timedelta(seconds=_START_TIMEOUT_S))
        dist.init_process_group(
            "nccl" if nccl else "gloo",
            store=store,
            rank=self._rank,
            world_size=self._size,
            timeout=timedelta(seconds=self._timeout_s),
        )
        _end_at_once_after_errors()

    def finish(self) -> None:
        """See `Strategy.finish`: no process takes its connections away while another one needs them."""
        dist.all_reduce(torch.zeros(1, device=self._device))

    def close(self) -> None:
        """See `Strategy.close`."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Ddp(_TorchDistributed):
    """Torch's DistributedDataParallel: each process computes its part of every batch, the gradients are averaged.

    The processes hold the same model at all times. The bytes are those of a ring all-reduce of all gradients per step
    (`allreduce_bytes`); the initial weights, which are sent before the clock runs, are left out.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist, the same for all processes.
        timeout_s: how long one may wait for another one, in each step.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path, *, timeout_s: float = _BATCH_TIMEOUT_S) -> None:
        super().__init__(rank, size, rendezvous, timeout_s=timeout_s)

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._parallel: nn.Module = nn.parallel.DistributedDataParallel(model)
        payload_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        self._step_bytes = allreduce_bytes(payload_bytes, self._size)

    def part_of(self, batch: Tensor) -> Tensor:
        """See `Strategy.part_of`."""
        self._batch_size = len(batch)
        return part_of_batch(batch, self._rank, self._size)

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """See `Strategy.backward`."""
        # Times the number of processes, since torch divides the sum of their gradients by it.
        result = backward_of_part(self._parallel, images, labels, weight=self._size / self._batch_size)
        self.bytes_sent += self._step_bytes
        return result

    def close(self) -> None:
        """See `Strategy.close`."""
        # What holds on to the group goes first.
        self._parallel = self.model
        super().close()


class AllreduceEveryH(_TorchDistributed):
    """Trains alone on its own samples; every few steps and after the last one, all take the mean of all models.

    Buffers with fractions are averaged as well; the optimizer's momentum stays what it was. Where processes make
    different numbers of steps, they meet equally often all the same: see `meeting_steps`.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist, the same for all processes.
        every_steps: steps between averages, of the process that makes the most.
        timeout_s: how long one may wait for another one, at each average.
    """

    def __init__(
        self, rank: int, size: int, rendezvous: Path, *, every_steps: int, timeout_s: float = _AVERAGE_TIMEOUT_S
    ) -> None:
        super().__init__(rank, size, rendezvous, timeout_s=timeout_s)
        self._every_steps = every_steps
        self._step = 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._tensors = averaged_tensors(model)
        self._flat = FlatTensors(self._tensors, self._device)
        most_steps = torch.tensor([self.total_steps], device=self._device)
        dist.all_reduce(most_steps, op=dist.ReduceOp.MAX)
        self._meetings = meeting_steps(self.total_steps, span=int(most_steps), every=self._every_steps)

    def after_step(self, loss: Tensor) -> None:  # noqa: ARG002
        """See `Strategy.after_step`."""
        self._step += 1
        while self._meetings and self._meetings[0] <= self._step:
            del self._meetings[0]
            self._average()

    def _average(self) -> None:
        self._flat.take(self._tensors)
        dist.all_reduce(self._flat.values)
        self._flat.values.div_(self._size)
        self._flat.give(self._tensors)
        self.bytes_sent += allreduce_bytes(self._flat.payload_bytes, self._size)


def _end_at_once_after_errors() -> None:
    """An error that ends this process is printed, and then the process ends with 1, without Python's teardown.

    Threads of gloo may hold tensors of a failed exchange until then. They let them go during the teardown, for which
    they need the interpreter, and then the whole process aborts.
    """
    printed = sys.excepthook

    def end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        printed(kind, error, traceback)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    sys.excepthook = end
