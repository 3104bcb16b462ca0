"""The asking side over ZeroMQ: one DEALER per peer, opened when first needed.

A pull is bounded in time whatever the peer does, and leaves nothing behind: an answer that comes too late carries an
old nonce and is dropped; after anything illegal the connection is closed and made anew.

Must not know: which peer to ask, the trainer. Runs in: the Tx thread alone.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

import zmq

from dpwa.errors import ConfigError, NodeClosed, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.transport.conversation import Conversation
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.messages import Message, Propose, Pull, Settle
from dpwa.transport.names import HostNames
from dpwa.transport.pulling import Pulled, Target
from dpwa.transport.reception import Reception
from dpwa.transport.segments import Segments
from dpwa.transport.sockets import Links, dealer
from dpwa.transport.wire import encode

__all__ = ["ZmqClient"]

_Received = TypeVar("_Received")

# How often a pull looks whether the connection still stands while nothing arrives.
_CHECK_S = 0.1


class ZmqClient:
    """Pulls over ZeroMQ.

    Args:
        context: shared ZeroMQ context.
        addresses: host and port of each peer.
        links: other ways than plain TCP.
        segments: the peers' shared memory.
        timeout_s: deadline of a whole pull.
        connect_timeout_s: deadline of the connection within it.
        max_connections: connections kept open; beyond that the least recently used is closed.
        bell: rings when the node is being closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        addresses: Mapping[str, tuple[str, int]],
        links: Links,
        segments: Segments,
        timeout_s: float,
        connect_timeout_s: float,
        max_connections: int,
        bell: Doorbell,
    ) -> None:
        self._context = context
        self._addresses = addresses
        self._links = links
        self._segments = segments
        self.patience_s = timeout_s
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(connect_timeout_s, timeout_s)
        self._max_connections = max_connections
        self._bell = bell
        self._dealers: OrderedDict[str, zmq.Socket[bytes]] = OrderedDict()
        self._names = HostNames(host for peer, (host, _) in addresses.items() if peer not in links.peers)

    def can_share(self, peer: str) -> bool:
        """See `Client.can_share`."""
        return self._segments.can_share(peer)

    def pull(self, peer: str, pull: Pull, target: Target, within_s: float | None = None) -> Pulled:
        """See `Client.pull`."""
        return self._ask(peer, pull, lambda talk: Reception(talk, self._segments, pull, target).run(), within_s)

    def request(self, peer: str, message: Propose | Settle) -> Message:
        """See `Client.request`."""
        return self._ask(peer, message, Conversation.answer)

    def pause(self, pause_s: float) -> None:
        """See `Client.pause`."""
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        if poller.poll(int(pause_s * 1000) + 1):
            raise NodeClosed("the node was closed during an exchange")

    def _ask(
        self,
        peer: str,
        message: Pull | Propose | Settle,
        receive: Callable[[Conversation], _Received],
        within_s: float | None = None,
    ) -> _Received:
        start_s = time.monotonic()
        timeout_s = self._timeout_s if within_s is None else min(self._timeout_s, within_s)
        connect_deadline_s = start_s + min(timeout_s, self._connect_timeout_s)
        socket = self._open(peer, connect_deadline_s)
        try:
            self._connect(peer, socket, connect_deadline_s)
            socket.send(encode(message), zmq.NOBLOCK)
            deadline_s = start_s + timeout_s

            def wait() -> bool:
                return self._wait(peer, socket, zmq.POLLIN, deadline_s)

            def look() -> None:
                if self._bell.has_rung():
                    raise NodeClosed("the node was closed during an exchange")
                if time.monotonic() >= deadline_s:
                    raise PeerTimeout(peer, "no complete answer in time")

            return receive(Conversation(peer, socket, wait, message, look))
        except zmq.Again as error:  # the connection broke between the poll and the send
            self._hang_up(peer)
            raise PeerUnreachable(peer, "connection lost before the request was sent") from error
        except (PeerUnreachable, RemoteProtocolError):
            self._hang_up(peer)
            raise

    def close(self) -> None:
        """Close all connections."""
        for socket in self._dealers.values():
            socket.close()
        self._dealers.clear()
        self._names.close()

    def _hang_up(self, peer: str) -> None:
        """Close the connection, so that a dead peer costs nothing and a returning one is connected to at once."""
        self._dealers.pop(peer).close()
        self._segments.forget(peer)

    def _open(self, peer: str, deadline_s: float) -> zmq.Socket[bytes]:
        socket = self._dealers.get(peer)
        if socket is None:
            while len(self._dealers) >= self._max_connections:
                self._hang_up(next(iter(self._dealers)))
            host, port = self._addresses[peer]
            try:
                other_way = self._links.peers.get(peer)
                address = other_way or f"tcp://{self._names.number(host, deadline_s, self._bell)}:{port}"
            except ConfigError as error:  # a name that resolved at the start may not do so later
                raise PeerUnreachable(peer, str(error)) from error
            socket = dealer(self._context, self._links.curve, peer)
            socket.connect(address)
            self._dealers[peer] = socket
        self._dealers.move_to_end(peer)
        return socket

    def _connect(self, peer: str, socket: zmq.Socket[bytes], deadline_s: float) -> None:
        if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT and not self._wait(
            peer, socket, zmq.POLLOUT, deadline_s
        ):
            host, port = self._addresses[peer]
            raise PeerUnreachable(peer, f"no connection to {host}:{port} within {self._connect_timeout_s:g} s")

    def _wait(self, peer: str, socket: zmq.Socket[bytes], event: int, deadline_s: float) -> bool:
        """Wait for the socket; False at the deadline.

        Raises:
            NodeClosed: the bell rang.
            PeerUnreachable: an established connection broke.
        """
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        poller.register(socket, event)
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            ready = dict(poller.poll(int(min(left_s, _CHECK_S) * 1000) + 1))
            if self._bell.fileno() in ready:
                raise NodeClosed("the node was closed during an exchange")
            if socket in ready:
                return True
            if event == zmq.POLLIN and not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
                raise PeerUnreachable(peer, "connection lost before the answer was complete")
