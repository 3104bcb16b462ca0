"""What nodes tell each other about the blocks of an epoch: which are trained, and which the teller has taken.

An epoch is cut into blocks, the same on all nodes, and the blocks into homes: one row of neighbouring blocks for each
node of the cluster file. An entry is about one home in one epoch, as two rows of bits, one bit per block.

Must not know: sockets, time, what is believed. Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dpwa.snapshot.state import MAX_COUNTER

__all__ = [
    "CUT_BYTES",
    "MAX_BLOCKS",
    "MAX_ENTRIES",
    "MAX_GRANT",
    "MAX_HOMES",
    "MAX_HOME_BLOCKS",
    "Block",
    "Entry",
    "Word",
    "are_blocks",
    "are_entries",
]

MAX_HOMES: Final = 4096
"""Nodes of one cluster file."""

MAX_HOME_BLOCKS: Final = 1024
"""Blocks of one home: 128 bytes for its row of bits."""

MAX_BLOCKS: Final = MAX_HOMES * MAX_HOME_BLOCKS

MAX_ENTRIES: Final = 12
"""Entries in one message: at 1,024 blocks each they take 3.3 of a header's 4 KiB."""

MAX_GRANT: Final = 16
"""Blocks that one answer can give."""

CUT_BYTES: Final = 16
"""A hash of what all nodes must agree on: how many samples, how many blocks, which seed."""


class Block(NamedTuple):
    """One block of one epoch."""

    epoch: int
    number: int


class Entry(NamedTuple):
    """What is said of one home in one epoch.

    Attributes:
        epoch: the epoch.
        home: whose home it is, as a position in the cluster file.
        done: blocks that are trained, by anybody: bit k of the little-endian number stands for the home's block k.
        held: blocks that the teller has taken and not trained yet.
    """

    epoch: int
    home: int
    done: bytes
    held: bytes


class Word(NamedTuple):
    """What one node says at one moment.

    Attributes:
        number: counts the words of one life: of two, the one with the higher number holds.
        floor: all epochs before this one are complete.
        entries: all homes in which the teller holds something are among them.
    """

    number: int
    floor: int
    entries: tuple[Entry, ...]


def are_entries(value: object) -> bool:
    """Whether a decoded value can be the entries of a message."""
    if type(value) is not tuple or len(value) > MAX_ENTRIES:
        return False
    return all(map(_is_entry, value)) and len({entry[:2] for entry in value}) == len(value)


def _is_entry(entry: object) -> bool:
    if type(entry) is not tuple or len(entry) != len(Entry._fields):
        return False
    epoch, home, done, held = entry
    if type(epoch) is not int or type(home) is not int or type(done) is not bytes or type(held) is not bytes:
        return False
    is_in_range = 0 <= epoch <= MAX_COUNTER and 0 <= home < MAX_HOMES
    return is_in_range and len(done) == len(held) and len(done) <= MAX_HOME_BLOCKS // 8


def are_blocks(value: object) -> bool:
    """Whether a decoded value can be the blocks that an answer gives."""
    return type(value) is tuple and len(value) <= MAX_GRANT and all(map(_is_block, value))


def _is_block(block: object) -> bool:
    if type(block) is not tuple or len(block) != len(Block._fields):
        return False
    epoch, number = block
    if type(epoch) is not int or type(number) is not int:
        return False
    return bool(0 <= epoch <= MAX_COUNTER and 0 <= number < MAX_BLOCKS)
