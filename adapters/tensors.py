"""The exchanged tensors of a PyTorch module: which they are, how they are copied out, how they are blended.

The tensors of a section lie behind each other in a snapshot. Those on a GPU are gathered there into one flat piece of
memory by a fused copy, so that one transfer per section crosses the bus, and back the same way: see `streams.py`.

Must not know: sockets, threads, the wire, streams. Runs in: the trainer's thread, which alone writes the model: in
place, under `torch.no_grad()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpwa.blending import Values
from dpwa.config import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.snapshot import Buffer, Layout, Role, Section, TensorSpec

from .streams import Copies, PinnedArrays, copies_for

__all__ = ["TorchModel", "plain_name"]


@dataclass(frozen=True)
class _Run:
    """Neighbouring tensors of one section on one device.

    Attributes:
        index: of the section.
        section: they belong to.
        first: their first element within the section.
        tensors: in the order of the layout.
    """

    index: int
    section: Section
    first: int
    tensors: list[Tensor]

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def stop(self) -> int:
        """One past their last element within the section."""
        return self.first + sum(tensor.numel() for tensor in self.tensors)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Flat memory of exactly these tensors, in their shapes."""
        made, first = [], 0
        for tensor in self.tensors:
            made.append(flat[first : first + tensor.numel()].view(tensor.shape))
            first += tensor.numel()
        return made

    @property
    def byte_range(self) -> tuple[int, int]:
        """Their first byte within a snapshot, and one past their last."""
        start, item_bytes = self.section.start_byte, self.section.item_bytes
        return start + self.first * item_bytes, start + self.stop * item_bytes


class TorchModel:
    """The exchanged tensors of a module, as `dpwa.node.Model` wants them.

    Args:
        module: the model.
        config: says whether buffers and frozen parameters belong to them.
        find_copies: what moves the tensors of a device; None for one that is read and written directly.

    Raises:
        ConfigError: a tensor cannot be exchanged.
    """

    def __init__(
        self,
        module: nn.Module,
        config: ClusterConfig,
        find_copies: Callable[[torch.device, PinnedArrays], Copies | None] = copies_for,
    ) -> None:
        tensors = _exchanged_tensors(
            module, buffers=config.buffers == "blend", frozen=config.frozen_parameters == "blend"
        )
        self.layout = Layout(
            TensorSpec(name, tuple(tensor.shape), _dtype_name(tensor), role) for name, (tensor, role) in tensors.items()
        )
        self._pinned = PinnedArrays()
        self._direct: list[_Run] = []
        self._gpus: list[_Gpu] = []
        runs = [
            run
            for index, section in enumerate(self.layout.sections)
            for run in _runs(index, section, [tensors[spec.name][0] for spec in section.tensors])
        ]
        for device in dict.fromkeys(run.device for run in runs):
            copies, here = find_copies(device, self._pinned), [run for run in runs if run.device == device]
            if copies is None:
                self._direct += here
            else:
                self._gpus.append(_Gpu(here, copies))
        # The same few buffers come again and again; making views of each once keeps a step cheap for small models.
        self._views: dict[int, tuple[Any, list[list[Tensor]]]] = {}
        self._value_views: dict[tuple[int, int], tuple[Any, list[Tensor]]] = {}

    @torch.no_grad()
    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
        """See `dpwa.node.Model`."""
        if id(buffer) not in self._views:
            raw = torch.from_numpy(buffer)
            views = [run.views(raw[slice(*run.byte_range)].view(run.dtype)) for run in self._direct]
            self._views[id(buffer)] = (buffer, views)  # holding the buffer keeps its id from being given away
        for views_of_run, run in zip(self._views[id(buffer)][1], self._direct, strict=True):
            torch._foreach_copy_(views_of_run, run.tensors)
        if not self._gpus:
            return None
        all_ready = [gpu.copy_into(buffer) for gpu in self._gpus]

        def ready() -> None:
            for one_ready in all_ready:
                one_ready()

        return ready

    @torch.no_grad()
    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.node.Model`."""
        for run in self._direct:
            section_values = values[run.index]
            views = self._views_of_values(section_values, run)
            _blend(run.tensors, views, factor, is_difference=section_values.is_difference)
        for gpu in self._gpus:
            gpu.blend(values, factor)

    def close(self) -> None:
        """Wait for copies under way, and let go of the memory that was pinned. The node has been closed."""
        for gpu in self._gpus:
            gpu.close()
        self._pinned.close()

    def _views_of_values(self, values: Values, run: _Run) -> list[Tensor]:
        key = (id(values.array), run.first)
        if key not in self._value_views:
            flat = torch.from_numpy(values.array)[run.first : run.stop]
            self._value_views[key] = (values.array, run.views(flat))
        return self._value_views[key][1]


class _Gpu:
    """The tensors of one GPU, and flat memory beside them in which they leave and in which values arrive."""

    def __init__(self, runs: list[_Run], copies: Copies) -> None:
        self._runs = runs
        self._copies = copies
        # Each made when it is first needed: a node alone needs none. Flat memory, and its parts in the tensors' shapes.
        self._leaving: list[tuple[Tensor, list[Tensor]]] = []
        self._arriving: list[tuple[Tensor, list[Tensor]]] = []

    def copy_into(self, buffer: Buffer) -> Callable[[], None]:
        self._leaving = self._leaving or [self._flat(run, run.dtype) for run in self._runs]
        host = self._copies.pin(buffer)

        def gather() -> None:
            for (_, views), run in zip(self._leaving, self._runs, strict=True):
                torch._foreach_copy_(views, run.tensors)

        moves = [
            (flat, host.part(*run.byte_range).typed(run.dtype))
            for (flat, _), run in zip(self._leaving, self._runs, strict=True)
        ]
        return self._copies.to_host(gather, moves)

    def blend(self, values: Sequence[Values], factor: float) -> None:
        hosts = [self._copies.pin(values[run.index].array).part(run.first, run.stop) for run in self._runs]
        self._arriving = self._arriving or [
            self._flat(run, host.plain.dtype) for run, host in zip(self._runs, hosts, strict=True)
        ]

        def use() -> None:
            for (_, views), run in zip(self._arriving, self._runs, strict=True):
                _blend(run.tensors, views, factor, is_difference=values[run.index].is_difference)

        moves = [(host, flat) for host, (flat, _) in zip(hosts, self._arriving, strict=True)]
        self._copies.to_device(moves, use)

    def close(self) -> None:
        self._copies.close()

    def _flat(self, run: _Run, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        flat = self._copies.staging(run.stop - run.first, dtype)
        return flat, run.views(flat)


def _runs(index: int, section: Section, tensors: list[Tensor]) -> list[_Run]:
    """A section's tensors, split where the device changes: one run, but for models that are spread over devices."""
    runs: list[_Run] = []
    first = 0
    for tensor in tensors:
        if runs and runs[-1].device == tensor.device:
            runs[-1].tensors.append(tensor)
        else:
            runs.append(_Run(index, section, first, [tensor]))
        first += tensor.numel()
    return runs


def _blend(tensors: list[Tensor], views: list[Tensor], factor: float, *, is_difference: bool) -> None:
    there = [view.to(tensor.device) for view, tensor in zip(views, tensors, strict=True)]
    # Half precision is blended in float32 and rounded once.
    is_narrow = tensors[0].dtype != there[0].dtype
    wide = [tensor.to(there[0].dtype) for tensor in tensors] if is_narrow else tensors
    if is_difference:
        torch._foreach_add_(wide, there, alpha=factor)
    else:
        torch._foreach_lerp_(wide, there, factor)
    if is_narrow:
        torch._foreach_copy_(tensors, wide)


def plain_name(name: str) -> str:
    """A tensor's name without what `torch.compile` puts into it, so that compiled and plain models are one model.

    The `module.` of DataParallel and DistributedDataParallel stays: a model may have a part of that name itself. Give
    dpwa the model inside.
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _exchanged_tensors(module: nn.Module, *, buffers: bool, frozen: bool) -> dict[str, tuple[Tensor, Role]]:
    """Name to tensor and role; every memory once, however many names it has.

    Raises:
        ConfigError: a tensor has no values yet, or cannot be written element by element.
    """
    persistent = module.state_dict(keep_vars=True).keys()
    candidates: list[tuple[str, Tensor, Role]] = [
        (name, parameter, Role.PARAMETER)
        for name, parameter in module.named_parameters()
        if frozen or parameter.requires_grad
    ]
    if buffers:
        # Buffers outside the state dict are constants or caches, not learned.
        candidates += [(name, buffer, Role.BUFFER) for name, buffer in module.named_buffers() if name in persistent]
    chosen: dict[str, tuple[Tensor, Role]] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor, role in candidates:
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ConfigError(f"tensor {name}: has no values yet; run the model once or load its weights before dpwa")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue  # counters and indices cannot be averaged
        memory = _memory(tensor)
        if not tensor.numel() or memory in seen:
            continue  # nothing to exchange, or tied to a tensor that is exchanged already
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ConfigError(
                f"tensor {name}: is expanded, so that its elements share memory and cannot be blended one by one; "
                f"expected each in its own place; make it with .expand(...).clone()"
            )
        seen.add(memory)
        chosen[plain_name(name)] = (tensor, role)
    return chosen


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that occupy the same memory, also when one is a transposed or reshaped view of the other."""
    runs: list[tuple[int, int]] = []  # (stride, size) of each dimension, neighbours that follow on each other merged
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if runs and stride == runs[-1][0] * runs[-1][1]:
            first_stride, first_size = runs.pop()
            runs.append((first_stride, first_size * size))
        elif size > 1:
            runs.append((stride, size))
    return (tensor.device, tensor.data_ptr(), *runs)
