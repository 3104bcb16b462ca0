"""Refuses several processes as one node, and models that they share: a node is one process that holds the whole model.

dpwa changes parameters in place, in its own process only. Under DistributedDataParallel or FSDP other processes hold
copies or shards of the same model and would not see the change. And processes that torchrun has started within a node
all take themselves for that node.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator

from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dpwa import ConfigError

__all__ = ["is_one_of_group", "refuse_groups", "refuse_ranks", "refuse_shard", "tell_rank_alone", "unwrapped"]

_logger = logging.getLogger("dpwa")

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


def refuse_ranks(node: str) -> None:
    """Check that a process which takes itself for a node by its environment is not one of several.

    Raises:
        ConfigError: it is one of a group of torch.distributed, or torchrun has started it beside others.
    """
    rank, size = _rank_and_size()
    if size > 1:
        raise ConfigError(
            f"rank {rank} of {size} of node {node}: a node is one process, and groups of processes as one node are not "
            "supported yet. Leave torchrun and DistributedDataParallel out and put a node for each process into the "
            "cluster file, or give each rank a node of its own with name=... (without DistributedDataParallel). If "
            "RANK and WORLD_SIZE are left over from elsewhere, unset them"
        )


def tell_rank_alone() -> None:
    """Say, once per group, that its processes train without dpwa."""
    rank, size = _rank_and_size()
    if size > 1 and rank == 0:
        _logger.warning(
            "the %d processes of this group run alone, without dpwa: there is no cluster; to make each a node, pass "
            "name=... and config=...",
            size,
        )


def _rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is; (0, 1) for one that knows of no other."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1


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


def is_one_of_group(module: nn.Module) -> bool:
    """Whether other processes hold copies or shards of a model, which may be wrapped."""
    try:
        refuse_groups(module)
        for name, parameter in module.named_parameters():
            refuse_shard(name, parameter)
    except ConfigError:
        return True
    return False


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
