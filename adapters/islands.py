"""Islands: several processes that train one model together, as under DistributedDataParallel or FSDP2.

An island is one node of dpwa. Where the processes hold copies of the model, the first one is that node, and the others
follow it (`island_nodes.py`); where they hold parts of it, each exchanges its own (`shard_nodes.py`). Here is which
processes an island has, and how they tell each other something: words, that is, a few numbers, over gloo at every step
boundary; tensors over the group of the island's own collectives, which is nccl on GPUs.

Must not know: nodes, configs, what the words mean. Runs in: the trainer's thread, in all processes of the island alike:
each method of `Island` is a collective operation, which returns when all have come to it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch's own stubs lack it

from dpwa import ConfigError, IslandError

from .process_groups import ranks_of, replicas_of
from .shards import group_of_shards

__all__ = ["Island", "Members", "members_of"]

_logger = logging.getLogger("dpwa")

# How long the others are waited for at the start; a wait of so long is told. Later, as long as torch's own collectives
# wait: a process may evaluate alone meanwhile.
_MEET_S = 300.0
_LONG_S = 10.0
_STEP = timedelta(minutes=30)

# How many islands of the same processes there have been.
_opened: Counter[str] = Counter()

# Tensors that are smaller than this travel together.
_PACK_BYTES = 1 << 22


@dataclass(frozen=True)
class Members:
    """The processes of an island.

    Attributes:
        ranks: theirs, in the world of torch.distributed; the first one's process is the node.
        rank: the place of this process among them, from 0.
        group: the group of their DistributedDataParallel or FSDP2; None: the config has made them an island.
        have_parts: each holds a part of the model; otherwise each holds a copy.
    """

    ranks: tuple[int, ...]
    rank: int
    group: Any
    have_parts: bool = False

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    @property
    def part(self) -> int:
        """Which part of the model this process exchanges, from 0; 0 as well where each holds a copy."""
        return self.rank if self.have_parts else 0


def members_of(module: nn.Module, size: int | None) -> Members | None:
    """The island that this process belongs to with a model; None if it is a node by itself.

    Args:
        module: the model.
        size: as the cluster file has it; None: it does not say.

    Raises:
        ConfigError: model, processes and cluster file do not go together.
    """
    shards = group_of_shards(module)
    group = replicas_of(module) if shards is None else shards
    if group is not None:
        ranks = ranks_of(group)
        if size is not None and len(ranks) != size:
            spanning = _spanning(size, is_sharded=shards is not None, found=len(ranks))
            raise ConfigError(f"island: {{size: {size}}}: the model's {spanning}, or leave `island` out")
        return Members(ranks, ranks.index(distributed.get_rank()), group, have_parts=shards is not None)
    if size is None:
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ConfigError(
            f"island: {{size: {size}}}: expected a process of torch.distributed; start the script with torchrun, and "
            "call init_process_group before dpwa takes the model"
        )
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if world % size:
        raise ConfigError(f"island: {{size: {size}}}: {world} processes are no whole number of islands of {size}")
    first = rank // size * size
    return Members(tuple(range(first, first + size)), rank - first, None)


def _spanning(size: int, *, is_sharded: bool, found: int) -> str:
    if is_sharded:
        return f"fully_shard spans {found} processes; give it a mesh of {size}"
    group = f"a group of {size} (process_group=torch.distributed.new_subgroups({size})[0])"
    return f"DistributedDataParallel spans {found} processes; give it {group}"


class Island:
    """What the processes of an island tell each other.

    Args:
        members: of the island.

    Raises:
        ConfigError: they do not reach each other.
    """

    def __init__(self, members: Members) -> None:
        self.rank, self.size = members.rank, members.size
        self.ranks = members.ranks
        self._group = members.group
        try:
            with _telling_of_a_wait(members):
                self._words: Any = _open_words(members)
                self._words.barrier().wait()
                if self._group is None and distributed.get_backend() != "gloo":
                    self._group = distributed.new_group(list(members.ranks), use_local_synchronization=True)
        except RuntimeError as error:
            raise ConfigError(
                f"the processes {list(members.ranks)} are one node together, and do not reach each other over gloo "
                f"within {_MEET_S:g} s ({_first(error)}); all of them must make the adapter; GLOO_SOCKET_IFNAME names "
                "the network that they share"
            ) from error
        self._is_closed = False

    @property
    def is_first(self) -> bool:
        """Whether this process is the node."""
        return self.rank == 0

    @property
    def is_closed(self) -> bool:
        """Whether this process tells and hears nothing any more."""
        return self._is_closed

    def tell(self, numbers: Sequence[float]) -> None:
        """The first process tells the others some numbers.

        Raises:
            IslandError: another process is gone.
        """
        self._broadcast(torch.tensor(numbers, dtype=torch.float64))

    def hear(self, count: int) -> list[float]:
        """What the first process tells.

        Raises:
            IslandError: another process is gone.
        """
        numbers = torch.empty(count, dtype=torch.float64)
        self._broadcast(numbers)
        heard: list[float] = numbers.tolist()
        return heard

    def texts(self, text: str, most_bytes: int) -> list[str]:
        """Each tells a text, and hears all, by rank.

        Args:
            text: what is too much of it is cut off.
            most_bytes: of a text; the same in all processes.

        Raises:
            IslandError: another process is gone.
        """
        own = text.encode()[:most_bytes].ljust(most_bytes, b"\0")
        heard = [torch.zeros(most_bytes, dtype=torch.uint8) for _ in range(self.size)]
        heard[self.rank] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        for rank, one in enumerate(heard):
            self._broadcast(one, rank)
        return [bytes(one.numpy()).rstrip(b"\0").decode(errors="replace") for one in heard]

    def refuse_alike(self, own: ConfigError | None, problems: Sequence[str]) -> None:
        """Raise in all processes what one of them cannot do.

        Args:
            own: this process's problem.
            problems: what each has told of its own, by rank; empty for none.

        Raises:
            ConfigError: there is one.
        """
        if own is not None:
            raise own
        for rank, problem in enumerate(problems):
            if problem:
                raise ConfigError(f"rank {self.ranks[rank]}, of the same island as this one: {problem}")

    def share_bytes(self, data: bytes | None) -> bytes:
        """Bytes of the first process; the others give None.

        Raises:
            IslandError: another process is gone.
        """
        if data is not None:
            self.tell([len(data)])
            if data:
                self._broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            return data
        place = torch.empty(int(self.hear(1)[0]), dtype=torch.uint8)
        if place.numel():
            self._broadcast(place)
        return bytes(place.numpy())

    @torch.no_grad()
    def share_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the first process, to the bit, in place.

        A GPU's are only put in the queue: its next work on them comes after that.

        Args:
            tensors: of the same shapes, types and kinds of devices in all processes.

        Raises:
            IslandError: another process is gone.
        """
        for pack in _packs(tensors):
            if len(pack) == 1 and pack[0].is_contiguous():
                self._broadcast(_as_bytes(pack[0].detach().view(-1)))
                continue
            sizes = [tensor.numel() for tensor in pack]
            if self.is_first:
                self._broadcast(_as_bytes(torch.cat([tensor.detach().reshape(-1) for tensor in pack])))
                continue
            flat = torch.empty(sum(sizes), dtype=pack[0].dtype, device=pack[0].device)
            self._broadcast(_as_bytes(flat))
            parts = zip(torch.split(flat, sizes), pack, strict=True)
            torch._foreach_copy_(pack, [part.view(tensor.shape) for part, tensor in parts])

    def close(self) -> None:
        """Tell and hear nothing any more. No collective operation: any process may do this alone."""
        self._is_closed = True
        self._words = None

    def _broadcast(self, tensor: Tensor, source: int = 0) -> None:
        with self._naming_the_island():
            if tensor.device.type != "cpu" and self._group is not None:
                distributed.broadcast(tensor, self.ranks[source], group=self._group)
                return
            options = distributed.BroadcastOptions()
            options.rootRank, options.timeout = source, _STEP
            self._words.broadcast([tensor], options).wait()

    @contextmanager
    def _naming_the_island(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:  # torch's own errors of a group that has ended are ValueErrors
            raise IslandError(
                f"rank {self.ranks[self.rank]}: of the processes {list(self.ranks)}, which are one node together, one "
                f"is gone or does something else ({_first(error)}); expected all of them to call step and finish alike"
            ) from error


def _open_words(members: Members) -> Any:
    """Connections of an island's own over gloo.

    Not `new_group`: it must be called by all processes of the world; or, called by these alone, it names the group by
    how many each of them has, which need not be the same, and gives the name of one that has ended again.
    """
    name = f"dpwa/island/{'-'.join(map(str, members.ranks))}"
    _opened[name] += 1
    # torch has no public name for the store that all processes share.
    store = PrefixStore(f"{name}/{_opened[name]}", distributed.distributed_c10d._get_default_store())  # noqa: SLF001
    return distributed.ProcessGroupGloo(store, members.rank, members.size, timedelta(seconds=_MEET_S))


@contextmanager
def _telling_of_a_wait(members: Members) -> Iterator[None]:
    """Say whom this process waits for, where that takes long."""
    others = [rank for rank in members.ranks if rank != members.ranks[members.rank]]
    timer = threading.Timer(
        _LONG_S,
        _logger.warning,
        (
            "rank %d waits for the ranks %s, with which it is one node, to make the adapter: all of them must do so",
            members.ranks[members.rank],
            others[:8],
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _packs(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, together up to `_PACK_BYTES`; a larger one by itself."""
    pack: list[Tensor] = []
    packed_bytes = 0
    for tensor in tensors:
        is_alike = pack and (tensor.dtype, tensor.device) == (pack[0].dtype, pack[0].device)
        if pack and not (is_alike and packed_bytes + tensor.nbytes <= _PACK_BYTES):
            yield pack
            pack, packed_bytes = [], 0
        pack.append(tensor)
        packed_bytes += tensor.nbytes
    if pack:
        yield pack


def _as_bytes(flat: Tensor) -> Tensor:
    """Not every group knows every type; each knows bytes."""
    return flat.view(torch.uint8)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". This is typically")[0][:200]
