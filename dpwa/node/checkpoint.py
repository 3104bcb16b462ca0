"""What a checkpoint keeps of a node beside its model: its clock, and the numbers and arrays of its method.

A node that comes back alone is of a lineage of its own, whatever its checkpoint says: its former peers have trained on,
and whether its model may be averaged with theirs is a matter of its age, as with any new life. Where one launch has
started all nodes of a cluster at once, nobody has trained on. Then checkpoints of one lineage are one lineage again, of
a new name that follows from the old one and the launch's id, however far the moments lie apart at which they were made.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import hashlib
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
        "lineage": boundary.state.lineage.hex(),
        "method": method_name,
        "of_method": method.state_dict(),
        "of_outer": None if boundary.outer is None else boundary.outer.state_dict(),
    }


def restore(
    boundary: Boundary, method: Method, method_name: str, node: str, state: Mapping[str, Any], *, launch_id: str = ""
) -> None:
    """Take over what `to_keep` gave, before the first step; the model has been loaded.

    Of a newcomer that has copied a peer's model when it started, nothing: what was kept is of an older model.

    Args:
        boundary: of the node.
        method: of the node.
        method_name: as the cluster file has it.
        node: its name.
        state: what `to_keep` gave.
        launch_id: of the launch that has started all nodes of the cluster at once; empty: this node came back alone.

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
    if boundary.state.clock > 0:
        return  # it has joined a cluster that trained on: its model is a copy of a peer's, and so is its age
    lineage = boundary.state.lineage
    is_common = bool(launch_id and state.get("lineage"))
    if is_common:
        common = hashlib.sha256(f"{state['lineage']}/{launch_id}".encode()).digest()
        lineage = common[: len(lineage)]
    boundary.state = State(state["loss"], clock, lineage=lineage)
    method.load_state_dict(state["of_method"])
    if is_common:
        method.resumed_together()
        boundary.resume_together()
    if boundary.outer is not None and state["of_outer"] is not None:
        boundary.outer.load_state_dict(state["of_outer"])
