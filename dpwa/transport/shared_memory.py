"""Snapshots in shared memory: peers of one host and one user read them without a copy over the network stack.

The owner's snapshot buffers are slots of one segment, a file in the system's memory file system. A peer learns slot,
version and token over ZeroMQ, maps the segment, and reads. What makes this safe:

- The name follows from run, node and incarnation, which the reader knows: nothing that a peer sends becomes a path.
- The reader checks owner, permissions, kind and size of the file before it maps it, and the token in its header after.
- The slot's version is checked before and after reading: what was overwritten meanwhile is never blended.
- The server keeps the slot from being reused until the reader says that it is done; the check is the second lock.
- A segment is locked while its owner lives, and removed by the next start of dpwa when it is not: see `leftovers.py`.

Where any of this does not hold (another host, container or user, a full or missing memory file system), the snapshot
is streamed instead.

Must not know: layouts, ZeroMQ. Runs in: `Segment` in the trainer's thread, `SegmentReader` in the Tx thread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import stat
from pathlib import Path

import numpy as np

from dpwa.exchange.messages import MAX_SLOTS, TOKEN_BYTES
from dpwa.snapshot.layout import Buffer
from dpwa.transport.leftovers import FOLDER, create_owned, disown
from dpwa.transport.leftovers import MAGIC as _MAGIC

__all__ = ["SEGMENT_FOLDER", "Segment", "SegmentReader", "SegmentUnusable"]

SEGMENT_FOLDER = Path(FOLDER)

_PAGE_BYTES = 4096
# Header page: magic, token, then from byte 64 on one version per slot, each on a cache line of its own; room for 63.
_VERSIONS_BYTE = 64
_VERSION_STRIDE_BYTES = 64


class SegmentUnusable(Exception):
    """A segment cannot be made or read; the text says why. The stream serves instead."""


def _name(run_id: str, node: str, incarnation: bytes) -> str:
    return f"dpwa-{run_id}-{node}-{incarnation.hex()}"


def _slot_stride_bytes(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _file_bytes(size_bytes: int, slots: int) -> int:
    return _PAGE_BYTES + slots * _slot_stride_bytes(size_bytes)


class Segment:
    """The owner's side: a header page and a number of slots.

    Args:
        run_id: of the run.
        node: the owner.
        incarnation: of this life of the owner.
        size_bytes: bytes of a snapshot.
        slots: how many there are at most; memory is taken slot by slot.

    Raises:
        SegmentUnusable: there is no memory file system here, or it has no room.
    """

    def __init__(self, *, run_id: str, node: str, incarnation: bytes, size_bytes: int, slots: int) -> None:
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._path = SEGMENT_FOLDER / _name(run_id, node, incarnation)
        self._size_bytes = size_bytes
        self._pid = os.getpid()
        try:
            self._file, self._lock = create_owned(str(self._path))
        except OSError as error:
            raise SegmentUnusable(f"no segment can be made in {SEGMENT_FOLDER}: {error.strerror}") from error
        try:
            # Sparse: a slot's memory is taken when it is first needed. Writing to a page for which there is no room
            # would kill the process, so each slot is reserved before it is used.
            os.truncate(self._file, _file_bytes(size_bytes, slots))
            os.posix_fallocate(self._file, 0, _PAGE_BYTES)
            self._map = mmap.mmap(self._file, _file_bytes(size_bytes, slots))
        except OSError as error:
            self.close()
            raise SegmentUnusable(f"no room for a segment in {SEGMENT_FOLDER}: {error.strerror}") from error
        self._bytes: Buffer = np.frombuffer(self._map, np.uint8)
        self._versions = self._bytes[:_PAGE_BYTES].view(np.uint64)
        self._map[len(_MAGIC) : len(_MAGIC) + TOKEN_BYTES] = self.token
        self._map[: len(_MAGIC)] = _MAGIC

    def slot(self, index: int) -> Buffer | None:
        """The memory of a slot, (size_bytes,); None if there is no room for it."""
        start = _PAGE_BYTES + index * _slot_stride_bytes(self._size_bytes)
        try:
            os.posix_fallocate(self._file, start, _slot_stride_bytes(self._size_bytes))
        except OSError:
            return None
        return self._bytes[start : start + self._size_bytes]

    def mark(self, index: int, version: int) -> None:
        """Say which version a slot holds; 0 while it is being written."""
        self._versions[(_VERSIONS_BYTE + index * _VERSION_STRIDE_BYTES) // 8] = version

    def close(self) -> None:
        """Remove the segment's name. Its memory lives until the last process that has mapped it lets go."""
        if self._file < 0 or self._pid != os.getpid():
            return  # the number may belong to another file by now; a forked child owns nothing
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        file, self._file = self._file, -1
        os.close(file)
        disown(self._lock)


class SegmentReader:
    """A peer's segment, mapped for reading.

    Args:
        run_id: of the run.
        node: the owner.
        incarnation: of the owner's present life.
        token: what the owner said over ZeroMQ.
        size_bytes: bytes of a snapshot.

    Raises:
        SegmentUnusable: it is not there, not this user's, of another size, or of another token.
    """

    def __init__(self, *, run_id: str, node: str, incarnation: bytes, token: bytes, size_bytes: int) -> None:
        path = SEGMENT_FOLDER / _name(run_id, node, incarnation)
        self._size_bytes = size_bytes
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentUnusable(f"the segment of peer {node} cannot be opened: {error.strerror}") from error
        try:
            self._slots = _checked_slots(os.fstat(file), node, size_bytes)
            self._map = mmap.mmap(file, _file_bytes(size_bytes, self._slots), prot=mmap.PROT_READ)
        except OSError as error:
            raise SegmentUnusable(f"the segment of peer {node} cannot be mapped: {error.strerror}") from error
        finally:
            os.close(file)
        if self._map[: len(_MAGIC) + TOKEN_BYTES] != _MAGIC + token:
            raise SegmentUnusable(f"the segment of peer {node} has another token than the peer")
        self._memory = memoryview(self._map)

    def version(self, index: int) -> int:
        """The version that a slot holds at this moment; 0 while it is being written, or if there is no such slot."""
        if index >= self._slots:
            return 0
        start = _VERSIONS_BYTE + index * _VERSION_STRIDE_BYTES
        return int.from_bytes(self._memory[start : start + 8], "little")

    def read(self, index: int) -> memoryview:
        """The memory of a slot; check its version before and after using it."""
        start = _PAGE_BYTES + index * _slot_stride_bytes(self._size_bytes)
        return self._memory[start : start + self._size_bytes]


def _checked_slots(status: os.stat_result, node: str, size_bytes: int) -> int:
    """How many slots a file has, if it is a segment that may be trusted."""
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o600:
        raise SegmentUnusable(f"the segment of peer {node} is not a private file of this user")
    slots, rest = divmod(status.st_size - _PAGE_BYTES, _slot_stride_bytes(size_bytes))
    if rest or not 0 < slots <= MAX_SLOTS:
        raise SegmentUnusable(f"the segment of peer {node} has {status.st_size} bytes, which is no number of snapshots")
    return slots
