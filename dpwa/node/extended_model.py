"""A model together with what its method sends beside it, as one thing to copy.

Must not know: what the method keeps there. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dpwa.errors import ConfigError
from dpwa.methods.base import Method
from dpwa.snapshot.layout import Buffer, Role, Section
from dpwa.snapshot.model import Inventory, Model
from dpwa.snapshot.staging import Values

__all__ = ["ExtendedModel"]


class ExtendedModel:
    """See `Model` for the methods.

    Args:
        model: the model.
        method: may add tensors behind those of the model.

    Raises:
        ConfigError: the method scales each training step, and the model's precision does not bear that.
    """

    def __init__(self, model: Model, method: Method) -> None:
        self._model = model
        self._method = method
        self._sections = len(model.layout.sections)
        self._model_bytes = model.layout.total_bytes
        self.layout = method.extend(model.layout)
        self._is_extended = self.layout is not model.layout
        self.inventory = _inventory(model)
        """What of the model is exchanged, without what the method adds."""
        # The same few buffers come again; an adapter remembers each by its identity.
        self._parts: dict[int, tuple[Buffer, Buffer, Buffer]] = {}
        self._snapshots: dict[tuple[int, bool], tuple[Buffer, tuple[Values, ...]]] = {}
        if method.corrects_steps and not self.can_go_towards:
            raise ConfigError(
                "a model with parameters in half precision cannot be trained by a method that scales each step, such "
                "as sgp; use another method or sgp: {debias: false}, or keep the parameters in float32 and the "
                "computation in half precision (AMP)"
            )

    def close(self) -> None:
        """Let go of the snapshots' memory. Nothing is copied or blended any more."""
        self._parts.clear()
        self._snapshots.clear()

    @property
    def own_sections(self) -> tuple[Section, ...]:
        """Those of the model itself."""
        return tuple(self.layout.sections[: self._sections])

    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
        """See `Model.copy_into`."""
        if not self._is_extended:
            return self._model.copy_into(buffer)
        parts = self._parts.get(id(buffer))
        if parts is None:
            parts = self._parts[id(buffer)] = (buffer, buffer[: self._model_bytes], buffer[self._model_bytes :])
        _, own, rest = parts
        ready = self._model.copy_into(own)
        if ready is not None:
            ready()  # what is added may be made of the copy
        self._method.fill(own, rest, self.layout.sections[self._sections :])
        return None

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `Model.blend`."""
        self._model.blend(values[: self._sections], factor)

    @property
    def can_go_towards(self) -> bool:
        """Whether the parameters travel in the type that they are blended in."""
        return all(
            section.role is not Role.PARAMETER or section.value_type.itemsize == section.item_bytes
            for section in self.layout.sections[: self._sections]
        )

    def go_towards(self, buffer: Buffer, share: float, *, with_momentum: bool = False) -> None:
        """Go the share of the way back to a snapshot, or, if it is negative, away from it.

        Running statistics and moments stay as they are.

        Args:
            buffer: the snapshot's bytes, one of the few buffers that `copy_into` was given.
            share: of the way.
            with_momentum: an optimizer's momentum goes with the parameters; otherwise they go alone.
        """
        key = (id(buffer), with_momentum)
        known = self._snapshots.get(key)
        if known is None:
            goes = (Role.PARAMETER, Role.MOMENTUM) if with_momentum else (Role.PARAMETER,)
            sections = self.layout.sections[: self._sections]
            values = tuple(_values(section, buffer, goes=section.role in goes) for section in sections)
            known = self._snapshots[key] = (buffer, values)
        self._model.blend(known[1], share)


def _inventory(model: Model) -> Inventory:
    told = getattr(model, "inventory", None)
    if isinstance(told, Inventory):
        return told
    specs = model.layout.tensors
    return Inventory(exchanged_tensors=len(specs), exchanged_bytes=sum(spec.size_bytes for spec in specs))


def _values(section: Section, buffer: Buffer, *, goes: bool) -> Values:
    """A section of a snapshot as values to go to; one that does not go: a difference of zeros."""
    if not goes:
        return Values(section, np.zeros(section.size, section.value_type), is_difference=True)
    array = buffer[section.start_byte : section.stop_byte].view(section.value_type)
    return Values(section, array, is_difference=False)
