"""custom_data_parallel: one process, a replica of the model per GPU or per thread, gradients summed by hand.

Must not know: data sets, networks. Runs in: the training thread, and one thread per replica while a batch is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from dpwa.errors import InternalError
from dpwa.lab.strategies.collective import backward_of_part
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.losses import Loss
from dpwa.lab.training.strategy import Strategy

__all__ = ["CustomDataParallel", "make"]


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:  # noqa: ARG001 - there is only one process
    """The strategy of the one process.

    Args:
        trial: of the strategy custom_data_parallel.
        rank: 0.
        size: 1.
        folder: of the trial.
    """
    return CustomDataParallel()


class CustomDataParallel(Strategy):
    """Splits every batch over replicas of the model, each of which computes its part in its own thread.

    The gradients are added up in the first replica, which is the model itself, and the optimizer steps with them.
    Replicas on the model's device share the memory of its parameters; that is safe because nothing writes them while
    gradients are computed. Replicas on other devices get the new parameters after each step. Running means of the
    model are those of the first part.

    `bytes_sent` counts what goes between devices: per step, gradients one way and parameters the other; nothing
    between threads.

    Args:
        devices: of the replicas, the model's first. None: all GPUs if the model is on a GPU, otherwise one replica for
            each thread that torch may use in this process.

    Attributes:
        replicas: the model itself, then the others; set by `begin`.
    """

    def __init__(self, devices: Sequence[torch.device] | None = None) -> None:
        self._devices = devices
        self._threads_before = torch.get_num_threads()
        self._threads: ThreadPoolExecutor | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        own = next(model.parameters()).device
        devices = _devices_beside(own) if self._devices is None else self._devices
        self.replicas = [model, *(_replica(model, device) for device in devices[1:])]
        # One thread per replica: torch would start as many again for each of them, and those of the training thread
        # would spin while it waits, and take the cores from the replicas.
        torch.set_num_threads(1)
        self._threads = ThreadPoolExecutor(len(devices), "replica", initializer=lambda: torch.set_num_threads(1))
        self._payload_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """See `Strategy.backward`."""
        if self._threads is None:
            raise InternalError("custom_data_parallel: got a batch before `begin`")
        count = len(labels)
        images_of = torch.tensor_split(images, len(self.replicas))
        labels_of = torch.tensor_split(labels, len(self.replicas))
        # A batch may have fewer samples than there are replicas.
        parts = [part for part in zip(self.replicas, images_of, labels_of, strict=True) if len(part[2])]
        computed = [self._threads.submit(_compute, *part, weight=1 / count, loss=self.loss) for part in parts]
        results = [future.result() for future in computed]
        self._gather([replica for replica, _, _ in parts[1:]])
        losses = [
            loss.to(labels.device) * (len(part[2]) / count) for (loss, _), part in zip(results, parts, strict=True)
        ]
        return torch.stack(losses).sum(), sum(right for _, right in results)

    @torch.no_grad()
    def _gather(self, replicas: Sequence[nn.Module]) -> None:
        for replica in replicas:
            for parameter, other in zip(self.model.parameters(), replica.parameters(), strict=True):
                if other.grad is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = other.grad.to(parameter.device)
                else:
                    parameter.grad.add_(other.grad.to(parameter.device))
                other.grad = None

    @torch.no_grad()
    def after_step(self, loss: Tensor) -> None:  # noqa: ARG002
        """See `Strategy.after_step`."""
        first = next(self.model.parameters()).data_ptr()
        for replica in self.replicas:
            if next(replica.parameters()).data_ptr() == first:
                continue
            for parameter, other in zip(self.model.parameters(), replica.parameters(), strict=True):
                other.copy_(parameter)
            self.bytes_sent += 2 * self._payload_bytes

    def close(self) -> None:
        """See `Strategy.close`."""
        if self._threads is not None:
            self._threads.shutdown()
        torch.set_num_threads(self._threads_before)


def _devices_beside(own: torch.device) -> list[torch.device]:
    """Devices of the replicas for a model on this device, which comes first."""
    if own.type == "cpu":
        return [own] * torch.get_num_threads()
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [own, *(gpu for gpu in gpus if gpu != own)]


def _replica(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model on a device; on the same device it shares the memory of the parameters."""
    replica = copy.deepcopy(model).to(device)
    for parameter, other in zip(model.parameters(), replica.parameters(), strict=True):
        if other.device == parameter.device:
            other.data = parameter.data
    return replica


def _compute(replica: nn.Module, images: Tensor, labels: Tensor, *, weight: float, loss: Loss) -> tuple[Tensor, int]:
    device = next(replica.parameters()).device
    return backward_of_part(replica, images.to(device), labels.to(device), weight=weight, loss=loss)
