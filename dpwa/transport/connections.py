"""The connections that stand at a node's ROUTER socket: which there are, what TCP says of each, and closing one.

ZeroMQ hides connections: a ROUTER names peers by an identity and cannot end one of them. But it tells, on a monitor
socket, the descriptor of each connection that it accepts, and each message tells the descriptor that it came through.
So each connection is duplicated (`dup`) once when it is accepted, checked to be one of this port, and owned here: what
TCP counts on it can be read at any time, and shutting it down ends that one connection. ZeroMQ then drops what it holds
of it: half a message, chunks that were never read. A descriptor's number that is used again for something else is never
touched, because only the duplicate is.

TCP's counts are Linux's. Elsewhere, and for endpoints other than TCP, less or nothing is known, and the rules that need
it do not apply.

Must not know: messages, snapshots. Runs in: the Rx thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Collection

import zmq
from zmq.utils.monitor import parse_monitor_message

from dpwa.transport.connection_rules import PeerConnection
from dpwa.transport.sockets import second_handle

__all__ = ["Connections"]

# As a plain number: `&` with a member of an enumeration takes three times as long.
_POLLIN = int(zmq.POLLIN)

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received, which newer kernels only add to.
_TCP, _TCP_INFO = socket.IPPROTO_TCP, getattr(socket, "TCP_INFO", 0)
_TCP_INFO_BYTES = 136
_COUNTS = struct.Struct("=QQ")
_COUNTS_BYTE = 120
_ESTABLISHED = b"\x01"  # the struct's first byte is the state

# A message is read within this time after its connection has gone.
_DOUBTFUL_S = 5.0

# Identities of connections that have gone. No two connections get the same, so the oldest are of no use.
_MAX_GONE = 4096

_GONE = PeerConnection(0.0, is_ended=True)


class Connections:
    """Knows the connections at one ROUTER socket.

    Args:
        context: of the socket.
        router: the socket, not bound yet, so that no connection is missed.
        port: that it will listen on.
        is_sealed: connections are encrypted.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], port: int, *, is_sealed: bool = False
    ) -> None:
        self.is_sealed = is_sealed
        self._router = router
        self._port = port
        address = f"inproc://dpwa-connections-{id(router)}"
        router.monitor(address, _EVENTS)
        self.monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        """Becomes readable when there is something to note."""
        self.monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's I/O thread waits where an event finds no room
        self.monitor.connect(address)
        self.is_short = False
        """Somebody could not come in for lack of descriptors; for the reader to clear."""
        self.broken_handshakes = 0
        """How many broke the rules before their first message, such as one without keys where there are some; for the
        reader to clear."""
        self._by_descriptor: dict[int, PeerConnection] = {}
        self._by_identity: dict[bytes, PeerConnection] = {}
        self._gone_identities: OrderedDict[bytes, None] = OrderedDict()
        # Numbers of connections that have gone before a message of theirs was seen: one may still come.
        self._doubtful_until_s: dict[int, float] = {}
        self._sockets: dict[PeerConnection, socket.socket] = {}
        # With it even a process that has no descriptor left can refuse a connection.
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def standing(self) -> Collection[PeerConnection]:
        """All that were not closed here."""
        return self._sockets.keys()

    def note_events(self, now_s: float) -> None:
        """Take note of who has come and gone: of all that is known, because what follows may undo what came before.

        A descriptor is closed only after the event that says so, and so is its number used again. So when no event is
        left, every duplicate that was made is of the connection that it was made for.
        """
        while int(self.monitor.getsockopt(zmq.EVENTS)) & _POLLIN:  # ten times as fast as an `Again`
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            descriptor = int(event["value"])
            if event["event"] == zmq.EVENT_ACCEPTED:
                self.is_short |= not self._accepted(descriptor, now_s)
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._gone(descriptor, now_s)
            elif descriptor in _NO_DESCRIPTOR:  # the value of a failed accept is its error
                self.is_short = True
                return  # it fails again and again until nobody listens any more

    def find(self, identity: bytes, frame: zmq.Frame, read_bytes: int, now_s: float) -> PeerConnection | None:
        """The connection that a message of so many bytes came through; None if it is not known.

        Messages may wait longer than their connection stands, and its number may be another's by then: what a stranger
        has left behind must not be taken for the message of somebody else.
        """
        known = self._by_identity.get(identity)
        if known is not None:
            known.read_bytes += read_bytes
            return known
        if identity in self._gone_identities:
            return _GONE
        try:
            descriptor = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError, TypeError):
            return None
        self.note_events(now_s)  # it may have come just now, with the number of one that has gone
        found = self._by_descriptor.get(descriptor)
        if found is None or found.identity is not None:
            return None
        found.read_bytes += read_bytes
        if now_s < self._doubtful_until_s.get(descriptor, 0.0):
            return None
        found.identity = identity
        self._by_identity[identity] = found
        return found

    def by_identity(self, identity: bytes) -> PeerConnection | None:
        """The connection that ZeroMQ names so, if it is known."""
        return self._by_identity.get(identity)

    def measure(self, now_s: float) -> None:
        """Read what TCP has counted on each."""
        for connection, own in self._sockets.items():
            _measure(connection, own, now_s)

    def measure_one(self, connection: PeerConnection, now_s: float) -> None:
        """Read what TCP has counted on one."""
        if connection in self._sockets:
            _measure(connection, self._sockets[connection], now_s)

    def end(self, connection: PeerConnection, now_s: float) -> bool:
        """Close one connection, with all that ZeroMQ holds of it; False if it had gone already."""
        self.note_events(now_s)
        if self.is_short:
            return False  # not all events were noted
        connection.is_ended = True
        own = self._sockets.pop(connection, None)
        if own is None:
            return False
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)
        own.close()
        return True

    def close(self) -> None:
        """Forget all of them, and stop watching. The connections themselves are the ROUTER's."""
        self._router.disable_monitor()
        self.monitor.close()
        for own in self._sockets.values():
            own.close()
        if self._spare is not None:
            os.close(self._spare)
        self._sockets.clear()
        self._by_descriptor.clear()
        self._by_identity.clear()

    def _accepted(self, descriptor: int, now_s: float) -> bool:
        """Begin to watch a connection; False if it had to be refused, because there is no descriptor to watch it by."""
        if descriptor in self._by_descriptor:
            self._gone(descriptor, now_s)
        try:
            own = self._duplicate(descriptor)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self._refuse(descriptor)
                return False
            return True  # it has gone already
        if own is not None:
            connection = PeerConnection(now_s, self.is_sealed)
            self._by_descriptor[descriptor] = connection
            self._sockets[connection] = own
        return True

    def _duplicate(self, descriptor: int) -> socket.socket | None:
        """The same connection under a number of our own; None if it is none of this port (any more).

        Raises:
            OSError: there is no such descriptor, or no number for another.
        """
        own = second_handle(descriptor)
        if own is None:
            return None
        with contextlib.suppress(OSError, IndexError, TypeError):  # no socket of TCP, or one that has lost its peer
            own.getpeername()
            if own.getsockname()[1] == self._port:
                return own
        own.close()
        return None

    def _refuse(self, descriptor: int) -> None:
        """Close a connection that cannot be watched."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        with contextlib.suppress(OSError):
            own = self._duplicate(descriptor)
            if own is not None:
                with contextlib.suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)
                own.close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _gone(self, descriptor: int, now_s: float) -> None:
        connection = self._by_descriptor.pop(descriptor, None)
        if connection is None or connection.identity is None:
            self._doubtful_until_s[descriptor] = now_s + _DOUBTFUL_S
        if connection is None:
            return
        if connection.identity is not None:
            self._by_identity.pop(connection.identity, None)
            self._gone_identities[connection.identity] = None
            if len(self._gone_identities) > _MAX_GONE:
                self._gone_identities.popitem(last=False)
        own = self._sockets.pop(connection, None)
        if own is not None:
            # ZeroMQ says nothing of a command that is too long, or of bytes that are no greeting: it only hangs up.
            self.broken_handshakes += connection.identity is None and _is_established(own)
            own.close()


def _is_established(own: socket.socket) -> bool:
    """Whether the other side has not ended a connection, as far as the system tells."""
    try:
        return sys.platform == "linux" and own.getsockopt(_TCP, _TCP_INFO, 1) == _ESTABLISHED
    except OSError:
        return False


def _measure(connection: PeerConnection, own: socket.socket, now_s: float) -> None:
    if sys.platform == "linux":
        try:
            counts = own.getsockopt(_TCP, _TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return
        if len(counts) == _TCP_INFO_BYTES:  # shorter before Linux 4.1
            acked_bytes, received_bytes = _COUNTS.unpack_from(counts, _COUNTS_BYTE)
            connection.measured(received_bytes, acked_bytes, now_s)
