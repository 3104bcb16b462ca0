"""Whom a node asks for blocks, or tells what it has trained, and when: one small question at a time.

Who has few blocks at hand asks the peer that may have most. Whoever would take this node's place, or gave it a block,
hears of each block that is trained within a tenth of a second, and sooner where blocks are short. All others are asked
in turn, so that each node knows who is there.

Must not know: sockets, threads, the clock (the time is passed in). Runs in: any thread, one at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final, NamedTuple

from dpwa.exchange.lease_table import IDLE_S, SILENT_S, LeaseTable
from dpwa.exchange.lease_words import MAX_ENTRIES, MAX_GRANT

__all__ = ["AHEAD", "LeaseAsking", "Turn"]

AHEAD: Final = 2
"""Blocks at hand below which others are asked for more, at least."""

# Between two questions to one peer, where the first has brought nothing.
_RETRY_S = 0.05

# Until a peer hears of a block that it must know of; of so many in a hundred of an epoch, sooner.
_TELL_S = 0.1
_TELL_SOON_S = 0.02
_MANY = 0.5

# Between two questions of no other purpose; while all wait for the end of an epoch; and to peers that fail.
_POLL_S = 0.25
_POLL_AT_THE_END_S = 0.02
_FAILING_S = 1.0

# Who says so often that it has blocks, and gives none, is believed to have none.
_MOST_IN_VAIN = 40

# Each word names all homes in which its teller holds something, so there is an end to them.
_MOST_ROWS = MAX_ENTRIES - 4


class Turn(NamedTuple):
    """The next question.

    Attributes:
        peer: whom to ask; empty: nobody.
        want: how many blocks are wanted.
        due_s: when.
        is_in_turn: it has no other purpose than to ask each peer now and then.
    """

    peer: str
    want: int
    due_s: float
    is_in_turn: bool = False


class LeaseAsking:
    """Chooses for one node.

    Args:
        table: what the node knows.
    """

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._asked_s: defaultdict[str, float] = defaultdict(lambda: -math.inf)
        self._from_s: defaultdict[str, float] = defaultdict(lambda: -math.inf)
        self._in_vain: defaultdict[str, int] = defaultdict(int)
        self._last_s = -math.inf
        self._last_failing_s = -math.inf
        self.ahead = AHEAD
        """Blocks at hand below which others are asked for more."""
        self.is_at_the_end = False
        """The node waits for the last blocks of the last epoch."""

    def is_hungry(self, epoch: int | None, now_s: float) -> bool:
        """Whether the node should ask for blocks of this epoch; None: it trains none now."""
        return epoch is not None and self._table.stock(epoch, now_s) < self.ahead and not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether the node holds blocks of so many homes that it asks for none before it has trained some."""
        return self._table.rows_held >= _MOST_ROWS

    def next(self, epoch: int | None, now_s: float) -> Turn:
        """The next question, of which others may become due before."""
        turn = self._for_blocks(epoch, now_s)
        others = [self._of_need(now_s), self._of_turn(now_s)]
        for other in others:
            if turn is None or (other is not None and max(other.due_s, now_s) < max(turn.due_s, now_s)):
                turn = other
        return turn or Turn("", 0, math.inf)

    def _for_blocks(self, epoch: int | None, now_s: float) -> Turn | None:
        if epoch is None or not self.is_hungry(epoch, now_s):
            return None
        table = self._table
        left = {name: table.left_of(name, epoch, now_s) for name, peer in table.peers.items() if peer.failing_s is None}
        turns = [Turn(name, MAX_GRANT, self._from_s[name]) for name, count in left.items() if count]
        return min(turns, key=lambda turn: (max(turn.due_s, now_s), -left[turn.peer]), default=None)

    def _of_need(self, now_s: float) -> Turn | None:
        """Who must hear something, or be heard."""
        turns = [Turn(name, 0, self._asked_s[name] + _RETRY_S) for name in self._table.unheard(now_s)]
        many = _MANY / 100 * self._table.epochs.blocks
        for name in self._table.owed():
            peer = self._table.peers[name]
            is_much = peer.owed - peer.heard_of >= many
            turns.append(Turn(name, 0, self._asked_s[name] + (_TELL_SOON_S if is_much else _TELL_S)))
        return min(turns, key=lambda turn: turn.due_s, default=None)

    def _of_turn(self, now_s: float) -> Turn | None:
        pause_s = _POLL_AT_THE_END_S if self.is_at_the_end else _POLL_S
        turns = []
        for name, peer in self._table.peers.items():
            last_s, own_s = (self._last_s, pause_s) if peer.failing_s is None else (self._last_failing_s, _FAILING_S)
            turns.append((max(last_s + own_s, self._asked_s[name] + own_s), self._asked_s[name], name))
        if not turns:
            return None
        due_s, _, name = min(turns, key=lambda turn: (max(turn[0], now_s), turn[1]))
        return Turn(name, 0, due_s, is_in_turn=True)

    # --- What came of it ----------------------------------------------------------------------------------------------

    def asks(self, turn: Turn, now_s: float) -> None:
        """A question is being asked."""
        self._asked_s[turn.peer] = now_s
        if turn.is_in_turn:
            self._last_s = now_s
        if self._table.peers[turn.peer].failing_s is not None:
            self._last_failing_s = now_s

    def answered(self, turn: Turn, epoch: int, *, got: int, left: int, now_s: float) -> None:
        """The peer has given so many blocks that are of use, and says that it has so many more."""
        name = turn.peer
        if not turn.want:
            return
        if got or not left:
            self._in_vain[name] = 0
            self._from_s[name] = now_s
            return
        self._from_s[name] = now_s + _RETRY_S
        self._in_vain[name] += 1
        if self._in_vain[name] >= _MOST_IN_VAIN:
            self._in_vain[name] = 0
            self._table.received(name, (), 0, epoch)

    def busy(self, turn: Turn, now_s: float) -> None:
        """The peer has no time for the question now."""
        self._from_s[turn.peer] = now_s + _RETRY_S

    def failed(self, turn: Turn, now_s: float, *, is_idle: bool = False) -> None:
        """The peer did not answer; or is there, and has no sampler yet."""
        self._in_vain[turn.peer] = 0
        self._table.asked_in_vain(turn.peer, now_s, IDLE_S if is_idle else SILENT_S)
        self._last_failing_s = now_s
