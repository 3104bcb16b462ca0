"""One request under way: how long what comes of it may take, and how much may come.

Must not know: who is asked, what an answer says. Runs in: the Tx thread alone.
"""

from __future__ import annotations

import time

from dpwa.errors import PeerTimeout
from dpwa.exchange.messages import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Lease,
    Meet,
    More,
    Propose,
    PullRequest,
    Settle,
    Vouch,
)
from dpwa.transport.connection import Connection

__all__ = ["Asking"]


class Asking:
    """One request under way: its two deadlines, and what was asked for.

    Args:
        connection: it is sent over.
        message: the request.
        asked_s: when it is sent.
        first_word_end_s: until when nothing of the answer may come.
        rest_s: the longest that the rest may take from then on.
        end_s: when all must have come.
    """

    def __init__(
        self,
        connection: Connection,
        message: PullRequest | Propose | Settle | Meet | Vouch | Lease,
        asked_s: float,
        first_word_end_s: float,
        rest_s: float,
        end_s: float,
    ) -> None:
        self.is_short = isinstance(message, Meet | Vouch | Lease)
        self._connection = connection
        self._asked_s = asked_s
        self._rest_s = rest_s
        self._end_s = end_s
        self._message_bytes = MAX_HEADER_BYTES + (message.chunk_bytes if isinstance(message, PullRequest) else 0)
        self._answered_s = 0.0
        self._bytes_before: int | None = None
        self.is_answered = False
        self.deadline_s = first_word_end_s
        connection.begin()
        if isinstance(message, PullRequest):
            # In place of the chunks there may be a layout as text, which fills one frame at most.
            connection.allow(max(message.count * self._message_bytes, MAX_FRAME_BYTES))

    @property
    def answered_after_s(self) -> float:
        """How long the first word took."""
        return self._answered_s - self._asked_s

    def answered(self) -> None:
        """The first word is there."""
        self.is_answered = True
        self._answered_s = time.monotonic()
        self._bytes_before = self._connection.received_bytes()
        self.deadline_s = min(self._end_s, self._answered_s + self._rest_s)

    def more(self, message: More) -> None:
        """Further chunks have been asked for."""
        self._connection.allow(message.count * self._message_bytes)

    def is_in_the_way(self) -> bool:
        """Whether more has come, without a word of the answer, than late words: a model that was given up before it."""
        return self._connection.came_bytes() > MAX_HEADER_BYTES

    def tell_progress(self, error: PeerTimeout) -> None:
        """Say in an error how far the answer had come, chunks that were not complete included."""
        error.transfer_s = time.monotonic() - self._answered_s
        received_bytes = self._connection.received_bytes()
        if received_bytes is not None and self._bytes_before is not None:
            error.received_bytes = max(error.received_bytes, received_bytes - self._bytes_before)
