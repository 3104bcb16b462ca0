"""Which part of a snapshot an exchange pulls: all of it, or a rotating share of its parameters.

Runs in: the thread that performs the exchange.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpwa.exchange.messages import MAX_CHUNK_BYTES, MAX_WINDOW
from dpwa.snapshot.layout import Layout, Role

__all__ = ["RUN", "Rotation", "Slice", "chunk_count"]

# The largest frame allowed moves fastest: measured on 44.7 and 250 MB over loopback, 1 MiB 13 and 117 ms, 512 KiB 14
# and 150 ms, 256 KiB 15 and 154 ms, 128 KiB 20 and 200 ms.
CHUNK_BYTES = MAX_CHUNK_BYTES

RUN = MAX_WINDOW // 8
"""Chunks of the largest size asked for in one message. With two runs under way the server always has the next to send
while one is received: enough to keep a fast link busy, little to throw away when a peer vanishes."""

# A share is a number of chunks; with this many in the parameters it can be chosen to within a few per cent.
_PIECES = 64

# Smaller chunks would cost more in headers than they carry.
_LEAST_CHUNK_BYTES = 4096


def chunk_count(total_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a snapshot has."""
    return -(-total_bytes // chunk_bytes)


@dataclass(frozen=True)
class Slice:
    """What to pull.

    Attributes:
        chunk_bytes: size of a chunk, a multiple of 64.
        ranges: runs of chunks as (first, count), in the order to pull them in.
        share: how much of the parameters that is, above 0 up to 1.
    """

    chunk_bytes: int
    ranges: tuple[tuple[int, int], ...]
    share: float
    window: tuple[int, int] = (0, 0)
    """First piece and number of pieces, by which `Rotation.window` gives the same part at another node. The number is 0
    for the whole, which the first piece then begins nevertheless if only some of it can be had."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole snapshot."""
        return self.share == 1.0

    @property
    def run(self) -> int:
        """Chunks to ask for in one message: of small ones more, or each run would cost a round trip for few bytes."""
        return min(MAX_WINDOW // 2, RUN * CHUNK_BYTES // self.chunk_bytes)

    def chunks(self) -> Iterator[int]:
        """All chunks, in order."""
        for first, count in self.ranges:
            yield from range(first, first + count)

    def requests(self) -> Iterator[tuple[int, int]]:
        """The ranges in runs."""
        for first, count in self.ranges:
            for start in range(first, first + count, self.run):
                yield start, min(self.run, first + count - start)


class Rotation:
    """Chooses parts so that each chunk of the parameters comes equally often: a window that goes round.

    Buffers (running statistics) are always pulled: they are few, and parts of them have no use. An optimizer's state
    comes with the whole only: what lies in one chunk with the end of the rest is thrown away.

    Args:
        layout: of the model.
        rng: where the window begins; seeded per node, so that nodes pull different parts at one time.
        least_fraction: the smallest share that will be asked for.
    """

    def __init__(self, layout: Layout, rng: random.Random, least_fraction: float = 1.0) -> None:
        parameters = [section.stop_byte for section in layout.sections if section.role is Role.PARAMETER]
        buffers = [section for section in layout.sections if section.role is Role.BUFFER]
        self._total_bytes = layout.total_bytes
        parameter_bytes = max(parameters, default=0)
        piece_bytes = -(-parameter_bytes // max(_PIECES, math.ceil(1 / least_fraction)))
        self._chunk_bytes = min(CHUNK_BYTES, max(_LEAST_CHUNK_BYTES, -(-piece_bytes // 64) * 64))
        self._pieces = chunk_count(parameter_bytes, self._chunk_bytes)
        self._first_of_buffers = buffers[0].start_byte // self._chunk_bytes if buffers else None
        self._end_of_buffers = chunk_count(buffers[-1].stop_byte, self._chunk_bytes) if buffers else 0
        self._first = rng.randrange(max(1, self._pieces))

    def whole(self) -> Slice:
        """The whole snapshot."""
        return Slice(CHUNK_BYTES, ((0, chunk_count(self._total_bytes, CHUNK_BYTES)),), 1.0)

    def next(self, fraction: float) -> Slice:
        """The next part of about this share of the parameters; at least one chunk.

        Args:
            fraction: above 0 up to 1.
        """
        wanted = max(1, round(fraction * self._pieces))
        if wanted >= self._pieces:
            return replace(self.whole(), window=(self._first, 0))
        part = self.window(self._first, wanted)
        self._first = (self._first + wanted) % self._pieces
        return part

    def fitting(self, pieces: int, share: float) -> int:
        """So many of some pieces that they are no more than a share of the parameters, at least one; 0: all of them.

        Args:
            pieces: how many there are; 0 is all that the model has.
            share: above 0 to 1.
        """
        most = max(1, round(share * self._pieces))
        return most if most < (pieces or self._pieces) else 0

    def narrowed(self, part: Slice, pieces: int) -> Slice:
        """The first pieces of the part that `next` has given last; the others have their turn next.

        Args:
            part: that part.
            pieces: how many; 0, or as many as it has, is the part as it is.

        Raises:
            ValueError: it has less.
        """
        first, count = part.window
        if pieces > (count or self._pieces):
            raise ValueError(f"{pieces} pieces of {count or self._pieces}")
        if pieces in (0, count):
            return part
        self._first = (first + pieces) % self._pieces
        return self.window(first, pieces)

    def window(self, first: int, wanted: int) -> Slice:
        """The part that begins with a piece and has so many, as another node of the same model names it.

        Args:
            first: the first piece; taken modulo their number.
            wanted: how many; 0, or more than there are, is the whole snapshot.
        """
        pieces = self._pieces
        if wanted == 0 or wanted >= pieces:
            return self.whole()
        first %= pieces
        ranges = [(first, min(wanted, pieces - first))]
        if first + wanted > pieces:
            ranges.append((0, first + wanted - pieces))
        if self._first_of_buffers is not None:
            # The first chunk of buffers may end the parameters, and be in the window already.
            start = max(self._first_of_buffers, *(first + count for first, count in ranges))
            ranges.append((start, self._end_of_buffers - start))
        found = tuple(item for item in ranges if item[1] > 0)
        return Slice(self._chunk_bytes, found, wanted / pieces, (first, wanted))
