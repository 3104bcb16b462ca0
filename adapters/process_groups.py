"""Refuses models that several processes share: a node is one process that holds the whole model.

dpwa changes parameters in place, in its own process only. Under DistributedDataParallel or FSDP other processes hold
copies or shards of the same model and would not see the change.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dpwa import ConfigError

__all__ = ["refuse_groups", "refuse_shard", "unwrapped"]

_ONE_PROCESS = (
    "one node of dpwa is one process that holds the whole model; expected a model that no other process has a part in "
    "(groups of processes as one node are not supported yet)"
)


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and `torch.compile`, which only stand around it."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def refuse_groups(module: nn.Module) -> None:
    """Check that no other process holds copies or shards of a model, which may be wrapped.

    Raises:
        ConfigError: a DistributedDataParallel of several processes or an FSDP module holds its parameters.
    """
    sharded = _fully_sharded_type()
    for name, part in module.named_modules():
        if sharded is not None and isinstance(part, sharded):
            first = next((inner for inner, _ in part.named_parameters()), "")
            raise ConfigError(f"tensor {'.'.join(filter(None, (name, first)))}: is sharded by FSDP; {_ONE_PROCESS}")
        if isinstance(part, DistributedDataParallel):
            _refuse_replicas(part, dict(part.named_parameters(prefix=name)))
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        # A model does not know the DistributedDataParallel around it, and the given one may be the model inside.
        own = dict(module.named_parameters())
        for wrapper in _all_data_parallel():
            _refuse_replicas(wrapper, own)


def refuse_shard(name: str, tensor: Tensor) -> None:
    """Check that a tensor is not a process's share of a larger one.

    Raises:
        ConfigError: it is.
    """
    sharded = _dtensor_type()
    if (sharded is not None and isinstance(tensor, sharded)) or getattr(tensor, "_is_flat_param", False):
        raise ConfigError(f"tensor {name}: is a {type(tensor).__name__}, sharded over processes; {_ONE_PROCESS}")


def _refuse_replicas(wrapper: DistributedDataParallel, parameters: dict[str, nn.Parameter]) -> None:
    processes = wrapper.process_group.size()
    if processes == 1:
        return
    held = {id(parameter) for parameter in wrapper.parameters()}
    name = next((name for name, parameter in parameters.items() if id(parameter) in held), None)
    if name is not None:
        raise ConfigError(
            f"tensor {name}: is held by a DistributedDataParallel over {processes} processes, whose copies would drift "
            f"apart; {_ONE_PROCESS}"
        )


def _all_data_parallel() -> Iterator[DistributedDataParallel]:
    """Every DistributedDataParallel of this process: torch keeps no list, the garbage collector does."""
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel):  # isinstance would run the code of lazy proxies
            yield found


# These types exist only once their modules are imported, which takes long and is the user's choice.


def _fully_sharded_type() -> type[nn.Module] | None:
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)


def _dtensor_type() -> type | None:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
