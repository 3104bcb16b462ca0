"""Which other processes hold copies of a model, and the refusal of models that they have a part in some other way.

dpwa changes parameters in place. Under DistributedDataParallel other processes hold copies, which must all change
alike: they are an island (`islands.py`). Under FSDP2 they hold parts (`shards.py`); the flat parameters of the first
FSDP are refused. And processes that torchrun has started within a node all take themselves for that node.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dpwa import ConfigError

__all__ = [
    "is_sharded",
    "ranks_of",
    "refuse_flat_shard",
    "refuse_groups",
    "refuse_ranks",
    "replicas_of",
    "tell_rank_alone",
    "unwrapped",
]

_logger = logging.getLogger("dpwa")

_NO_FLAT_SHARDS = (
    "dpwa does not exchange the flat shards of FullyShardedDataParallel; expected a model that fully_shard (FSDP2) has "
    "sharded, that has copies under DistributedDataParallel, or that each process holds by itself"
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
            f"rank {rank} of {size} of node {node}: expected one process for a node, or several that share a model. To "
            "make them one node, wrap the model in DistributedDataParallel before dpwa takes it, or write "
            f"`island: {{size: {size}}}` into the cluster file; to make each a node, leave torchrun out and put a node "
            "for each process into the cluster file, or pass name=... on each. If RANK and WORLD_SIZE are left over "
            "from elsewhere, unset them"
        )


def tell_rank_alone(*, sharded: bool) -> None:
    """Say, once per group, that its processes train without dpwa.

    Args:
        sharded: each holds a flat shard of the model; otherwise each holds a part or a copy, or a model of its own.
    """
    rank, size = _rank_and_size()
    if size > 1 and rank == 0:
        _logger.warning(
            "the %d processes of this group run alone, without dpwa: %s",
            size,
            _NO_FLAT_SHARDS
            if sharded
            else "they are one node, and no cluster names others; to make each host a node, give its "
            "DistributedDataParallel a group of its own (process_group=...), or its fully_shard a mesh, or start each "
            "by a node of `dpwa launch`",
        )


def _rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is; (0, 1) for one that knows of no other."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1


def replicas_of(module: nn.Module) -> Any:
    """The process group over which DistributedDataParallel keeps copies of a model; None if it has no copies.

    Args:
        module: the model, within or without its wrapper; or one that has it as a part.

    Raises:
        ConfigError: some tensors that are trained have copies, and others have none, or have them elsewhere.
    """
    found: Any = None
    held: dict[int, tuple[int, ...]] = {}
    for wrapper in _data_parallel_around(module):
        if wrapper.process_group.size() > 1:
            found = wrapper.process_group
            held |= dict.fromkeys(map(id, wrapper.parameters()), ranks_of(found))
    own = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    where = {name: held.get(id(parameter)) for name, parameter in own.items()}
    if not any(where.values()):
        return None
    for name, ranks in where.items():
        if ranks != ranks_of(found):
            raise ConfigError(
                f"tensor {name}: {'has no copies' if ranks is None else f'has copies on the ranks {list(ranks)}'}, and "
                f"other tensors of the model have them on the ranks {list(ranks_of(found))}; put the whole model into "
                "one DistributedDataParallel, or all its parts over the same processes"
            )
    return found


def ranks_of(group: Any) -> tuple[int, ...]:
    """Ranks, in the world of torch.distributed, of a group's processes; in the order of their ranks within it."""
    return tuple(distributed.get_process_group_ranks(group))


def refuse_groups(module: nn.Module, island: tuple[int, ...] = ()) -> None:
    """Check that no other process holds copies or shards of a model, which may be wrapped.

    Args:
        module: the model.
        island: ranks of the processes that are this node together, and hold copies.

    Raises:
        ConfigError: a flat FSDP module, or a DistributedDataParallel over other processes, holds its parameters.
    """
    sharded = _fully_sharded_type()
    for name, part in module.named_modules():
        if sharded is not None and isinstance(part, sharded):
            first = next((inner for inner, _ in part.named_parameters()), "")
            raise ConfigError(f"tensor {'.'.join(filter(None, (name, first)))}: is sharded by FSDP; {_NO_FLAT_SHARDS}")
    own = dict(module.named_parameters())
    for wrapper in _data_parallel_around(module):
        _refuse_replicas(wrapper, own, island)


def is_sharded(module: nn.Module) -> bool:
    """Whether other processes hold flat shards of a model, which may be wrapped."""
    sharded = _fully_sharded_type()
    if sharded is not None and any(isinstance(part, sharded) for part in module.modules()):
        return True
    return any(_is_flat(parameter) for parameter in module.parameters())


def refuse_flat_shard(name: str, tensor: Tensor) -> None:
    """Check that a tensor is not a process's share of a flattened model.

    Raises:
        ConfigError: it is.
    """
    if _is_flat(tensor):
        raise ConfigError(f"tensor {name}: is a {type(tensor).__name__}, sharded by FSDP; {_NO_FLAT_SHARDS}")


def _is_flat(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "_is_flat_param", False))


def _refuse_replicas(
    wrapper: DistributedDataParallel, parameters: dict[str, nn.Parameter], island: tuple[int, ...]
) -> None:
    processes = wrapper.process_group.size()
    if processes == 1 or ranks_of(wrapper.process_group) == island:
        return
    held = {id(parameter) for parameter in wrapper.parameters()}
    name = next((name for name, parameter in parameters.items() if id(parameter) in held), None)
    if name is not None:
        raise ConfigError(
            f"tensor {name}: is held by a DistributedDataParallel over {processes} processes, which dpwa did not see "
            "when it took the model, so that their copies would drift apart; make the adapter after "
            "DistributedDataParallel"
        )


def _data_parallel_around(module: nn.Module) -> Iterator[DistributedDataParallel]:
    """Every DistributedDataParallel that may hold parameters of a model.

    A model does not know the one around it, and the given one may be the model inside. Torch keeps no list, the garbage
    collector does.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield from (part for part in module.modules() if isinstance(part, DistributedDataParallel))
        return
    candidates: Iterable[object] = gc.get_objects() if distributed.get_world_size() > 1 else module.modules()
    for found in candidates:
        if issubclass(type(found), DistributedDataParallel):  # isinstance would run the code of lazy proxies
            yield cast("DistributedDataParallel", found)


def _fully_sharded_type() -> type[nn.Module] | None:
    # The type exists only once its module is imported, which takes long and is the user's choice.
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
