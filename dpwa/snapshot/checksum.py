"""The checksum of a snapshot, in one piece or as it comes: equal bytes have equal ones.

It finds bytes that were torn or mixed up; against people who change them there are keys.

Must not know: what the bytes mean. Runs in: any thread; a `Checksum` in one.
"""

from __future__ import annotations

import zlib

__all__ = ["Checksum", "checksum_of"]


def checksum_of(memory: memoryview) -> int:
    """The CRC-32 of a whole snapshot."""
    return zlib.crc32(memory)


class Checksum:
    """The CRC-32 of bytes that come in pieces, in order."""

    def __init__(self) -> None:
        self._sum = 0
        self._next_byte = 0

    def add(self, first_byte: int, data: memoryview) -> None:
        """Take a piece; one that leaves a gap, or comes twice, is left out, and then there is no checksum."""
        if first_byte == self._next_byte:
            self._sum = zlib.crc32(data, self._sum)
            self._next_byte += len(data)

    def of(self, total_bytes: int) -> int | None:
        """The checksum; None unless so many bytes have come."""
        return self._sum if self._next_byte == total_bytes else None
