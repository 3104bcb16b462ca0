"""What a node needs of a model, and how much of it is exchanged.

Must not know: frameworks, methods. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpwa.snapshot.layout import Buffer, Layout
from dpwa.snapshot.staging import Values

__all__ = ["Inventory", "Model"]


@dataclass(frozen=True)
class Inventory:
    """How much of a model is exchanged. Tied tensors count once.

    Attributes:
        exchanged_tensors: tensors in the layout.
        exchanged_bytes: their bytes.
        kept_tensors: tensors that the config keeps local: frozen parameters, and with `buffers: keep` the buffers.
        kept_bytes: their bytes.
        ignored_tensors: tensors that cannot be averaged or are no state.
        ignored_bytes: their bytes.
    """

    exchanged_tensors: int
    exchanged_bytes: int
    kept_tensors: int = 0
    kept_bytes: int = 0
    ignored_tensors: int = 0
    ignored_bytes: int = 0


class Model(Protocol):
    """What a node needs of a model; the adapters implement it.

    A model that holds more than it exchanges may have an attribute `inventory`, an `Inventory`, to tell of it.
    """

    @property
    def layout(self) -> Layout:
        """The exchanged tensors."""

    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
        """Copy the exchanged tensors into a buffer in the order of the layout. The same few buffers come again.

        Returns:
            None if the bytes are there. Else a function that blocks until they are, of the values of this moment, and
            until the values of the last `blend` are no longer read. It is called once, from any thread.
        """

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """Apply an exchange in place: add `factor` times a difference, or go the share `factor` towards a value.

        All of the way, a factor of 1, must end at exactly that value, whatever the model was before.
        The values may be read after the return, until the function that the next `copy_into` returns has ended.
        """
