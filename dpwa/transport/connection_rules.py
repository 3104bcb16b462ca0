"""Which of the connections that peers and strangers have made to a node must go.

A node cannot know who connects: it can only see what a connection costs and what it is used for. These are the rules,
over plain records, so that they can be tested without a socket: how many connections there may be, how long one may be
silent, how many bytes may arrive that never become a request, how long what was asked for may stay unread.

Must not know: sockets, messages, threads. Runs in: the Rx thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Cause", "ConnectionRules", "PeerConnection", "framed_bytes"]

# A client connects when it has something to ask, and asks at once. One that says nothing is in nobody's way while there
# is room; a honest client whose idle connection was closed reconnects by itself, and has nothing to ask at that moment.
_SILENT_WHEN_CROWDED_S = 5.0
_SILENT_S = 60.0

# A client keeps its connections for its next request, which may take minutes with long steps and many peers.
_IDLE_S = 300.0

# Two heartbeats a second, of 9 bytes, and answers to such.
_HEARTBEAT_BYTES_PER_S = 40
_SEALED_HEARTBEAT_BYTES_PER_S = 110

# What CURVE puts around each frame: a word, a nonce, a checksum and flags (rfc.zeromq.org/spec/26).
_SEAL_BYTES = 33

# A legal request has at most 4 KiB, and few are under way. Every byte that was not read yet, or is part of a message
# that is not complete, may cost 35 bytes of memory: ZeroMQ holds a message for each frame, and a frame may be empty.
_MAX_UNEXPLAINED_BYTES = 64 << 10
_MAX_UNEXPLAINED_BYTES_IN_ALL = 1 << 20

# What may be on its way to one connection: a window of the largest chunks. Honest clients ask for four at a time.
_MAX_UNREAD_BYTES = 17 << 20

# Encoded chunks are copies; others are slices of a snapshot and cost nothing beside it.
_MAX_COPIES_BYTES = 24 << 20

# Transfers that a connection has replaced by a new one before their bytes were read. An asker whose time is over does
# so, once per timeout.
_MAX_REPLACED = 2


def framed_bytes(size: int, *, is_sealed: bool = False) -> int:
    """How many bytes a frame of this size takes on a connection: ZMTP 3 puts 2 before short ones, 9 before others.

    Args:
        size: of the frame.
        is_sealed: the connection is encrypted.
    """
    size += _SEAL_BYTES if is_sealed else 0
    return size + (2 if size < 256 else 9)


class Cause(str, Enum):
    """Why a connection was closed, or none was let in."""

    CROWD = "crowd"
    """There were more connections than this node keeps."""
    SILENT = "silent"
    """It never asked for anything, or not for a long time."""
    INCOMPLETE = "incomplete"
    """It sent bytes that did not become requests."""
    ILLEGAL = "illegal"
    """It sent something illegal."""
    UNREAD = "unread"
    """It asked for snapshots and did not read them, or not in time."""
    HOLDING = "holding"
    """It held a snapshot whose buffer this node needed, and made no progress."""
    STRANGER = "stranger"
    """Its key is nobody's who may connect."""
    DESCRIPTORS = "descriptors"
    """The process had no file descriptor left for it."""


@dataclass(eq=False)
class PeerConnection:
    """What is known of one connection.

    Attributes:
        accepted_s: monotonic time.
        is_sealed: it is encrypted.
        identity: by which ZeroMQ names it; None before its first message.
        last_request_s: when it last sent a request that was answered or is waited for; None if never.
        has_completed: whether it has fetched a whole snapshot at least once.
        received_bytes: by TCP, since it stands.
        read_bytes: the complete messages that were read of it.
        unexplained_bytes: received and not read, apart from heartbeats.
        sent_bytes: handed to ZeroMQ.
        acked_bytes: of these, what the other machine has.
        has_copies: whether what is under way are encoded chunks.
        is_ended: it was closed from this side, and what still comes of it is late.
        replaced: transfers that were replaced while their bytes were unread: how many bytes had been sent up to their
            end, and when they were replaced.
    """

    accepted_s: float
    is_sealed: bool = False
    identity: bytes | None = None
    last_request_s: float | None = None
    has_completed: bool = False
    received_bytes: int = 0
    read_bytes: int = 0
    unexplained_bytes: float = 0.0
    sent_bytes: int = 0
    acked_bytes: int = 0
    has_copies: bool = False
    is_ended: bool = False
    replaced: deque[tuple[int, float]] = field(default_factory=deque)
    _acked_of_others: int = 0  # the handshake and heartbeats
    _measured_read_bytes: int = 0
    _measured_s: float = 0.0

    def __post_init__(self) -> None:
        self._measured_s = self.accepted_s

    def measured(self, received_bytes: int, acked_bytes: int, now_s: float) -> None:
        """Take what TCP has counted on it so far."""
        more_bytes = received_bytes - self.received_bytes - (self.read_bytes - self._measured_read_bytes)
        if more_bytes or self.unexplained_bytes:
            bytes_per_s = _SEALED_HEARTBEAT_BYTES_PER_S if self.is_sealed else _HEARTBEAT_BYTES_PER_S
            heartbeats = bytes_per_s * (now_s - self._measured_s)
            self.unexplained_bytes = max(0.0, self.unexplained_bytes + more_bytes - heartbeats)
        self.received_bytes, self._measured_read_bytes, self._measured_s = received_bytes, self.read_bytes, now_s
        if acked_bytes - self._acked_of_others == self.acked_bytes == self.sent_bytes:
            return
        # What was received beyond all that was sent as messages belonged to the handshake or was a heartbeat.
        self._acked_of_others = max(self._acked_of_others, acked_bytes - self.sent_bytes)
        self.acked_bytes = acked_bytes - self._acked_of_others
        while self.replaced and self.replaced[0][0] <= self.acked_bytes:
            self.replaced.popleft()
        if not self.unread_bytes:
            self.has_copies = False

    @property
    def unread_bytes(self) -> int:
        """What was sent and has not arrived."""
        return self.sent_bytes - self.acked_bytes

    @property
    def last_useful_s(self) -> float:
        """When it was last of use."""
        return self.accepted_s if self.last_request_s is None else self.last_request_s

    @property
    def replaces_too_much(self) -> bool:
        """Whether it asks for one snapshot after the other and reads none."""
        return len(self.replaced) > _MAX_REPLACED


class ConnectionRules:
    """Says which connections must go.

    Args:
        most: how many connections there may be.
        transfer_s: how long a transfer may take, from the request to the last byte.
    """

    def __init__(self, *, most: int, transfer_s: float) -> None:
        self.most = most
        self._transfer_s = transfer_s

    def crowd(
        self, connections: Collection[PeerConnection], is_engaged: Callable[[PeerConnection], bool]
    ) -> list[tuple[PeerConnection, Cause]]:
        """Those that are too many: first what never asked for anything, oldest first, then the least recently useful.

        Args:
            connections: all that stand.
            is_engaged: whether a transfer to it is under way, or a request of it waits.
        """
        too_many = len(connections) - self.most
        if too_many <= 0:
            return []
        ordered = sorted(
            connections,
            key=lambda one: (one.last_request_s is not None, is_engaged(one), one.last_useful_s),
        )
        return [(one, Cause.CROWD) for one in ordered[:too_many]]

    def overdue(
        self,
        connections: Collection[PeerConnection],
        now_s: float,
        is_engaged: Callable[[PeerConnection], bool],
        *,
        expects_guests: bool = False,
    ) -> list[tuple[PeerConnection, Cause]]:
        """Those that have used up what one connection, or all of them, may cost.

        Args:
            connections: all that stand.
            now_s: monotonic time.
            is_engaged: whether a transfer to it is under way, or a request of it waits.
            expects_guests: whether one that is silent may be somebody whose key nobody knows.
        """
        # Most connections at most times are beyond all doubt, and this is called many times a second.
        is_short_of_room = expects_guests or 2 * len(connections) > self.most
        silent_s = _SILENT_WHEN_CROWDED_S if is_short_of_room else _SILENT_S
        causes: dict[PeerConnection, Cause] = {}
        unexplained_bytes, copies_bytes = 0.0, 0
        for one in connections:
            if (one.sent_bytes != one.acked_bytes or one.unexplained_bytes or one.replaced) or (
                now_s - one.last_useful_s > _SILENT_WHEN_CROWDED_S
            ):
                cause = self._cause(one, silent_s, now_s, is_engaged)
                if cause is not None:
                    causes[one] = cause
                    continue
                unexplained_bytes += one.unexplained_bytes
                copies_bytes += one.unread_bytes if one.has_copies else 0
        if unexplained_bytes > _MAX_UNEXPLAINED_BYTES_IN_ALL:
            left = [one for one in connections if one not in causes]
            for one in _worst(left, lambda one: one.unexplained_bytes, _MAX_UNEXPLAINED_BYTES_IN_ALL):
                causes[one] = Cause.INCOMPLETE
        if copies_bytes > _MAX_COPIES_BYTES:
            left = [one for one in connections if one not in causes]
            for one in _worst(left, lambda one: one.unread_bytes if one.has_copies else 0, _MAX_COPIES_BYTES):
                causes[one] = Cause.UNREAD
        return list(causes.items())

    def _cause(
        self, one: PeerConnection, silent_s: float, now_s: float, is_engaged: Callable[[PeerConnection], bool]
    ) -> Cause | None:
        if one.unexplained_bytes > _MAX_UNEXPLAINED_BYTES:
            return Cause.INCOMPLETE
        if one.unread_bytes > _MAX_UNREAD_BYTES:
            return Cause.UNREAD
        if one.replaced and now_s - one.replaced[0][1] > self._transfer_s:
            return Cause.UNREAD
        patience_s = silent_s if one.last_request_s is None else _IDLE_S
        if now_s - one.last_useful_s > patience_s and not is_engaged(one):
            return Cause.SILENT
        return None


def _worst(
    connections: Collection[PeerConnection], cost: Callable[[PeerConnection], float], most: float
) -> list[PeerConnection]:
    """Those that cost most, so that the rest together cost no more than `most`."""
    costs = sorted(((cost(one), number, one) for number, one in enumerate(connections)), reverse=True)
    total, worst = sum(each for each, _, _ in costs), []
    for each, _, one in costs:
        if total <= most:
            break
        total -= each
        worst.append(one)
    return worst
