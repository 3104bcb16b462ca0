"""What a checkpoint keeps of a node beside its model: its clock, and the numbers and arrays of its method.

It does not keep the lineage. A model that comes back is as old as its checkpoint, while its former peers have trained
on: whether it may be averaged with theirs is a matter of its age, as with any new life.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpwa.errors import ConfigError
from dpwa.methods.base import Method
from dpwa.node.boundary import Boundary
from dpwa.snapshot.state import MAX_COUNTER, State

__all__ = ["restore", "to_keep"]


def to_keep(boundary: Boundary, method: Method, method_name: str) -> dict[str, Any]:
    """What a checkpoint keeps."""
    return {
        "clock": boundary.state.clock,
        "loss": boundary.state.loss,
        "method": method_name,
        "of_method": method.state_dict(),
        "of_outer": None if boundary.outer is None else boundary.outer.state_dict(),
    }


def restore(boundary: Boundary, method: Method, method_name: str, node: str, state: Mapping[str, Any]) -> None:
    """Take over what `to_keep` gave, before the first step; the model has been loaded.

    Raises:
        ConfigError: it is of another method or model, or damaged.
    """
    if boundary.step:
        raise ConfigError(f"node {node}: a checkpoint is loaded before the first step, not after {boundary.step}")
    if state.get("method") != method_name:
        raise ConfigError(
            f"node {node}: the checkpoint was made with method {state.get('method')}, the cluster file says "
            f"{method_name}"
        )
    clock = float(state["clock"])
    if not (math.isfinite(clock) and 0 <= clock <= MAX_COUNTER):
        raise ConfigError(f"node {node}: the checkpoint has a clock of {clock}, expected a number from 0 to 2^53")
    boundary.state = State(state["loss"], clock, lineage=boundary.state.lineage)
    method.load_state_dict(state["of_method"])
    if boundary.outer is not None and state["of_outer"] is not None:
        boundary.outer.load_state_dict(state["of_outer"])
