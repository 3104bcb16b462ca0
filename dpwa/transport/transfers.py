"""Transfers under way on the serving side, and when one has lasted too long.

An asker gives up after the config's timeout. So a transfer that is older than that, and a good deal, has nobody at the
other end who waits for it; and one that makes so little progress that it cannot end in time is hopeless long before.
Hopeless ones are ended only when they are in the way: when they hold the buffers that the trainer needs, or the places
of others.

Must not know: the clock (the time is passed in). Runs in: the Rx thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpwa.errors import RemoteProtocolError
from dpwa.exchange.messages import More, PullRequest
from dpwa.exchange.service import Request
from dpwa.snapshot.layout import Snapshot
from dpwa.transport.connection_rules import PeerConnection

__all__ = ["Transfer", "TransferRules", "Waiting"]

# An asker waits for its longest time from its request on; this much more is for what is on its way.
_LONGEST_PER_TRANSFER = 1.5

# A run of chunks takes less than this on any link on which a model gets through at all.
_TIMEOUTS_PER_RUN = 4.0

# No transfer is hopeless before this. A peer that has fetched whole snapshots before may make a pause; one that was
# never heard of must show at once that it reads.
_GRACE_S = 0.5
_GRACE_OF_STRANGERS_S = 0.2

# An exchange may be about a part of the model, down to a sixteenth where the budget decides: such a transfer is in time
# at a sixteenth of the pace of a whole one.
_LEAST_SHARE = 1 / 16

# Reading shared memory takes no messages. Memory is a hundred times faster.
_SHARED_BYTES_PER_S = 50e6


@dataclass
class Transfer:
    """A snapshot on its way to a peer.

    Attributes:
        pull: what was asked for.
        snapshot: what is on its way.
        is_shared: the peer reads it from shared memory.
        connection: it goes through; None if that is not known.
        began_s: monotonic time of the offer.
        last_request_s: of the last message about it.
        sent_before: bytes that had been sent through the connection before.
        asked_bytes: of the snapshot, in chunks.
    """

    pull: PullRequest
    snapshot: Snapshot
    is_shared: bool
    connection: PeerConnection | None
    began_s: float
    last_request_s: float
    sent_before: int = 0
    asked_bytes: int = 0

    def ask(self, first: int, count: int) -> None:
        """Note that chunks were asked for; what lies beyond the end does not count."""
        total_bytes = len(self.snapshot.memory)
        first_byte = first * self.pull.chunk_bytes
        stop_byte = min(first_byte + count * self.pull.chunk_bytes, total_bytes)
        self.asked_bytes += max(0, stop_byte - first_byte)

    def ask_more(self, more: More, now_s: float) -> None:
        """Note a further request.

        Raises:
            RemoteProtocolError: it is about chunks that do not exist, or were all asked for.
        """
        self.ask(more.first, more.count)
        total_bytes = len(self.snapshot.memory)
        if more.first * self.pull.chunk_bytes >= total_bytes or self.asked_bytes > total_bytes:
            raise RemoteProtocolError("?", "asked for more than the snapshot has")
        self.last_request_s = now_s
        self.is_shared = False


@dataclass
class Waiting:
    """A request whose answer is to come."""

    request: Request
    began_s: float
    deadline_s: float


class TransferRules:
    """Says which transfers must end.

    Args:
        timeout_s: how long an asker waits for an answer on a link that is fast enough.
        longest_s: how long it waits on one that was measured to need it.
    """

    def __init__(self, timeout_s: float, longest_s: float) -> None:
        self.timeout_s = timeout_s
        self.run_s = min(longest_s, _TIMEOUTS_PER_RUN * timeout_s)
        self.unread_s = _LONGEST_PER_TRANSFER * self.run_s
        self._longest_s = _LONGEST_PER_TRANSFER * longest_s

    def deadline_s(self, transfer: Transfer) -> float:
        """When a transfer has ended, whatever comes."""
        return min(transfer.began_s + self._longest_s, transfer.last_request_s + self.run_s)

    def grace_s(self, connection: PeerConnection | None) -> float:
        """For how long a connection may stand in the way without showing that it reads."""
        return _GRACE_S if connection is not None and connection.has_completed else _GRACE_OF_STRANGERS_S

    def is_hopeless(self, transfer: Transfer, now_s: float) -> bool:
        """Whether nobody reads it, or so slowly that the asker will have given up before its end."""
        age_s, total_bytes = now_s - transfer.began_s, len(transfer.snapshot.memory)
        connection = transfer.connection
        grace_s = self.grace_s(connection)
        if transfer.is_shared:
            return age_s > grace_s + total_bytes / _SHARED_BYTES_PER_S
        if age_s <= grace_s:
            return False
        if connection is not None and connection.acked_bytes > 0:
            progress_bytes = connection.acked_bytes - transfer.sent_before
            if progress_bytes < _LEAST_SHARE * total_bytes / self.timeout_s * (age_s - grace_s):
                return True
            if connection.unread_bytes > 0:
                return False
        return now_s - transfer.last_request_s > grace_s  # it has all that it asked for

    def in_the_way(
        self, transfers: Mapping[bytes, Transfer], newest: Snapshot | None, short_s: float, now_s: float
    ) -> list[bytes]:
        """Whose transfers must end, so that one buffer can be used again: all those of one snapshot, or none.

        A snapshot that even one transfer reads well is spared, unless nothing could be published for as long as any
        asker waits: then the oldest must go.

        Args:
            transfers: those under way.
            newest: the snapshot that is served: its buffer is needed anyway.
            short_s: for how long there has been no buffer.
            now_s: monotonic time.
        """
        readers: dict[int, list[bytes]] = {}
        for identity, transfer in transfers.items():
            if transfer.snapshot is not newest:
                readers.setdefault(transfer.snapshot.version, []).append(identity)
        for _, identities in sorted(readers.items()):
            if all(self.is_hopeless(transfers[identity], now_s) for identity in identities):
                return identities
        return readers[min(readers)] if readers and short_s > self.timeout_s else []

    def without_hope(self, transfers: Mapping[bytes, Transfer], now_s: float) -> bytes | None:
        """The oldest transfer that is hopeless, to make room for another peer; None if there is none."""
        hopeless = [(one.began_s, key) for key, one in transfers.items() if self.is_hopeless(one, now_s)]
        return min(hopeless)[1] if hopeless else None
