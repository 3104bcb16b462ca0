"""Snapshots of this node's model: the buffers they live in, and how they become visible to peers.

Must not know: exchanges, methods. Runs in: the trainer's thread; `hand_out` in the copy waiter for copies
that a GPU makes, one at a time.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dpwa.errors import InternalError
from dpwa.exchange.service import Service
from dpwa.snapshot.layout import Buffer, BufferPool, Layout, Lease, Snapshot
from dpwa.snapshot.state import UNMARKED, Codec, Mark, State
from dpwa.transport.leftovers import remove_unowned
from dpwa.transport.shared_memory import Segment, SegmentUnusable

__all__ = ["SnapshotPublisher", "Taken"]

_logger = logging.getLogger("dpwa")

# For how long the copy aside keeps its memory after it was needed.
_ASIDE_KEPT_S = 10.0


class _Source(Protocol):
    """What is copied."""

    @property
    def layout(self) -> Layout: ...

    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None: ...


@dataclass
class Taken:
    """A snapshot that was taken.

    Attributes:
        snapshot: its memory is complete once `ready` has returned.
        ready: blocks until the copy is there; None if it is.
        buffer: the same bytes, writable; does not keep them from being reused.
        is_complete: set when they are there, or never will be.
        failure: why they never will be.
    """

    snapshot: Snapshot
    ready: Callable[[], None] | None
    buffer: Buffer
    is_complete: threading.Event
    failure: BaseException | None = None

    def complete(self) -> None:
        """Wait for the copy, in the thread that waits for all of them."""
        try:
            if self.ready is not None:
                self.ready()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.is_complete.set()

    def wait(self) -> None:
        """Wait for the copy, in the trainer's thread.

        Raises:
            InternalError: it failed.
        """
        self.is_complete.wait()
        if self.failure is not None:
            raise InternalError(f"a snapshot was not copied: {self.failure!r}") from self.failure


class _Aside:
    """One more buffer, in private memory, made when it is first needed.

    An adapter remembers the buffers that it has seen, so the buffer itself stays; its memory is given back to the
    system when it has not been used for a while.

    Args:
        size_bytes: of a snapshot.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._map: mmap.mmap | None = None
        self._pool = BufferPool(self._make, 1)
        self._used_s = 0.0
        self.is_direct = True
        """Whether the model is copied by the processor: memory that a GPU writes to must stay where it is."""

    def lease(self, now_s: float) -> Lease | None:
        """The buffer; None while it is in use."""
        self._used_s = now_s
        lease = self._pool.lease()
        return None if lease is None else Lease(-1, lease.buffer, lease.memory)

    def release_if_idle(self, now_s: float) -> None:
        """Give its memory back, if it was not needed lately."""
        if self._map is None or now_s - self._used_s < _ASIDE_KEPT_S or not self.is_direct:
            return
        lease = self._pool.lease()
        if lease is not None:
            self._used_s = float("inf")  # until it is used again
            if hasattr(self._map, "madvise"):
                self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of it."""
        self._pool.close()
        self._map = None

    def _make(self, index: int) -> Buffer:  # noqa: ARG002
        self._map = mmap.mmap(-1, self._size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(self._map, np.uint8)


class SnapshotPublisher:
    """Takes snapshots and has them served.

    Args:
        source: what is copied.
        service: serves the newest snapshot.
        slots: how many snapshots there may be at one time.
        on_complete: called with each snapshot before peers can have it; None: not.
    """

    def __init__(
        self,
        source: _Source,
        service: Service,
        slots: int,
        on_complete: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self._on_complete = on_complete
        self._source = source
        self._service = service
        self._slots = slots
        self._pool = BufferPool(self._make_buffer, slots)
        self._aside = _Aside(source.layout.total_bytes)
        self._segment: Segment | None = None
        self._shared_slots: set[int] = set()
        self.version = 0

    def share(self, *, run_id: str, node: str, incarnation: bytes) -> None:
        """Let peers of this host read the snapshots from shared memory."""
        remove_unowned()  # there may be no room before
        try:
            self._segment = Segment(
                run_id=run_id,
                node=node,
                incarnation=incarnation,
                size_bytes=self._source.layout.total_bytes,
                slots=self._slots,
            )
        except SegmentUnusable as error:
            _logger.warning("node %s: %s; its snapshots are streamed", node, error)
            return
        self._service.tell(token=self._segment.token)

    def weights(self) -> tuple[memoryview, Callable[[], None] | None]:
        """The model's bytes as they are, before a snapshot was taken; and what blocks until they are there, or None."""
        lease = self._pool.lease()
        if lease is None:
            raise InternalError("the weights at the start were asked for when all buffers were in use")
        ready = self._source.copy_into(lease.buffer)
        return lease.memory, ready

    def take(self, *, step: int, taken_s: float, state: State, mark: Mark = UNMARKED) -> Taken | None:
        """Copy the model. Never waits.

        Returns:
            None if slow peers hold all buffers.
        """
        lease = self._pool.lease()
        if self._service.serving.is_short is not (lease is None):
            self._service.tell(is_short=lease is None)
        if lease is None:
            return None
        self._aside.release_if_idle(taken_s)
        return self._copy(lease, step, taken_s, state, mark)

    def take_aside(self, *, step: int, taken_s: float, state: State) -> Taken | None:
        """Copy the model to where peers cannot have it as the newest: for an exchange while all buffers are held.

        Returns:
            None if even that copy is still in use.
        """
        lease = self._aside.lease(taken_s)
        if lease is None:
            return None
        taken = self._copy(lease, step, taken_s, state)
        self._aside.is_direct = self._aside.is_direct and taken.ready is None
        return taken

    def _copy(self, lease: Lease, step: int, taken_s: float, state: State, mark: Mark = UNMARKED) -> Taken:
        self.version += 1
        slot = lease.index if lease.index in self._shared_slots else None  # the one aside has a number of its own
        if self._segment is not None and slot is not None:
            self._segment.mark(slot, 0)
        ready = self._source.copy_into(lease.buffer)
        codec = self._service.round_codec.of_round(state.round) if self._service.keeps_rounds else Codec.RAW
        snapshot = Snapshot(self.version, step, taken_s, state, slot, lease.memory, mark, codec)
        taken = Taken(snapshot, ready, lease.buffer, threading.Event())
        if ready is None:
            taken.is_complete.set()
        return taken

    def completed(self, snapshot: Snapshot) -> None:
        """A snapshot is complete, and some peer may have it."""
        if self._on_complete is not None:
            self._on_complete(snapshot)

    def hand_out(self, snapshot: Snapshot) -> None:
        """Let peers have a snapshot that is complete: the newest from now on."""
        self.completed(snapshot)
        if self._segment is not None and snapshot.slot is not None:
            self._segment.mark(snapshot.slot, snapshot.version)
        newest, last_round = self._service.serving.snapshot, self._service.serving.last_round
        if newest is not None and newest.state.round != snapshot.state.round and self._service.keeps_rounds:
            last_round = newest
        self._service.tell(snapshot=snapshot, last_round=last_round)

    def close(self) -> None:
        """Let go of all buffers at once."""
        self._service.close()
        self._pool.close()
        self._aside.close()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _make_buffer(self, index: int) -> Buffer:
        buffer = self._segment.slot(index) if self._segment is not None else None
        if buffer is None:
            # Zeros, because the bytes between two groups of tensors are sent, too, and nobody ever writes them.
            return np.zeros(self._source.layout.total_bytes, np.uint8)
        self._shared_slots.add(index)
        return buffer
