"""The strategies over torch.distributed: its DistributedDataParallel, and all-reduces of parameters every few steps.

Must not know: data sets, networks. Runs in: the training thread; torch sends in its own threads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
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
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.handicaps import restarts
from dpwa.lab.training.snapshots import read_steps
from dpwa.lab.training.strategy import Strategy

__all__ = ["AllreduceEveryH", "Ddp", "DdpRestarts", "TorchDistributed", "make"]

_RENDEZVOUS = "rendezvous"
_CHECKPOINT = "checkpoint.pt"
_REDONE = "redone.json"

# Many processes on few cores take their time to load torch and the data.
_START_TIMEOUT_S = 300.0
# For a process that hangs; a killed one is noticed at once by its closed connection.
_BATCH_TIMEOUT_S = 60.0
# Between two averages, a process may wait for many steps of a slow one.
_AVERAGE_TIMEOUT_S = 600.0


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:
    """The strategy of one process.

    Args:
        trial: names the strategy: ddp, ddp_restarts or allreduce_every_h.
        rank: of this process, from 0.
        size: number of processes.
        folder: of the trial. The processes find each other through a file in it, which must not exist yet.

    Raises:
        ConfigError: the strategy is none of these.
    """
    rendezvous = folder.path / f"{_RENDEZVOUS}{restarts() or ''}"
    if trial.settings.strategy == "ddp":
        return Ddp(rank, size, rendezvous)
    if trial.settings.strategy == "ddp_restarts":
        recorded = [folder.steps(name) for name in trial.process_names]
        return DdpRestarts(rank, size, rendezvous, checkpoint=folder.path / _CHECKPOINT, recorded=recorded)
    if trial.settings.strategy == "allreduce_every_h":
        return AllreduceEveryH(rank, size, rendezvous, every_steps=trial.settings.every_steps)
    raise ConfigError(f"strategy: expected ddp, ddp_restarts or allreduce_every_h, got {trial.settings.strategy}")


class TorchDistributed(Strategy):
    """A process of a torch.distributed group: over NCCL if each process has its own GPU, otherwise over gloo.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist yet, the same for all processes.
        timeout_s: how long a process may wait for another one.
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
        # NCCL refuses two processes on one GPU; gloo accepts them, and copies through the host.
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

    def finish(self) -> bool:
        """See `Strategy.finish`: no process closes connections that another one still needs."""
        dist.all_reduce(torch.zeros(1, device=self._device))
        return False

    def close(self) -> None:
        """See `Strategy.close`."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Ddp(TorchDistributed):
    """Torch's DistributedDataParallel: each process computes its part of every batch, and gradients are averaged.

    All processes have the same model at all times. `bytes_sent` counts a ring all-reduce of all gradients per step
    (`allreduce_bytes`), but not the initial weights, which are sent before the clock runs.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist yet, the same for all processes.
        timeout_s: how long a process may wait for another one, in each step.
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
        # Times the number of processes, because torch divides the sum of their gradients by it.
        weight = self._size / self._batch_size
        result = backward_of_part(self._parallel, images, labels, weight=weight, loss=self.loss)
        self.bytes_sent += self._step_bytes
        return result

    def close(self) -> None:
        """See `Strategy.close`."""
        # First release what refers to the group.
        self._parallel = self.model
        super().close()


class DdpRestarts(Ddp):
    """DDP under torchrun: when a process fails, all are started anew, and go on where the last epoch had ended.

    This is what torchrun's users do for themselves: a checkpoint after each epoch, made by the first process.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: see `Ddp`.
        checkpoint: a file, the same for all processes.
        recorded: the steps of each process's earlier life, if there was one.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path, *, checkpoint: Path, recorded: Sequence[Path]) -> None:
        super().__init__(rank, size, rendezvous)
        self._checkpoint = checkpoint
        self._recorded = recorded
        self._redone_steps = 0
        self._step = 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        if self._checkpoint.exists():
            saved = torch.load(self._checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.steps_done = self._step = saved["step"]
        redone = self._checkpoint.with_name(_REDONE)
        earlier = json.loads(redone.read_text(encoding="utf-8"))["steps"] if redone.exists() else 0
        # Whoever got furthest counts: torchrun ends the others before they write theirs. Read before all meet, because
        # they write anew then.
        lives = [len(found["loss"]) for path in self._recorded if (found := read_steps(path)) is not None]
        super().begin(model, optimizer)
        self._redone_steps = earlier + max(0, max(lives, default=0) - self.steps_done)
        self.bytes_sent = (self.steps_done + self._redone_steps) * self._step_bytes
        if self._rank == 0:
            write_json(redone, {"steps": self._redone_steps})

    def did(self) -> dict[str, float]:
        """See `Strategy.did`; also how many steps of earlier lives were made again."""
        return {**super().did(), "redone_steps": self._redone_steps}

    def before_epoch(self, epoch: int) -> None:
        """Saves what the epoch before has come to."""
        if epoch == 1 or self._step == self.steps_done:
            return
        # All have recorded that epoch: what is resumed from is then known to each of them.
        dist.all_reduce(torch.zeros(1, device=self._device))
        if self._rank == 0:
            draft = self._checkpoint.with_suffix(".new")
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save({**state, "step": self._step}, draft)
            draft.replace(self._checkpoint)

    def after_step(self, loss: Tensor) -> None:  # noqa: ARG002
        """See `Strategy.after_step`."""
        self._step += 1


class AllreduceEveryH(TorchDistributed):
    """Trains alone on its own samples; every few steps and after the last one, all take the mean of all models.

    Floating-point buffers are averaged, too; the optimizer's momentum is not. Processes with different numbers of steps
    still meet equally often: see `meeting_steps`.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        rendezvous: a file that does not exist yet, the same for all processes.
        every_steps: steps between averages, for the process that makes the most steps.
        timeout_s: how long a process may wait for another one, at each average.
    """

    averages: int = 0

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
        self.averages += self._size > 1
        self.bytes_sent += allreduce_bytes(self._flat.payload_bytes, self._size)


def _end_at_once_after_errors() -> None:
    """Has an error that ends this process exit with 1 at once, after it is printed, without Python's teardown.

    Threads of gloo may hold tensors of a failed exchange. Releasing them needs the interpreter, and during its teardown
    that would abort the process.
    """
    printed = sys.excepthook

    def end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        printed(kind, error, traceback)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    sys.excepthook = end
