"""Loads a checkpoint into the objects of a script: model, optimizer, and what else it keeps.

Must not know: nodes, where the checkpoint comes from. Runs in: the trainer's thread, before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dpwa import ConfigError

from .checkpoint_files import Found
from .plain_state import from_plain

__all__ = ["Kept", "Training"]


class Kept(Protocol):
    """A part of a training that a checkpoint keeps: a scheduler, a sampler, a second model."""

    def state_dict(self) -> Any:
        """Tensors, numbers, text, lists and mappings."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from that."""


@dataclass(frozen=True)
class Training:
    """What a script trains.

    Attributes:
        node: name of the node.
        folder: of its checkpoints.
        module: the model.
        optimizer: the one that trains it; None: the script has not said.
        parts: what else is kept, by name.
    """

    node: str
    folder: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    parts: Mapping[str, Kept]

    def restore(self, found: Found) -> dict[str, Any]:
        """Load a checkpoint into them; all that it has.

        Raises:
            ConfigError: it is of another training.
        """
        try:
            state: dict[str, Any] = from_plain(found.plain, found.tensors)
            self._check(found.path, state)
            self.module.load_state_dict(state["model"])
            if self.optimizer is not None:
                self.optimizer.load_state_dict(state["optimizer"])
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise self._of_another(found.path, f"it cannot be loaded ({error})") from error
        return state

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        """Compare what was kept with what the script has, before anything is changed."""
        theirs, own = state["model"], self.module.state_dict()
        for name in [*own, *theirs]:
            there, here = _form(theirs.get(name)), _form(own.get(name))
            if there != here:
                raise self._of_another(path, f"{name} is {there} there, and {here} in this script's model")
        kind = type(self.optimizer).__name__
        if state["optimizer_kind"] != kind:
            raise self._of_another(path, f"its optimizer is {state['optimizer_kind']}, this script's {kind}")
        if sorted(state["parts"]) != sorted(self.parts):
            names = [", ".join(sorted(parts)) or "nothing" for parts in (state["parts"], self.parts)]
            raise self._of_another(
                path, f"it keeps {names[0]} beside the model, this script's checkpoint={{...}} {names[1]}"
            )

    def _of_another(self, path: Path, difference: str) -> ConfigError:
        return ConfigError(
            f"node {self.node}: the checkpoint {path} is of another training: {difference}; name another run folder, "
            f"or remove {self.folder}"
        )


def _form(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "missing" if value is None else f"a {type(value).__name__}"
