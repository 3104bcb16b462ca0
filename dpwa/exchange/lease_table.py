"""Who trains which block of an epoch: what one node knows of it, and what it may take and give away.

Each block has a home, which is a node of the cluster file. The warden of a home gives its blocks out: its owner, or the
next node of the file that is there while the owner is not. The warden takes blocks from the front for itself, and gives
those at the back to others that ask. So two nodes get one block only if they disagree on who the warden is.

Which blocks are trained is a set that only grows, so what nodes tell each other of it may come in any order. What a
node has taken counts by its own latest word, until it is silent for so long that others take its place: then what it
held is free again. A warden that is new in its office first hears what the others hold.

Must not know: sockets, threads, the clock (the time is passed in). Runs in: any thread, one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dpwa.exchange.lease_epochs import Epochs, Row
from dpwa.exchange.lease_words import MAX_ENTRIES, MAX_GRANT, Block, Word

__all__ = ["GRACE_S", "IDLE_S", "SILENT_S", "LeaseTable", "Peer"]

SILENT_S: Final = 5.0
"""Who cannot be reached for so long has lost its place."""

IDLE_S: Final = 60.0
"""The same for who is there and has no sampler: it may be loading its data."""

GRACE_S: Final = 1.0
"""So long a new warden waits to hear what the others hold."""

# Entries about the newest epochs come first in a word.
_NEWEST = 2


@dataclass
class Peer:
    """What is known of one peer."""

    incarnation: bytes | None = None
    """Of its present life, by its own answer."""
    word: int = -1
    """Number of the latest word that was heard."""
    request: int = -1
    """Number of its latest request."""
    told: dict[Row, int] = field(default_factory=dict)
    """What it holds by that word, as bits."""
    granted: dict[Row, int] = field(default_factory=dict)
    """What it was given since, and has not told yet."""
    heard_at: int = 0
    """When it was last heard, or tried in vain, as a count of events."""
    failing_s: float | None = None
    """Since when it has failed; None: it answered last time, or was never asked."""
    patience_s: float = SILENT_S
    """For so long it keeps its place."""
    empty_before: int = 0
    """It has said that it has nothing left to give of epochs before this one."""
    owed: int = 0
    """The latest of this node's changes that it must hear of."""
    heard_of: int = 0
    """The latest that it has heard of."""
    is_new: bool = False
    """A request came in its name from a life that has not answered yet."""

    def is_there(self, now_s: float) -> bool:
        """Whether it keeps its place."""
        return self.failing_s is None or now_s - self.failing_s < self.patience_s

    def begin_life(self, incarnation: bytes) -> None:
        """It has been started anew."""
        self.incarnation, self.word, self.request = incarnation, -1, -1
        self.told, self.granted = {}, {}
        self.empty_before = self.heard_of = 0


class LeaseTable:
    """The table of one node.

    Args:
        nodes: names of all nodes, in the order of the cluster file.
        own: this node's.
        blocks: of an epoch.
        now_s: the time.
    """

    def __init__(self, nodes: Sequence[str], own: str, blocks: int, now_s: float) -> None:
        self._nodes = tuple(nodes)
        self._positions = {node: position for position, node in enumerate(self._nodes)}
        self._own = self._positions[own]
        self.epochs = Epochs(blocks, len(self._nodes))
        self.peers: Mapping[str, Peer] = {node: Peer() for node in self._nodes if node != own}
        self._queue: deque[Block] = deque()  # given by others, and not begun
        self._since: dict[int, tuple[int, float]] = {}  # homes whose warden this node is, its own first
        self._events = 1
        self._looked_s = now_s
        self._words = 0
        self.changes = 0
        """How many blocks this node has trained."""
        self._turn = 0
        self._look(now_s)

    # --- Who gives out what -------------------------------------------------------------------------------------------

    def warden(self, home: int, now_s: float) -> int:
        """Who gives out the blocks of a home, as a position in the file."""
        while not self._is_there(home, now_s):
            home = (home + 1) % len(self._nodes)
        return home

    def _is_there(self, position: int, now_s: float) -> bool:
        return position == self._own or self.peers[self._nodes[position]].is_there(now_s)

    def _wards_of(self, position: int, now_s: float) -> list[int]:
        """The homes whose warden a node is that is there: its own, and those before it whose nodes are not."""
        homes = [position]
        while not self._is_there(before := (homes[-1] - 1) % len(self._nodes), now_s):
            homes.append(before)
        return homes

    def _look(self, now_s: float) -> None:
        """Note whose warden this node is by now."""
        if now_s - self._looked_s > SILENT_S:
            self._since.clear()  # this process stood still: others may have taken its place meanwhile
        self._looked_s = now_s
        wards = self._wards_of(self._own, now_s)
        self._since = {home: self._since.get(home, (self._events, now_s)) for home in wards}

    def _is_usable(self, home: int, now_s: float) -> bool:
        """Whether this node may give out a home's blocks: it has heard what the others hold."""
        began_at, began_s = self._since[home]
        if now_s - began_s >= GRACE_S:
            return True
        return all(peer.heard_at > began_at for peer in self.peers.values() if peer.is_there(now_s))

    def unheard(self, now_s: float) -> list[str]:
        """Peers whose word this node needs before it gives out what it is the warden of."""
        began_at = max((at for at, began_s in self._since.values() if now_s - began_s < GRACE_S), default=-1)
        return [
            name
            for name, peer in self.peers.items()
            if peer.is_new or (peer.heard_at <= began_at and peer.is_there(now_s))
        ]

    def _free(self, row: Row, now_s: float) -> int:
        """The blocks of a home that are not trained, and that nobody has taken who is there, as bits."""
        number, home = row
        epoch = self.epochs[number]
        bits = epoch.done[home] | epoch.mine[home]
        for peer in self.peers.values():
            if peer.is_there(now_s):
                bits |= peer.told.get(row, 0) | peer.granted.get(row, 0)
        return self.epochs.full[home] & ~bits

    def _free_rows(self, before: int, homes: Sequence[int], now_s: float) -> Iterator[tuple[Row, int]]:
        """What is free in some homes, of epochs before this one, the oldest first."""
        for number in self.epochs:
            if number < before:
                for home in homes:
                    bits = self._free((number, home), now_s)
                    if bits:
                        yield (number, home), bits

    def _free_count(self, epoch: int, homes: Sequence[int], now_s: float) -> int:
        return sum(bits.bit_count() for _, bits in self._free_rows(epoch + 1, homes, now_s))

    # --- What this node trains ----------------------------------------------------------------------------------------

    def take(self, epoch: int, now_s: float) -> Block | None:
        """A block to train next, of this epoch or one before; None: there is none at hand."""
        self._look(now_s)
        while self._queue:
            block = self._queue.popleft()
            found, home, bit = self.epochs.place(block)
            if found is not None and found.mine[home] & bit:
                return block
        usable = [home for home in self._since if self._is_usable(home, now_s)]
        for row, bits in self._free_rows(epoch + 1, usable, now_s):
            number, home = row
            bit = bits & -bits
            self.epochs[number].mine[home] |= bit
            return self.epochs.block(row, bit)
        return None

    def stock(self, epoch: int, now_s: float) -> int:
        """How many blocks this node can give out or take, of this epoch and those before."""
        self._look(now_s)
        return len(self._queue) + self._free_count(epoch, list(self._since), now_s)

    def trained(self, blocks: Iterable[Block], now_s: float) -> None:
        """Blocks that this node took are trained."""
        for block in blocks:
            found, home, bit = self.epochs.place(block)
            if found is None:
                continue
            found.mine[home] &= ~bit
            found.done[home] |= bit
            self.changes += 1
            warden = self.warden(home, now_s)
            owed = self._next_there(now_s) if warden == self._own else self._nodes[warden]
            if owed is not None:
                self.peers[owed].owed = self.changes
        self.epochs.settle()

    def release(self, blocks: Iterable[Block]) -> None:
        """Blocks that this node took are not going to be trained by it."""
        for block in blocks:
            found, home, bit = self.epochs.place(block)
            if found is not None:
                found.mine[home] &= ~bit

    def release_queue(self) -> None:
        """Let go of what was given by others and not begun."""
        self.release(self._queue)
        self._queue.clear()

    def _next_there(self, now_s: float) -> str | None:
        """Who takes this node's place if it dies."""
        count = len(self._nodes)
        names = (self._nodes[(self._own + step) % count] for step in range(1, count))
        return next((name for name in names if self.peers[name].is_there(now_s)), None)

    def is_exhausted(self, epoch: int, now_s: float) -> bool:
        """Whether there is nothing to be had of this epoch and those before, from anybody who can be asked."""
        if self.stock(epoch, now_s):
            return False
        answering = [name for name, peer in self.peers.items() if peer.failing_s is None]
        return not any(self.left_of(name, epoch, now_s) for name in answering)

    # --- What is given away and got -----------------------------------------------------------------------------------

    def grant(self, name: str, epoch: int, want: int, now_s: float) -> tuple[tuple[Block, ...], int]:
        """Blocks for a peer, of this epoch and those before, and how many more there are.

        The last ones go one by one, so that nobody holds many of them.
        """
        self._look(now_s)
        self.epochs.get(epoch)
        granted: list[Block] = []
        left = self._free_count(epoch, list(self._since), now_s)
        most = min(want, MAX_GRANT, max(1, left // (2 * len(self._nodes))))
        usable = [home for home in self._since if self._is_usable(home, now_s)]
        rows = self.peers[name].granted
        for row, bits in self._free_rows(epoch + 1, usable, now_s):
            rest = bits
            while rest and len(granted) < most:
                bit = 1 << (rest.bit_length() - 1)
                rest ^= bit
                rows[row] = rows.get(row, 0) | bit
                granted.append(self.epochs.block(row, bit))
        return tuple(granted), left - len(granted)

    def received(self, name: str, granted: Iterable[Block], left: int, epoch: int) -> int:
        """A peer has given blocks, and has so many more of this epoch and those before; how many are of use."""
        count = 0
        for block in granted:
            if block.epoch > epoch or block.number >= self.epochs.blocks:
                continue
            found, home, bit = self.epochs.place(block)
            if found is not None and not (found.done[home] | found.mine[home]) & bit:
                found.mine[home] |= bit
                self._queue.append(block)
                count += 1
        if left == 0:
            self.peers[name].empty_before = max(self.peers[name].empty_before, epoch + 1)
        return count

    def left_of(self, name: str, epoch: int, now_s: float) -> int:
        """How many blocks a peer may have to give at most, of this epoch and those before."""
        if self.peers[name].empty_before > epoch:
            return 0
        position = self._positions[name]
        if not self._is_there(position, now_s):
            return 0
        return self._free_count(epoch, self._wards_of(position, now_s), now_s)

    @property
    def rows_held(self) -> int:
        """In how many homes this node holds something."""
        return sum(bits > 0 for number in self.epochs for bits in self.epochs[number].mine)

    # --- What nodes tell each other -----------------------------------------------------------------------------------

    def word_for(self, name: str, now_s: float) -> Word:
        """What a peer is told."""
        self._words += 1
        homes = range(len(self._nodes))
        numbers = list(self.epochs)[::-1]
        near = [home for end in (self._positions[name], self._own) for home in self._wards_of(end, now_s)]
        held = [(number, home) for number in numbers for home in homes if self.epochs[number].mine[home]]
        first = [(number, home) for number in numbers[:_NEWEST] for home in near]
        others = [(number, home) for number in numbers for home in homes]
        self._turn += MAX_ENTRIES // 2
        start = self._turn % max(1, len(others))
        rows = dict.fromkeys([*held, *first[: MAX_ENTRIES // 2], *others[start:], *others[:start]])
        return Word(self._words, self.epochs.floor, tuple(map(self.epochs.entry, list(rows)[:MAX_ENTRIES])))

    def hear(self, name: str, incarnation: bytes, word: Word, now_s: float) -> None:
        """A peer has said this of itself."""
        peer = self.peers[name]
        self._events += 1
        if peer.incarnation != incarnation:
            peer.begin_life(incarnation)
        peer.failing_s, peer.patience_s, peer.heard_at, peer.is_new = None, SILENT_S, self._events, False
        is_newer = word.number > peer.word
        if is_newer:
            peer.word, peer.told = word.number, {}
        self.epochs.raise_floor(word.floor)
        for entry in word.entries:
            held = self.epochs.note_done(entry)
            if is_newer and held:
                peer.told[entry.epoch, entry.home] = held
        self._drop_done_from_queue()
        self.epochs.settle()
        self._look(now_s)

    def _drop_done_from_queue(self) -> None:
        for block in list(self._queue):
            found, home, bit = self.epochs.place(block)
            if found is None or found.done[home] & bit:
                self._queue.remove(block)
                self.release([block])

    def is_known(self, name: str, incarnation: bytes) -> bool:
        """Whether a peer has answered in this life. A request from another is noted as a hint to ask it."""
        peer = self.peers[name]
        if peer.incarnation != incarnation:
            peer.is_new = True
        return peer.incarnation == incarnation

    def is_fresh(self, name: str, number: int) -> bool:
        """Whether a request is the peer's latest. If it is, what former ones were given is in its word, or was lost."""
        peer = self.peers[name]
        if number <= peer.request:
            return False
        peer.request = number
        peer.granted = {}
        return True

    def asked_in_vain(self, name: str, now_s: float, patience_s: float = SILENT_S) -> None:
        """A peer did not answer, or has no sampler. It keeps its place for so long."""
        peer = self.peers[name]
        self._events += 1
        peer.failing_s = now_s if peer.failing_s is None else peer.failing_s
        peer.patience_s, peer.heard_at, peer.is_new = patience_s, self._events, False
        self._look(now_s)

    def was_told(self, name: str, changes: int) -> None:
        """A peer has heard of all changes up to this one."""
        self.peers[name].heard_of = max(self.peers[name].heard_of, changes)

    def owe_all(self) -> None:
        """All peers must hear of what this node has trained."""
        for peer in self.peers.values():
            peer.owed = self.changes

    def owed(self) -> list[str]:
        """Peers that answer, and have not heard of what they must hear of."""
        return [name for name, peer in self.peers.items() if peer.owed > peer.heard_of and peer.failing_s is None]

    def ask_again(self) -> None:
        """What peers have said of having nothing left may be out of date."""
        for peer in self.peers.values():
            peer.empty_before = 0
