"""Which tensors of a PyTorch module are exchanged, which stay local by the config, and which cannot be exchanged.

The choice is made when dpwa takes the model, and again when the model has changed. A tensor then keeps its role: a
parameter that is frozen later is still exchanged, a buffer that was left out stays out.

Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dpwa import ITEM_BYTES, ConfigError, Inventory, Role, TensorSpec

from .process_groups import refuse_flat_shard
from .shards import held_here, is_part, part_name

__all__ = [
    "Chosen",
    "Selection",
    "form_problem",
    "holder_of",
    "is_written_elementwise",
    "plain_name",
    "select",
    "spec_of",
]


# Of `torch.compile`, and of torch's activation checkpointing.
_OF_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Chosen:
    """An exchanged tensor, and where its module keeps it.

    Attributes:
        tensor: what is read and written.
        role: how it is blended.
        module: the one it belongs to, or the first of several that share it.
        key: its name there.
        found: what the module has there: the tensor itself, or the sharded one of which it is this process's part.
    """

    tensor: Tensor
    role: Role
    module: nn.Module
    key: str
    found: Tensor

    def spec(self, name: str) -> TensorSpec:
        """Its place in the layout."""
        return spec_of(name, self.tensor, self.role)


@dataclass
class Selection:
    """The tensors of a module.

    Attributes:
        exchanged: by name, in the module's order.
        frozen: parameters that stay local because they need no gradient, by name.
        kept_buffers: buffers that stay local because the config keeps all of them, by name.
        ignored: tensors that cannot be averaged or are not state, by name: integers, empty ones, those outside the
            state dict, and those that are not finite.
        tied: names of tensors that are exchanged under another name, and that name.
        left_out: names of floating-point buffers that had no values yet, or values that are not finite.
    """

    exchanged: dict[str, Chosen] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)
    kept_buffers: dict[str, Tensor] = field(default_factory=dict)
    ignored: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def specs(self) -> Iterator[TensorSpec]:
        """The places of the exchanged tensors in a layout."""
        return (chosen.spec(name) for name, chosen in self.exchanged.items())

    def parameters(self) -> dict[str, Tensor]:
        """The exchanged parameters, by name."""
        return {name: chosen.found for name, chosen in self.exchanged.items() if chosen.role is Role.PARAMETER}

    def inventory(self) -> Inventory:
        """How many of each kind, and their bytes."""
        # What stays here may have several names, too.
        kept = {id(one): _bytes(held_here(one)) for one in (*self.frozen.values(), *self.kept_buffers.values())}
        ignored = {id(tensor): _bytes(tensor) for tensor in self.ignored.values()}
        return Inventory(
            exchanged_tensors=len(self.exchanged),
            exchanged_bytes=sum(_bytes(chosen.tensor) for chosen in self.exchanged.values()),
            kept_tensors=len(kept),
            kept_bytes=sum(kept.values()),
            ignored_tensors=len(ignored),
            ignored_bytes=sum(ignored.values()),
        )


def select(
    module: nn.Module,
    *,
    buffers: bool,
    frozen: bool,
    alone: bool = False,
    parts: bool = False,
    before: Selection | None = None,
) -> Selection:
    """Choose the tensors to exchange: each piece of memory once, however many names it has.

    Args:
        module: the model.
        buffers: floating-point buffers are exchanged.
        frozen: parameters that need no gradient are exchanged.
        alone: nothing will be exchanged, and so nothing is refused that others hold parts of.
        parts: each process of this node holds a part of the model, and exchanges that.
        before: the choice made when dpwa took the model; None: this is that first choice.

    Raises:
        ConfigError: a tensor has no values yet, none that are finite, or cannot be written element by element.
    """
    made = Selection()
    seen: dict[tuple[object, ...], str] = {}
    for full_name, found, part, key, role in _tensors(module):
        name, tensor = _of_this_process(plain_name(full_name), found, alone=alone, parts=parts)
        if role is Role.PARAMETER:
            was_taken = before is not None and name in before.exchanged
            if not (frozen or found.requires_grad or was_taken):
                made.frozen[name] = found
                continue
        elif not _is_persistent(part, key) or (before is not None and name in before.ignored):
            made.ignored[name] = tensor  # a constant or a cache; or left out before
            continue
        elif not buffers:
            (made.kept_buffers if tensor.is_floating_point() else made.ignored)[name] = tensor
            continue
        if not _has_elements(name, tensor):
            made.ignored[name] = tensor
            if role is Role.BUFFER and tensor.is_floating_point():
                made.left_out.append(name)
            continue
        memory = _memory(tensor)
        if memory in seen:
            made.tied[name] = seen[memory]
        elif before is None and not _is_finite(name, tensor, role):
            made.ignored[name] = tensor
            made.left_out.append(name)
        else:
            seen[memory] = name
            made.exchanged[name] = Chosen(tensor, role, part, key, found)
    return made


def _of_this_process(name: str, found: Tensor, *, alone: bool, parts: bool) -> tuple[str, Tensor]:
    """Name and memory of what this process holds of a tensor.

    Raises:
        ConfigError: a part that dpwa does not exchange.
    """
    if alone:
        return name, held_here(found)
    refuse_flat_shard(name, found)
    if is_part(found) and not parts:
        raise ConfigError(
            f"tensor {name}: is sharded over processes, which dpwa did not see when it took the model; make the "
            "adapter after fully_shard"
        )
    return part_name(name, found), held_here(found)


def form_problem(specs: Iterable[TensorSpec], before: Selection, now: Selection) -> str | None:
    """Name the first tensor by which a model is no longer the one that was taken; None if its layout is the same.

    Args:
        specs: of the module's exchanged tensors when dpwa took the model.
        before: the choice of that moment.
        now: the choice of this moment.
    """
    for then in specs:
        name, found = then.name, now.exchanged.get(then.name)
        if found is None:
            return f"tensor {name}: {_where_it_is(name, now)}, was exchanged"
        spec = found.spec(name)
        if spec.shape != then.shape:
            return f"tensor {name}: has the shape {list(spec.shape)} now, had {list(then.shape)}"
        if spec.dtype != then.dtype:
            return f"tensor {name}: has the dtype {spec.dtype} now, had {then.dtype}"
        if spec.role is not then.role:
            return f"tensor {name}: is a {spec.role.value} now, was a {then.role.value}"
    for name in now.exchanged:
        if name in before.exchanged:
            continue
        if name in before.frozen:
            return f"tensor {name}: is trained now, was frozen"
        if name in before.tied:
            return f"tensor {name}: has values of its own now, was tied to {before.tied[name]}"
        return f"tensor {name}: is new"
    return None


def _where_it_is(name: str, now: Selection) -> str:
    """What has become of a tensor that is no longer exchanged."""
    if name in now.tied:
        return f"is tied to {now.tied[name]} now"
    return "can no longer be averaged" if name in now.ignored else "is no longer in the model"


def plain_name(name: str) -> str:
    """A tensor's name without what wrappers put into it: a model that is compiled or recomputes is the plain one."""
    return ".".join(part for part in name.split(".") if part not in _OF_WRAPPERS)


def _is_persistent(module: nn.Module, key: str) -> bool:
    """Whether a module's buffer is in its state dict.

    The state dict itself does not say so: hooks rename its keys, as those of activation checkpointing do.
    """
    return key not in getattr(module, "_non_persistent_buffers_set", ())


def is_written_elementwise(tensor: Tensor) -> bool:
    """Whether each element has a place of its own in ordinary memory."""
    return (
        tensor.layout is torch.strided
        and not is_traceable_wrapper_subclass(tensor)
        and all(stride or size <= 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    )


def holder_of(module: nn.Module, role: Role) -> Mapping[str, Tensor | None]:
    """The module's own dictionary of its parameters or buffers; None stands for one that it does without."""
    holder = module._parameters if role is Role.PARAMETER else module._buffers  # noqa: SLF001  (there is no other way)
    return holder if isinstance(holder, dict) else _Scripted(holder)


class _Scripted(Mapping[str, "Tensor | None"]):
    """What a scripted module has instead of a dictionary."""

    def __init__(self, tensors: Any) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor | None:
        found: Tensor | None = self._tensors[key]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.keys())

    def __len__(self) -> int:
        return len(self._tensors)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module, str, Role]]:
    """Every place of a tensor: its name, the tensor, the module that has it, its name there, and its role."""
    modules = list(module.named_modules())
    for role in (Role.PARAMETER, Role.BUFFER):
        for prefix, part in modules:
            for key, tensor in holder_of(part, role).items():
                if tensor is not None:
                    yield (f"{prefix}.{key}" if prefix else key), tensor, part, key, role


def _has_elements(name: str, tensor: Tensor) -> bool:
    """Whether a tensor has elements that can be averaged: counters and indices have none.

    Raises:
        ConfigError: it has, but not in ordinary memory, to copy and to add to.
    """
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise ConfigError(f"tensor {name}: has no values yet; run the model once or load its weights before dpwa")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if is_traceable_wrapper_subclass(tensor):
        raise ConfigError(
            f"tensor {name}: is a {type(tensor).__name__}, expected an ordinary tensor; {_how_to_keep(tensor)}"
        )
    if tensor.layout is not torch.strided or tensor.is_nested:
        what = "nested" if tensor.is_nested else f"of the layout {tensor.layout}"
        raise ConfigError(
            f"tensor {name}: is {what}, expected an ordinary dense tensor; make it with .to_dense(), or "
            f"{_how_to_keep(tensor)}"
        )
    if not tensor.numel():
        return False
    if not is_written_elementwise(tensor):
        raise ConfigError(
            f"tensor {name}: is expanded, so that its elements share memory and cannot be blended one by one; "
            f"expected each in its own place; make it with .expand(...).clone()"
        )
    return True


def _how_to_keep(tensor: Tensor) -> str:
    if isinstance(tensor, nn.Parameter):
        return "keep it local with requires_grad_(False) (and `frozen_parameters: keep`) before dpwa"
    return "keep it local with persistent=False or `buffers: keep`"


def _is_finite(name: str, tensor: Tensor, role: Role) -> bool:
    """Whether all values of a tensor are finite.

    Raises:
        ConfigError: not those of a parameter.
    """
    if _dtype_name(tensor) not in ITEM_BYTES:
        return True  # the layout refuses it
    least, most = torch.aminmax(tensor.detach())  # no temporary tensor; NaN wins
    is_finite = bool(torch.isfinite(least) & torch.isfinite(most))
    if not is_finite and role is Role.PARAMETER:
        raise ConfigError(
            f"tensor {name}: holds NaN or infinite values, with which no peer would blend; expected finite ones; "
            "initialise it or load its weights before dpwa"
        )
    return is_finite


def spec_of(name: str, tensor: Tensor, role: Role) -> TensorSpec:
    """A tensor's place in a layout."""
    return TensorSpec(name, tuple(tensor.shape), _dtype_name(tensor), role)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> int:
    if nn.parameter.is_lazy(tensor):
        return 0
    return tensor.numel() * tensor.element_size()


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
