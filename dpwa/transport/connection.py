"""One connection to a peer: how its making goes, and how much has come over it.

A DEALER here is one TCP connection for life (`dealer` disables reconnecting). While it is being made, ZeroMQ's monitor
tells of each step, so that a refusal is known at once and not when a deadline has passed. Afterwards the kernel's own
count of received bytes is compared with what was asked for: ZeroMQ collects all frames of a message before it hands
over the first, and a hostile peer's message may never end.

Must not know: messages, peers, deadlines. Runs in: the Tx thread alone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from dpwa.exchange.messages import MAX_FRAME_BYTES, MAX_WINDOW
from dpwa.transport.sockets import allow_ipv6, second_handle

__all__ = ["REFUSED", "Connection"]

# As a plain number: `&` with a member of an enumeration takes three times as long.
_POLLOUT = int(zmq.POLLOUT)

# What comes beside the chunks: answers, headers, the last of what was sent before.
_SLACK_BYTES = 256 << 10

# Heartbeats of both sides, many times over.
_IDLE_BYTES_PER_S = 1024

# What a request that was given up may still bring: two runs of chunks are asked for at one time.
_MOST_LATE_BYTES = MAX_WINDOW // 4 * MAX_FRAME_BYTES

# Linux: struct tcp_info, whose tcpi_bytes_received (since 4.1) is a u64 at byte 128.
_TCP_INFO_BYTES = 136
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT_BYTE = 128

REFUSED = "connection refused"

_SAME_KEYS = (
    "all nodes need the same `keys` in the cluster file, and beside nodes that `dpwa launch` has started, DPWA_RUN_DIR "
    "must name their run folder"
)
_OTHER_SECURITY = f"one of the two nodes has keys and the other has none; {_SAME_KEYS}"

_ENDS: dict[int, str] = {
    int(zmq.EVENT_CLOSED): REFUSED,
    int(zmq.EVENT_DISCONNECTED): "connection lost while it was being made",
    # Whoever sees first that the other has keys breaks it off, and the other sees no more than that.
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "what listens there broke off the handshake: it is no dpwa node, or one "
    f"of the two has keys and the other has none; {_SAME_KEYS}",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "what listens there is no dpwa node: it broke the rules of the handshake",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the peer refused this node's key",
}


class Connection:
    """A connection that is being made, and then stands until it breaks or is closed.

    Args:
        dealer: a new socket; closed if anything fails here.
        address: where to connect to, as ZeroMQ writes it.

    Raises:
        zmq.ZMQError, OSError: there are no descriptors left.
    """

    def __init__(self, dealer: zmq.Socket[bytes], address: str) -> None:
        self.socket = dealer
        self.monitor: zmq.Socket[bytes] | None = None
        self._address = address
        self._descriptor: int | None = None
        self._tcp: socket.socket | None = None  # a second handle, so that a number used again can never mislead
        self._before_bytes = self._allowed_bytes = 0
        self._since_s = time.monotonic()
        self.round_trip_s: float | None = None
        """How long TCP's connection took to make, as soon as it has been made; the handshake comes after it."""
        try:
            self.monitor = dealer.get_monitor_socket()
            allow_ipv6(dealer, address)
            dealer.connect(address)
        except (zmq.ZMQError, OSError):
            self.close()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether it stands: a message can be sent."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & _POLLOUT)

    def close(self) -> None:
        """Close it; what is under way is lost."""
        self._stop_monitor()
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
        self.socket.close()

    # --- While it is being made -----------------------------------------------------------------------------------

    def failure(self) -> str | None:
        """Why it will not be made, if that is known by now."""
        while self.monitor is not None and self.monitor.poll(0):
            event = parse_monitor_message(self.monitor.recv_multipart())
            if event["event"] == zmq.EVENT_CONNECTED:
                self._descriptor = int(event["value"])
                self.round_trip_s = time.monotonic() - self._since_s
            elif event["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return _OTHER_SECURITY
            elif event["event"] in _ENDS:
                return _ENDS[event["event"]]
        return None

    def made(self) -> None:
        """It stands: from now on only its bytes are counted."""
        if self.monitor is None:
            return
        self.failure()  # takes what the monitor still holds
        self._stop_monitor()
        if sys.platform == "linux" and self._descriptor is not None:
            with contextlib.suppress(OSError):  # no descriptor is left, or it has broken already
                self._tcp = _duplicate(self._descriptor, self._address)

    def _stop_monitor(self) -> None:
        if self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close()
            self.monitor = None

    # --- What comes over it ---------------------------------------------------------------------------------------

    def received_bytes(self) -> int | None:
        """Bytes that the kernel has received since the connection was made; None where it does not tell."""
        if self._tcp is None:
            return None
        try:
            info = self._tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return None
        return int(_RECEIVED.unpack_from(info, _RECEIVED_AT_BYTE)[0]) if len(info) >= _TCP_INFO_BYTES else None

    def begin(self) -> None:
        """A request begins: what comes from now on counts as its answer."""
        late_bytes = min(max(0, self._allowed_bytes - self.came_bytes()), _MOST_LATE_BYTES)
        self._before_bytes = self.received_bytes() or 0
        self._since_s = time.monotonic()
        self._allowed_bytes = _SLACK_BYTES + late_bytes

    def allow(self, wanted_bytes: int) -> None:
        """So many bytes have been asked for."""
        self._allowed_bytes += wanted_bytes

    def end(self) -> None:
        """The request has its whole answer: nothing more is to come."""
        self._before_bytes = self.received_bytes() or 0
        self._since_s = time.monotonic()
        self._allowed_bytes = _SLACK_BYTES

    def excess(self) -> str | None:
        """What is wrong with the amount that has come, if there is too much of it."""
        came_bytes = self.came_bytes()
        allowed_bytes = self._allowed_bytes + int(_IDLE_BYTES_PER_S * (time.monotonic() - self._since_s))
        if came_bytes <= allowed_bytes:
            return None
        return f"sent {came_bytes} bytes where at most {allowed_bytes} were asked for"

    def came_bytes(self) -> int:
        """Bytes that have come since the request began, or the last one ended; 0 where the kernel does not tell."""
        received_bytes = self.received_bytes()
        return 0 if received_bytes is None else received_bytes - self._before_bytes


def _duplicate(descriptor: int, address: str) -> socket.socket | None:
    """A handle of our own for a TCP connection to an address; None if the descriptor is something else.

    Raises:
        OSError: there is no such descriptor, or none is left for another handle.
    """
    expected = urlsplit(address)
    own = second_handle(descriptor)
    if own is None:
        return None
    with contextlib.suppress(OSError):  # it has lost its peer
        if own.getpeername()[:2] == (expected.hostname, expected.port):
            return own
    own.close()
    return None
