"""The strategies over MPI: averages of parameters every few epochs, plain or weighted, and of gradients every batch.

Buffers are sent as they are: nothing is pickled. A process that fails ends all the others, and if one is killed,
`mpiexec` ends them.

Must not know: data sets, networks. Runs in: the training thread of a process that `mpiexec` has started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
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

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["ParallelSgd", "ParamAvg", "WeightedParamAvg", "make", "weights_by_distance"]

# The model may be on a GPU; MPI's buffers are in host memory.
_HOST = torch.device("cpu")


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:  # noqa: ARG001 - MPI needs no files
    """The strategy of one process.

    Args:
        trial: names the strategy: param_avg, w_param_avg or parallel_sgd.
        rank: of this process, from 0.
        size: number of processes.
        folder: of the trial.

    Raises:
        ConfigError: MPI is not installed, or disagrees about rank and size.
    """
    settings = trial.settings
    comm = _world(rank, size)
    if settings.strategy == "parallel_sgd":
        return ParallelSgd(comm)
    if settings.strategy == "param_avg":
        return ParamAvg(comm, avg_freq=settings.avg_freq, n_epochs=settings.n_epochs)
    if settings.strategy == "w_param_avg":
        return WeightedParamAvg(comm, avg_freq=settings.avg_freq, n_epochs=settings.n_epochs, lambda_=settings.lambda_)
    raise ConfigError(f"strategy: expected param_avg, w_param_avg or parallel_sgd for MPI, got {settings.strategy}")


def _world(rank: int, size: int) -> MPI.Comm:
    try:
        from mpi4py import MPI  # noqa: PLC0415 - an extra; its import starts MPI
    except ImportError as error:
        raise ConfigError(f"MPI cannot be used ({error}): install dpwa[mpi]") from error
    comm = MPI.COMM_WORLD
    if (comm.Get_rank(), comm.Get_size()) != (rank, size):
        raise ConfigError(
            f"MPI: expected to be process {rank} of {size}, but MPI says {comm.Get_rank()} of {comm.Get_size()}; "
            f"start it with `mpiexec -n {size}`"
        )
    return comm


class _MpiStrategy(Strategy):
    """What the strategies over MPI share.

    Args:
        comm: all processes of the training.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._size = comm.Get_size()
        self._step = 0

    def after_step(self, loss: Tensor) -> None:  # noqa: ARG002
        """See `Strategy.after_step`."""
        self._step += 1

    def _sum(self, flat: FlatTensors) -> None:
        """Replaces a buffer by the sum of all processes' buffers. No timeout is needed: a lost process ends all."""
        from mpi4py import MPI  # noqa: PLC0415 - an extra

        self._comm.Allreduce(MPI.IN_PLACE, flat.values.numpy(), op=MPI.SUM)
        self.bytes_sent += allreduce_bytes(flat.payload_bytes, self._size)

    def close(self) -> None:
        """See `Strategy.close`. A process that ends before its last step ends the others, which wait for it."""
        if self._step < self.total_steps:
            from mpi4py.run import set_abort_status  # noqa: PLC0415 - an extra

            # Takes effect when the interpreter ends, after the reason has been printed.
            set_abort_status(1)


class ParamAvg(_MpiStrategy):
    """Trains alone on its own samples; every `avg_freq` epochs and at the end, all take the mean of all models.

    Floating-point buffers are averaged, too; the optimizer's momentum is not. Epochs are shares of the whole training,
    so that all processes meet equally often: see `meeting_steps`.

    Args:
        comm: all processes of the training.
        avg_freq: epochs between averages; 0: only at the end.
        n_epochs: of the whole training.
    """

    averages: int = 0

    def __init__(self, comm: MPI.Comm, *, avg_freq: int, n_epochs: int) -> None:
        super().__init__(comm)
        self._avg_freq = avg_freq
        self._n_epochs = n_epochs

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._tensors = averaged_tensors(model)
        self._flat = FlatTensors(self._tensors, _HOST)
        self._meetings = meeting_steps(self.total_steps, span=self._n_epochs, every=self._avg_freq)

    def after_step(self, loss: Tensor) -> None:
        """See `Strategy.after_step`."""
        super().after_step(loss)
        while self._meetings and self._meetings[0] <= self._step:
            del self._meetings[0]
            self._average()

    def _average(self) -> None:
        self._flat.take(self._tensors)
        # Before the sum, as a weighted average requires, so that both are computed in the same way.
        self._flat.values.mul_(self._weight())
        self._sum(self._flat)
        self._flat.give(self._tensors)
        self.averages += self._size > 1

    def _weight(self) -> float:
        """Weight of this process's model in the average; those of all processes add up to 1."""
        return 1 / self._size


class WeightedParamAvg(ParamAvg):
    """Like `ParamAvg`, with less weight for models that are far from the last average: see `weights_by_distance`.

    Args:
        comm: all processes of the training.
        avg_freq: epochs between averages; 0: only at the end.
        n_epochs: of the whole training.
        lambda_: how fast the weights fall with the distance; 0: plain mean.
    """

    def __init__(self, comm: MPI.Comm, *, avg_freq: int, n_epochs: int, lambda_: float) -> None:
        super().__init__(comm, avg_freq=avg_freq, n_epochs=n_epochs)
        self._lambda = lambda_

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`; the initial weights, the same everywhere, count as the first average."""
        super().begin(model, optimizer)
        self._parameter_count = sum(parameter.numel() for parameter in model.parameters())
        self._flat.take(self._tensors)
        self._last = self._parameters().copy()

    def _average(self) -> None:
        super()._average()
        self._last = self._parameters().copy()

    def _parameters(self) -> npt.NDArray[np.float32]:
        """The parameters in the buffer, without what follows them, such as running means."""
        found: npt.NDArray[np.float32] = self._flat.values.numpy()[: self._parameter_count]
        return found

    def _weight(self) -> float:
        own = np.array([relative_distance(self._parameters(), self._last)], np.float64)
        distances = np.empty(self._size, np.float64)
        self._comm.Allgather(own, distances)
        self.bytes_sent += (self._size - 1) * own.nbytes
        return float(weights_by_distance(distances, self._lambda)[self._comm.Get_rank()])


def relative_distance(model: npt.NDArray[np.float32], last: npt.NDArray[np.float32]) -> float:
    """How far a model has moved: ‖θ - θ_old‖ / (‖θ‖ + ‖θ_old‖), from 0 (not at all) to 1.

    Args:
        model: θ, shape (parameters,).
        last: θ_old, the last averaged model, same shape.
    """
    lengths = float(np.linalg.norm(model.astype(np.float64)) + np.linalg.norm(last.astype(np.float64)))
    if lengths == 0:
        return 0.0
    return float(np.linalg.norm(model.astype(np.float64) - last)) / lengths


def weights_by_distance(distances: npt.NDArray[np.float64], lambda_: float) -> npt.NDArray[np.float64]:
    """Weights g_i / Σ g_j of the models in an average, with g_i = exp(-λ d_i).

    They add up to 1, so that the weighted sum is an average of models.

    Args:
        distances: d of each process, 0..1, shape (processes,).
        lambda_: λ, at least 0.

    Returns:
        Shape (processes,), sum 1.
    """
    # Relative to the largest, which does not change the quotients: with a large λ all of them would become 0.
    gammas = np.exp(-lambda_ * (distances - distances.min()))
    weights: npt.NDArray[np.float64] = gammas / gammas.sum()
    return weights


class ParallelSgd(_MpiStrategy):
    """Each process computes the gradients of its part of every batch; all step with those of the whole batch.

    All processes have the same model at all times, except for running means, which are those of their own parts.
    """

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._flat = FlatTensors(self._parameters, _HOST)

    def part_of(self, batch: Tensor) -> Tensor:
        """See `Strategy.part_of`."""
        self._batch_size = len(batch)
        return part_of_batch(batch, self._comm.Get_rank(), self._size)

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """See `Strategy.backward`."""
        loss, right = backward_of_part(self.model, images, labels, weight=1 / self._batch_size, loss=self.loss)
        self._flat.take(parameter.grad for parameter in self._parameters)
        self._sum(self._flat)
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
        self._flat.give(parameter.grad for parameter in self._parameters if parameter.grad is not None)
        return loss, right
