"""What strategies share whose processes wait for each other: parts of a batch, when to meet, bytes sent.

Must not know: MPI, torch.distributed, threads. Runs in: the training thread; `backward_of_part` also in the thread of a
replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dpwa.lab.study.trial import step_at
from dpwa.lab.training.losses import LOSSES, Loss

__all__ = ["FlatTensors", "allreduce_bytes", "averaged_tensors", "backward_of_part", "meeting_steps", "part_of_batch"]


def part_of_batch(batch: Tensor, rank: int, size: int) -> Tensor:
    """The samples of a batch that one of several processes computes: parts differ by at most one sample.

    Args:
        batch: indices, shape (batch_size,).
        rank: of the process, from 0.
        size: number of processes.

    Returns:
        A slice, which is empty where there are fewer samples than processes.
    """
    return torch.tensor_split(batch, size)[rank]


def backward_of_part(
    model: nn.Module, images: Tensor, labels: Tensor, *, weight: float, loss: Loss = LOSSES["cross_entropy"]
) -> tuple[Tensor, int]:
    """Computes `weight` times the gradient of the summed loss of a part of a batch.

    With a weight of 1 / (samples of the whole batch), the gradients of all parts add up to that of the mean loss over
    the batch, whatever the sizes of the parts; an empty part gives zeros.

    Args:
        model: gets the gradients.
        images: the model's input, of the part.
        labels: int64, shape (count,), or (count, length) for sequences; may be empty.
        weight: of the sum.
        loss: what is summed.

    Returns:
        Mean loss over the part (0 for an empty one), a tensor without gradient of one element, and how many of its
        labels were predicted.
    """
    scores = model(images)
    # The loss of a sequence is the mean over its characters.
    total = loss(scores, labels, reduction="sum") / labels.shape[1:].numel()
    (total * weight).backward()  # type: ignore[no-untyped-call]
    right = int((scores.argmax(dim=1) == labels).sum())
    return total.detach() / max(1, len(labels)), right


def meeting_steps(own_steps: int, *, span: int, every: int) -> list[int]:
    """The steps after which a process meets the others, if they meet `every` so many parts of `span` and at the end.

    Processes whose shards differ by some samples may make different numbers of steps. So meetings are placed by the
    share of the training that is done: their number depends only on `span` and `every`, which are the same everywhere,
    and no process waits for a meeting that another one does not attend.

    Args:
        own_steps: of this process.
        span: length of the training, in epochs or steps.
        every: distance between meetings, in the same unit; 0: they meet at the end only.

    Returns:
        Numbers of steps, in order; the last one is `own_steps`. A number that occurs twice is two meetings.
    """
    ends = [*(range(every, span, every) if every else ()), span]
    return [step_at(end, span, own_steps) for end in ends]


def allreduce_bytes(payload_bytes: int, size: int) -> int:
    """Bytes that each of `size` processes sends in a ring all-reduce: 2 (n - 1)/n of the payload.

    Each process sends n - 1 of n parts to add them up, and as many to hand round the sums (Patarasu and Yuan, 2009).
    Other algorithms send at least as much; what a library really does is not measured.
    """
    return 2 * (size - 1) * payload_bytes // size


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """What is averaged of a model: its parameters, then its buffers of floating-point numbers."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [*(parameter.detach() for parameter in model.parameters()), *buffers]


class FlatTensors:
    """One float32 buffer for many tensors, so that an all-reduce is one call.

    Args:
        like: tensors of these shapes will be copied in.
        device: of the buffer.

    Attributes:
        values: shape (number of all elements,).
    """

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        sizes = [tensor.numel() for tensor in like]
        self.values = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        parts = torch.split(self.values, sizes)
        self._views = [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    @property
    def payload_bytes(self) -> int:
        """Size of the buffer."""
        return self.values.numel() * self.values.element_size()

    @torch.no_grad()
    def take(self, tensors: Iterable[Tensor | None]) -> None:
        """Copies tensors in; None counts as zeros."""
        for view, tensor in zip(self._views, tensors, strict=True):
            if tensor is None:
                view.zero_()
            else:
                view.copy_(tensor)

    @torch.no_grad()
    def give(self, tensors: Iterable[Tensor]) -> None:
        """Copies the values out."""
        for view, tensor in zip(self._views, tensors, strict=True):
            tensor.copy_(view)
