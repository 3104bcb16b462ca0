"""What is exchanged: the layout of a model, an immutable snapshot of it, and the buffers that snapshots live in.

A model crosses the wire as one flat run of bytes. The `Layout` says where in it each tensor stands; two nodes
exchange only if their layouts have one fingerprint. A `Snapshot` is a published copy: it never changes, so it
can be served without a lock while the trainer goes on.

Must not know: sockets, threads, torch. Runs in: any thread (see each class).
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.errors import ConfigError, InternalError
from dpwa.snapshot.dtypes import ITEM_BYTES
from dpwa.snapshot.state import UNMARKED, Codec, Mark, State

__all__ = ["Buffer", "BufferPool", "Layout", "Lease", "Role", "Section", "Snapshot", "TensorSpec"]

Buffer = npt.NDArray[np.uint8]

# Sections start at a cache line, so that every typed view is aligned.
_ALIGNMENT_BYTES = 64

# More tensors than any model has (the largest language models have some thousand), and little memory to list.
_MAX_TENSORS = 65_536

_MAX_NAME_CHARS = 200


class Role(str, Enum):
    """How a tensor is blended."""

    PARAMETER = "parameter"
    """Trained; blended as the config's `blend` says."""
    BUFFER = "buffer"
    """Running statistics; always interpolated, never extrapolated: a variance must not become negative."""
    MOMENTUM = "momentum"
    """What an optimizer has gathered for a parameter, as SGD's momentum; blended as the parameter is."""
    RUNNING_MOMENT = "running moment"
    """A running average that an optimizer keeps for a parameter, as Adam's moments. Interpolated as running statistics
    are: the second moment must not become negative, nor the first one large beside it."""
    ANCHOR = "anchor"
    """What a method keeps for a parameter, and blends itself."""

    @property
    def is_interpolated(self) -> bool:
        """Whether the peer's values are gone towards; otherwise differences may be added."""
        return self in (Role.BUFFER, Role.RUNNING_MOMENT)

    @property
    def is_of_optimizer(self) -> bool:
        """Whether it is an optimizer's state, which travels with whole models only, not with parts."""
        return self in (Role.MOMENTUM, Role.RUNNING_MOMENT)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, element type and role of one exchanged tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = Role.PARAMETER

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes in a snapshot."""
        return self.size * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)} {self.role.value}"


@dataclass(frozen=True)
class Section:
    """A contiguous run of tensors with one role and one dtype: one vectorised operation serves them all."""

    role: Role
    dtype: str
    start_byte: int
    size: int
    """Number of elements."""
    tensors: tuple[TensorSpec, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def value_type(self) -> np.dtype[Any]:
        """Type that its values are blended in."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def stop_byte(self) -> int:
        """One past the last byte."""
        return self.start_byte + self.size * self.item_bytes

    def offsets(self) -> Iterable[tuple[TensorSpec, int]]:
        """Each tensor with the index of its first element within the section."""
        first = 0
        for spec in self.tensors:
            yield spec, first
            first += spec.size


class Layout:
    """Where each tensor is in the flat bytes of a snapshot. Immutable; any thread.

    Tensors are grouped by role and dtype, in the order given within each group, so that equal models give
    equal layouts.

    Args:
        tensors: the exchanged tensors, in the model's own order.

    Raises:
        ConfigError: no tensor, too many, a name twice or too long, or a dtype that cannot be exchanged.
    """

    def __init__(self, tensors: Iterable[TensorSpec]) -> None:
        specs = tuple(tensors)
        _check_specs(specs)
        sections: list[Section] = []
        end_byte = 0
        for role in Role:
            for dtype in ITEM_BYTES:
                members = tuple(spec for spec in specs if spec.role is role and spec.dtype == dtype)
                if not members:
                    continue
                start_byte = -(-end_byte // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
                section = Section(role, dtype, start_byte, sum(spec.size for spec in members), members)
                sections.append(section)
                end_byte = section.stop_byte
        self.sections = tuple(sections)
        self.total_bytes = end_byte

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors in the order of the snapshot."""
        return tuple(spec for section in self.sections for spec in section.tensors)

    @cached_property
    def text(self) -> str:
        """One line per tensor: sent to a peer whose layout differs."""
        return "\n".join(str(spec) for spec in self.tensors)

    @cached_property
    def fingerprint(self) -> bytes:
        """16 bytes that are equal exactly for equal layouts."""
        return hashlib.sha256(self.text.encode()).digest()[:16]

    def first_difference(self, peer_text: str) -> str:
        """Name the first tensor in which a peer's layout differs from this one.

        Args:
            peer_text: the peer's `text`, possibly cut short; never trusted.
        """
        own_lines = self.text.split("\n")
        peer_lines = peer_text.split("\n", _MAX_TENSORS)
        for index, own in enumerate(own_lines):
            if index >= len(peer_lines):
                told = f"tensor {index + 1}: {own} here, nothing there (the peer has {len(peer_lines)} tensors)"
                return told + _about_optimizers(own, "")
            if own != peer_lines[index]:
                told = f"tensor {index + 1}: {own} here, {_printable(peer_lines[index])} there"
                return told + _about_optimizers(own, peer_lines[index])
        if len(peer_lines) > len(own_lines):
            extra = peer_lines[len(own_lines)]
            told = f"tensor {len(own_lines) + 1}: nothing here, {_printable(extra)} there"
            return told + _about_optimizers("", extra)
        return "no tensor differs in what the peer told"


def _check_specs(specs: tuple[TensorSpec, ...]) -> None:
    if not specs:
        raise ConfigError(
            "the model has no floating-point tensor to exchange; parameters that are all frozen are exchanged with "
            "`frozen_parameters: blend`"
        )
    if len(specs) > _MAX_TENSORS:
        raise ConfigError(f"the model has {len(specs)} tensors, at most {_MAX_TENSORS} can be exchanged")
    problems: list[str] = []
    seen: set[str] = set()
    for spec in specs:
        if spec.dtype not in ITEM_BYTES:
            problems.append(
                f"tensor {spec.name}: dtype {spec.dtype} cannot be exchanged; expected one of {', '.join(ITEM_BYTES)}"
            )
        if not 0 < len(spec.name) <= _MAX_NAME_CHARS or not spec.name.isprintable():
            problems.append(
                f"tensor {spec.name[:40]!r}: a name of 1 to {_MAX_NAME_CHARS} printable characters is needed"
            )
        if spec.name in seen:
            problems.append(f"tensor {spec.name}: the name occurs twice")
        seen.add(spec.name)
    if problems:
        raise ConfigError(problems)


def _about_optimizers(own: str, peer: str) -> str:
    """What makes two lines of layouts differ, if one of them is of an optimizer's state."""
    words = tuple(role.value for role in Role if role.is_of_optimizer)
    here, there = own.endswith(words), peer.endswith(words)
    if here and there:
        return "; the nodes have different optimizers, and with `optimizer_state: blend` they must be alike"
    if here or there:
        one = "this node" if here else "the peer"
        return f"; only {one} has `optimizer_state: blend`; give all nodes the same cluster file"
    return ""


def _printable(text: str) -> str:
    """A peer's text made safe for a terminal and short enough for a line."""
    return "".join(char if char.isprintable() else "?" for char in text[: 2 * _MAX_NAME_CHARS])


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An immutable published copy of a node's parameters with its state. Any thread.

    Attributes:
        version: 1, 2, 3 … within one incarnation of the node.
        step: the trainer's step at which the copy was made.
        taken_s: the monotonic time of the copy.
        state: loss and clock at that moment.
        slot: its place in the node's shared segment; None if it is in private memory.
        memory: the flat bytes, read-only. Whoever holds it, or a slice of it, keeps the buffer from being reused.
        mark: what it is to the merge at the end.
        codec: in which all get it who ask for the snapshot of its round.
    """

    version: int
    step: int
    taken_s: float
    state: State
    slot: int | None
    memory: memoryview
    mark: Mark = UNMARKED
    codec: Codec = Codec.RAW


@dataclass(frozen=True)
class Lease:
    """A free buffer, to be written and published.

    Attributes:
        index: number of the buffer within its pool.
        buffer: what the trainer writes to; does not hold the lease.
        memory: the same bytes, read-only. The buffer is free again when this and all its slices are gone.
    """

    index: int
    buffer: Buffer
    memory: memoryview


class BufferPool:
    """A bounded set of equal buffers, each of which comes back when the last reference to it is gone.

    Reuse by reference count, and not by an explicit release, is what makes a torn snapshot impossible: ZeroMQ
    sends straight from a snapshot's memory and lets go of it at a time that no caller can see.

    Thread: the trainer leases; buffers come back from any thread.

    Args:
        make: makes the buffer of an index, when it is first needed.
        slots: how many buffers there may be at most.
    """

    def __init__(self, make: Callable[[int], Buffer], slots: int) -> None:
        self._make = make
        self._slots = slots
        self._made = 0
        self._is_closed = False
        self._free: deque[tuple[int, Buffer]] = deque()  # append and popleft are atomic

    def close(self) -> None:
        """Let go of all buffers that are free, and make no more."""
        self._is_closed = True
        self._made = self._slots
        self._make = _make_none  # lets go of its owner
        self._free.clear()

    def take_back(self, index: int, base: Buffer) -> None:
        """The last reference to a buffer is gone. Any thread; called only by the end of the lease."""
        if not self._is_closed:
            self._free.append((index, base))

    def lease(self) -> Lease | None:
        """A free buffer; None when all are in use."""
        try:
            index, base = self._free.popleft()
        except IndexError:
            if self._made == self._slots:
                return None
            index, base = self._made, self._make(self._made)
            self._made += 1
        # A new array object over the same bytes: slices of a memoryview hold on to the object that exported it, so
        # this object dies exactly when the last slice does. (Slices of a numpy array would hold `base` instead.)
        exporter = base[:]
        # The pool is referred to weakly: the registry of finalizers would else keep it, and through it everything that
        # keeps this very object, alive forever.
        weakref.finalize(exporter, _give_back, weakref.ref(self), index, base).atexit = False
        return Lease(index, base, exporter.data.toreadonly())


def _give_back(pool: weakref.ref[BufferPool], index: int, base: Buffer) -> None:
    alive = pool()
    if alive is not None:
        alive.take_back(index, base)


def _make_none(index: int) -> Buffer:
    raise InternalError(f"buffer {index} of a closed pool")
