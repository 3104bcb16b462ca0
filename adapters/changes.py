"""Notices that a model is no longer the one that was taken: a tensor replaced, a layer unfrozen, a part exchanged.

Two looks, both cheap beside a training step, whose own work per tensor takes several microseconds at least:

- Whether every exchanged tensor still stands where it was taken from: at every step, some 50 ns per tensor.
- Whether the rest has changed (parts, names, dtypes, shapes, devices, frozen parameters that are trained now): some
  modules at every step, in turn.

Must not know: copies, blends, nodes. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpwa.snapshot import Role

from .selection import Selection, holder_of

__all__ = ["MODULES_PER_STEP", "Watch"]

MODULES_PER_STEP = 16
"""How many modules of a model are looked at in one step. A change is found within modules / 16 steps."""

_Holder = Mapping[str, Tensor | None]


class _Form(NamedTuple):
    """What an exchanged tensor must remain."""

    holder: _Holder
    key: str
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size

    def has_changed(self) -> bool:
        tensor = self.holder[self.key]
        return (
            tensor is None
            or tensor.dtype is not self.dtype
            or tensor.shape != self.shape
            or tensor.device != self.device
        )


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
        if self._keys_now() != self._keys:
            return True
        if any(one is not then for one, then in zip(_children(self._module).values(), self._children, strict=True)):
            return True
        if any(holder[key] is not None for holder, key in self._absent):
            return True
        if any(getattr(self._parameters[key], "requires_grad", False) for key in self._frozen):
            return True
        return any(form.has_changed() for form in self._forms)

    def _keys_now(self) -> tuple[str, ...]:
        return (*self._parameters, "/", *self._buffers, "/", *_children(self._module).keys())


def _children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    return module._modules  # noqa: SLF001  (`named_children` leaves out a part that occurs twice)


class Watch:
    """Remembers what a model was when it was taken.

    Args:
        module: the model.
        selection: the tensors that were chosen of it.
    """

    def __init__(self, module: nn.Module, selection: Selection) -> None:
        chosen = selection.exchanged.values()
        self._places = [(holder_of(one.module, one.role), one.key, one.tensor) for one in chosen]
        exchanged: dict[nn.Module, dict[tuple[Role, str], Tensor]] = {}
        for one in chosen:
            exchanged.setdefault(one.module, {})[one.role, one.key] = one.tensor
        frozen = {id(tensor) for tensor in selection.frozen.values()}
        self._parts = [_Part(part, exchanged.get(part, {}), frozen) for part in module.modules()]
        self._next = 0

    def replaced(self) -> list[int]:
        """Numbers of the exchanged tensors, in the order of the selection, that another object stands for now."""
        # Nearly always none: one pass without a list.
        for holder, key, tensor in self._places:
            if holder.get(key) is not tensor:
                return [
                    number for number, (holder, key, tensor) in enumerate(self._places) if holder.get(key) is not tensor
                ]
        return []

    def follow(self, number: int, tensor: Tensor) -> None:
        """Expect another object for an exchanged tensor from here on."""
        holder, key, _ = self._places[number]
        self._places[number] = (holder, key, tensor)

    def has_changed(self, modules: int = MODULES_PER_STEP) -> bool:
        """Look at the next modules in turn."""
        for _ in range(min(modules, len(self._parts))):
            part = self._parts[self._next]
            self._next = (self._next + 1) % len(self._parts)
            if part.has_changed():
                return True
        return False

    def has_changed_anywhere(self) -> bool:
        """Look at all modules."""
        return any(part.has_changed() for part in self._parts)
