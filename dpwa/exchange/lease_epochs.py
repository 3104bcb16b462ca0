"""The blocks of the epochs that are under way: where each one's home is, which are trained, which this node has taken.

The blocks of an epoch are numbered, and each node of the cluster file is the home of a row of neighbouring ones. One
number per home holds a bit for each of its blocks.

Must not know: peers, time. Runs in: any thread, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dpwa.exchange.lease_words import Block, Entry

__all__ = ["MAX_EPOCHS", "Epoch", "Epochs", "Row"]

MAX_EPOCHS: Final = 16
"""Epochs of which some blocks are not trained yet, at one time."""

Row = tuple[int, int]
"""An epoch and a home."""


@dataclass
class Epoch:
    """One epoch: the bits of each home."""

    done: list[int]
    mine: list[int]
    """Taken by this node and not trained yet."""


class Epochs:
    """The epochs of one node.

    Args:
        blocks: of an epoch.
        homes: how many nodes the cluster file has.
    """

    def __init__(self, blocks: int, homes: int) -> None:
        self.blocks = blocks
        self._starts = [home * blocks // homes for home in range(homes + 1)]
        self.full = [(1 << (stop - start)) - 1 for start, stop in zip(self._starts, self._starts[1:], strict=False)]
        """All bits of each home."""
        self.floor = 0
        """All epochs before this one are complete, or given up."""
        self.left_out = 0
        """Blocks of epochs that were given up."""
        self._epochs: dict[int, Epoch] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._epochs

    def __getitem__(self, number: int) -> Epoch:
        return self._epochs[number]

    def __iter__(self) -> Iterator[int]:
        """Numbers of the epochs under way, the oldest first."""
        return iter(sorted(self._epochs))

    def get(self, number: int) -> Epoch | None:
        """An epoch, made if it is not too far from the others; None: it is."""
        if not self.floor <= number < self.floor + MAX_EPOCHS:
            return None
        if number not in self._epochs:
            self._epochs[number] = Epoch([0] * len(self.full), [0] * len(self.full))
        return self._epochs[number]

    def enter(self, number: int) -> None:
        """This node begins an epoch; the oldest are given up if it is too far from them."""
        if not self._epochs and number > self.floor:
            self.floor = number
        while number >= self.floor + MAX_EPOCHS:
            oldest = self._epochs.pop(self.floor, None)
            if oldest is not None:
                self.left_out += self.blocks - sum(bits.bit_count() for bits in oldest.done)
            self.floor += 1
        self.get(number)
        self.settle()

    def share_done(self, number: int) -> float:
        """The share of an epoch's blocks that are trained, as far as is known; of one that was given up, all."""
        epoch = self._epochs.get(number)
        if epoch is None:
            return 1.0 if number < self.floor else 0.0
        return sum(bits.bit_count() for bits in epoch.done) / self.blocks

    def settle(self) -> None:
        """Forget the oldest epochs that are complete."""
        while self.floor in self._epochs and self._epochs[self.floor].done == self.full:
            del self._epochs[self.floor]
            self.floor += 1

    def raise_floor(self, floor: int) -> None:
        """Epochs before this one are complete."""
        self.floor = max(self.floor, floor)
        for number in [number for number in self._epochs if number < floor]:
            del self._epochs[number]

    def entry(self, row: Row) -> Entry:
        """What a peer is told of a home."""
        number, home = row
        length = -(-self.full[home].bit_length() // 8)
        epoch = self._epochs[number]
        return Entry(
            number, home, epoch.done[home].to_bytes(length, "little"), epoch.mine[home].to_bytes(length, "little")
        )

    def note_done(self, entry: Entry) -> int | None:
        """Note what a peer says is trained; the bits that it holds, or None where that says nothing here."""
        epoch = self.get(entry.epoch)
        if epoch is None or entry.home >= len(self.full):
            return None
        full = self.full[entry.home]
        epoch.done[entry.home] |= int.from_bytes(entry.done, "little") & full
        return int.from_bytes(entry.held, "little") & full

    # --- Places -------------------------------------------------------------------------------------------------------

    def place(self, block: Block) -> tuple[Epoch | None, int, int]:
        """Epoch (None: not under way), home and bit of a block."""
        number = block.number
        home = min(len(self.full) - 1, number * len(self.full) // self.blocks)
        while number < self._starts[home]:
            home -= 1
        while number >= self._starts[home + 1]:
            home += 1
        return self._epochs.get(block.epoch), home, 1 << (number - self._starts[home])

    def block(self, row: Row, bit: int) -> Block:
        """The block that a bit of a home stands for."""
        number, home = row
        return Block(number, self._starts[home] + bit.bit_length() - 1)

    # --- For a checkpoint ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What is trained, as far as this node knows."""
        done = {str(number): [f"{bits:x}" for bits in epoch.done] for number, epoch in self._epochs.items()}
        return {"floor": self.floor, "done": done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, before the first epoch.

        Raises:
            ValueError, KeyError, TypeError: it is damaged, or of another cluster.
        """
        floor = int(state["floor"])
        rows = {int(number): [int(bits, 16) for bits in done] for number, done in state["done"].items()}
        for number, done in rows.items():
            is_near = floor <= number < floor + MAX_EPOCHS
            if not is_near or len(done) != len(self.full) or any(map(_is_too_much, done, self.full)):
                raise ValueError(f"epoch {number} is of another cluster")
        self.raise_floor(floor)
        for number, done in rows.items():
            epoch = self.get(number)
            if epoch is not None:
                epoch.done = [bits | more for bits, more in zip(epoch.done, done, strict=True)]
        self.settle()


def _is_too_much(bits: int, full: int) -> bool:
    return not 0 <= bits <= full
