"""Notices that a model is no longer the one that was taken: a tensor replaced, a layer unfrozen, a part swapped.

It checks two things, both cheap beside a training step, which spends at least several microseconds on each tensor:

- At every step, whether each exchanged tensor is still where it was taken from.
- Whether anything else has changed: parts, names, dtypes, shapes, devices, frozen parameters that are now trained. Each
  step checks the next few modules in turn, so that 64 steps check all of them.

Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpwa import Role

from .selection import Selection, holder_of
from .shards import held_here

__all__ = ["STEPS_PER_ROUND", "Watch"]

STEPS_PER_ROUND = 64
"""Any change is found within this many steps."""

_Holder = Mapping[str, Tensor | None]


class _Form(NamedTuple):
    """What an exchanged tensor must remain."""

    holder: _Holder
    key: str
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size


class _Part:
    """One module as it was."""

    def __init__(self, module: nn.Module, exchanged: Mapping[tuple[Role, str], Tensor], frozen: set[int]) -> None:
        self._module = module
        self._parameters, self._buffers = holders = [holder_of(module, role) for role in (Role.PARAMETER, Role.BUFFER)]
        self._keys = self._keys_now()
        self._children = tuple(_children(module).values())
        self._forms = [
            _Form(self._parameters if role is Role.PARAMETER else self._buffers, key, one.dtype, one.device, one.shape)
            for (role, key), one in exchanged.items()
        ]
        self._frozen = [key for key, tensor in self._parameters.items() if id(tensor) in frozen]
        self._absent = [(holder, key) for holder in holders for key, tensor in holder.items() if tensor is None]

    def has_changed(self) -> bool:
        # Loops and not `any`: generators would double what this costs.
        if self._keys_now() != self._keys:
            return True
        for one, then in zip(_children(self._module).values(), self._children, strict=True):
            if one is not then:
                return True
        for holder, key in self._absent:
            if holder[key] is not None:
                return True
        for key in self._frozen:
            tensor = self._parameters[key]
            if tensor is not None and tensor.requires_grad:
                return True
        for holder, key, dtype, device, shape in self._forms:
            tensor = holder[key]
            if tensor is None or tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device:
                return True
        return False

    def _keys_now(self) -> tuple[str, ...]:
        return (*self._parameters, "/", *self._buffers, "/", *_children(self._module).keys())


def _children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    return module._modules  # noqa: SLF001  (`named_children` leaves out a part that occurs twice)


class Watch:
    """Remembers a model, and the tensors selected from it, as they were when it was taken."""

    def __init__(self, module: nn.Module, selection: Selection) -> None:
        chosen = selection.exchanged.values()
        self._places = [(holder_of(one.module, one.role), one.key, one.found) for one in chosen]
        self._parts_of_tensors = [(one.found, one.tensor) for one in chosen if one.found is not one.tensor]
        exchanged: dict[nn.Module, dict[tuple[Role, str], Tensor]] = {}
        for one in chosen:
            exchanged.setdefault(one.module, {})[one.role, one.key] = one.found
        frozen = {id(tensor) for tensor in selection.frozen.values()}
        self._parts = [_Part(part, exchanged.get(part, {}), frozen) for part in module.modules()]
        self._next = 0

    def replaced(self) -> list[int]:
        """Which exchanged tensors have been replaced by another object: their numbers in the order of the selection."""
        # Nearly always none: one pass without a list.
        for holder, key, tensor in self._places:
            if holder.get(key) is not tensor:
                return [
                    number for number, (holder, key, tensor) in enumerate(self._places) if holder.get(key) is not tensor
                ]
        return []

    def follow(self, number: int, tensor: Tensor) -> None:
        """From now on expect this object for an exchanged tensor."""
        holder, key, _ = self._places[number]
        self._places[number] = (holder, key, tensor)

    def has_changed(self) -> bool:
        """Check the next modules in turn, and where this process's part of each sharded tensor is."""
        for found, tensor in self._parts_of_tensors:
            if held_here(found) is not tensor:
                return True
        for _ in range(-(-len(self._parts) // STEPS_PER_ROUND)):
            part = self._parts[self._next]
            self._next = (self._next + 1) % len(self._parts)
            if part.has_changed():
                return True
        return False

    def has_changed_anywhere(self) -> bool:
        """Check all modules."""
        return any(part.has_changed() for part in self._parts)
