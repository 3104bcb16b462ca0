"""The arrays of NoLoCo: a node's anchor beside its model, how it travels, and the outer step of a pair.

Apart from the method itself, so that reading the cluster file, for which the method declares its options, does not
import numpy.

Must not know: sockets, threads, when nodes meet. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.errors import InternalError
from dpwa.methods.outer import OuterOptimizer
from dpwa.snapshot.layout import Buffer, Layout, Role, Section, TensorSpec
from dpwa.snapshot.staging import Values, parameter_arrays, section_values

__all__ = ["PairedAnchor"]


class PairedAnchor:
    """Anchor and momentum of one node, for a layout.

    Args:
        layout: of the model.
        beta: how much of the mean progress the anchor goes.
        gamma: how much the anchors of a pair pull at each other.
        momentum: share of the last outer step in the next.
    """

    def __init__(self, layout: Layout, *, beta: float, gamma: float, momentum: float) -> None:
        self._layout = layout
        self._options: dict[str, Any] = {"learning_rate": beta, "anchor_pull": gamma, "momentum": momentum}
        self._outer: OuterOptimizer | None = None
        self._restarts = True

    @property
    def extended_layout(self) -> Layout:
        """The layout of the model, and behind it an anchor for each section of parameters."""
        anchors = [
            TensorSpec(f"anchor of {section.dtype} parameters", (section.size,), str(section.value_type), Role.ANCHOR)
            for section in self._layout.sections
            if section.role is Role.PARAMETER
        ]
        return Layout([*self._layout.tensors, *anchors])

    @property
    def steps(self) -> int:
        """Outer steps made."""
        return 0 if self._outer is None else self._outer.steps

    def restart(self) -> None:
        """The next snapshot is the new anchor."""
        self._restarts = True

    def fill(self, own: Buffer, rest: Buffer, sections: tuple[Section, ...]) -> None:
        """Write the anchor into a snapshot; see `Method.fill`."""
        theta, outer = self._parameters(own), self._outer
        if outer is None:
            outer = self._outer = OuterOptimizer(theta, nesterov=False, **self._options)
        elif self._restarts:
            outer.restart(theta)
        self._restarts = False
        model_bytes = len(own)
        for section, anchor in zip(sections, outer.anchors, strict=True):
            start = section.start_byte - model_bytes
            rest[start : start + anchor.nbytes].view(anchor.dtype)[:] = anchor

    def pair_step(self, reference: memoryview, differences: Sequence[Values]) -> bool:
        """One outer step with a peer; `differences` become the increments of the model, in place.

        Args:
            reference: this node's snapshot that the differences were made against.
            differences: the peer's model and anchor minus those of the reference, section by section.

        Returns:
            False if the values are not finite or too large; then nothing has changed.
        """
        if self._outer is None:
            raise InternalError("a pair before the first snapshot")
        memory = np.frombuffer(reference, np.uint8)
        theta = self._parameters(memory)
        parameters = [values.array for values in differences if values.section.role is Role.PARAMETER]
        anchors = [values.array for values in differences if values.section.role is Role.ANCHOR]
        if not self._outer.pair_step(theta, parameters, anchors, out=parameters):
            return False
        for values in differences:
            if values.section.role.is_interpolated:
                _meet(values, memory)
            elif values.section.role is Role.MOMENTUM:
                np.multiply(values.array, 0.5, out=values.array)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep; empty before the first snapshot."""
        return {} if self._outer is None else dict(self._outer.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: it is of another model, or damaged.
        """
        zeros = [
            np.zeros(section.size, section.value_type)
            for section in self._layout.sections
            if section.role is Role.PARAMETER
        ]
        outer = OuterOptimizer(zeros, nesterov=False, **self._options)
        outer.load_state_dict(state)
        self._outer, self._restarts = outer, False

    def _parameters(self, memory: Buffer) -> list[npt.NDArray[Any]]:
        return parameter_arrays(self._layout, memory)


def _meet(values: Values, memory: Buffer) -> None:
    """Running statistics or moments of both in the middle, in place; they have no outer step."""
    np.add(values.array, section_values(values.section, memory), out=values.array)
    np.multiply(values.array, 0.5, out=values.array)
