"""Shards: models of which each process of an island holds a part, under FSDP2 (`fully_shard`).

A part travels by itself: each process exchanges its own with the process at the same place of another island. In the
layout a part has the name of the tensor and of what of it the process holds, such as `0.weight[4:8]`, so that only
equal parts of equal tensors are averaged.

Must not know: nodes, configs. Runs in: the trainer's thread.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, distributed, nn

from dpwa import ConfigError

__all__ = [
    "gathered_state",
    "group_of_shards",
    "held_here",
    "is_part",
    "part_name",
    "refuse_nothing",
    "refuse_whole",
    "return_to_shards",
    "whole_form",
]

_EXPECTED = (
    "expected a model of which fully_shard has sharded all exchanged parameters over the processes of its island"
)


def is_part(tensor: Tensor) -> bool:
    """Whether other processes hold other parts of a tensor."""
    return _is_dtensor(tensor) and _mesh(tensor).size() > 1


def held_here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; the tensor itself, where that is all.

    Always the same object, as long as the tensor has the same memory. (`to_local` makes a new one in each call.)
    """
    local: Tensor = tensor._local_tensor if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]  # noqa: SLF001
    return local


def part_name(name: str, tensor: Tensor) -> str:
    """The name of what this process holds of a tensor, such as `0.weight[4:8]`.

    Raises:
        ConfigError: the tensor is divided in another way than fully_shard divides a model over an island.
    """
    if not is_part(tensor):
        return name
    mesh_dim, dim = _division(name, tensor)
    place, count = _mesh(tensor).get_local_rank(mesh_dim), _mesh(tensor).size(mesh_dim)
    length = -(-tensor.shape[dim] // count)
    first = min(length * place, tensor.shape[dim])
    stop = min(first + length, tensor.shape[dim])
    if held_here(tensor).shape != (*tensor.shape[:dim], stop - first, *tensor.shape[dim + 1 :]):
        raise ConfigError(
            f"tensor {name}: this process holds {list(held_here(tensor).shape)} of {list(tensor.shape)}, which is not "
            f"part {place + 1} of {count} in dimension {dim}; {_EXPECTED}"
        )
    return f"{name}[{':, ' * dim}{first}:{stop}]"


def group_of_shards(module: nn.Module) -> Any:
    """The process group over which a model is sharded; None if this process holds all of it.

    Raises:
        ConfigError: some tensors that are trained are sharded, and others are not, or over other processes.
    """
    parameters = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
    if not any(is_part(one) for _, one in parameters):
        return None
    group = None
    refuse_whole(dict(parameters))
    for name, parameter in parameters:
        found = _mesh(parameter).get_group(_division(name, parameter)[0])
        if group is None:
            group = found
        elif distributed.get_process_group_ranks(found) != distributed.get_process_group_ranks(group):
            raise ConfigError(
                f"tensor {name}: is sharded over the ranks {distributed.get_process_group_ranks(found)}, and other "
                f"tensors over {distributed.get_process_group_ranks(group)}; {_EXPECTED}"
            )
    return group


def refuse_nothing(parameters: Mapping[str, Tensor]) -> None:
    """Check that a process has a part of a sharded model at all.

    Raises:
        ConfigError: it has none.
    """
    if not parameters:
        raise ConfigError(
            "this process holds no element of the model that is exchanged: fully_shard divides each tensor by rows, "
            "and there are more processes than rows; shard the model over fewer processes"
        )


def refuse_whole(parameters: Mapping[str, Tensor]) -> None:
    """Check that of a sharded model no process holds a parameter whole: copies would be exchanged one by one.

    Raises:
        ConfigError: it does.
    """
    for name, parameter in parameters.items():
        if not is_part(parameter):
            raise ConfigError(
                f"tensor {name}: each process of the island holds it whole, and others in parts, so that its copies "
                f"would drift apart; {_EXPECTED}"
            )


def whole_form(module: nn.Module) -> str:
    """Names, types and shapes of a model's tensors as a hash, which is the same in all processes that have parts."""
    forms = [[name, str(one.dtype), list(one.shape), one.requires_grad] for name, one in module.named_parameters()]
    return hashlib.sha256(json.dumps(forms).encode()).hexdigest()


def return_to_shards(module: nn.Module) -> None:
    """Have the parts in their places, where FSDP has left whole tensors after a forward pass without a backward one."""
    fsdp: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    for part in module.modules() if fsdp is not None else ():
        if isinstance(part, fsdp):
            part.reshard()


def gathered_state(module: nn.Module, *, is_wanted: bool) -> dict[str, Tensor]:
    """The state dict with whole tensors, on the CPU; a collective operation of all processes that have parts.

    Args:
        module: the model.
        is_wanted: whether this process gets them; else it gets none.
    """
    found: dict[str, Tensor] = {}
    state: Mapping[str, object] = module.state_dict()
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            # One after the other: a GPU has room for its part of the model, and not for all of it.
            whole: Tensor = tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
            if is_wanted:
                found[name] = whole.detach().cpu()
    return found


def _division(name: str, tensor: Tensor) -> tuple[int, int]:
    """Along which dimension of the mesh which dimension of a tensor is divided.

    Raises:
        ConfigError: along several, or there are copies, too.
    """
    mesh, placements = _mesh(tensor), tensor.placements  # type: ignore[attr-defined]
    divided = [(number, one) for number, one in enumerate(placements) if mesh.size(number) > 1]
    if len(divided) != 1 or type(divided[0][1]).__name__ != "Shard":
        raise ConfigError(
            f"tensor {name}: has the placements {tuple(map(str, placements))} on a mesh of {tuple(mesh.shape)} "
            "processes; expected one dimension, along which it is sharded: dpwa averages between the islands, so give "
            'fully_shard the mesh of one island, such as mesh["shards"], and no dimension for copies or tensor '
            "parallelism"
        )
    return divided[0][0], divided[0][1].dim % max(tensor.ndim, 1)


def _mesh(tensor: Tensor) -> Any:
    return tensor.device_mesh  # type: ignore[attr-defined]


def _is_dtensor(tensor: Tensor) -> bool:
    # The type exists only once its module is imported, which takes long and is the user's choice.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)
