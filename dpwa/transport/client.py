"""The asking side over ZeroMQ: one DEALER per peer, opened when first needed.

A pull is bounded in time whatever the peer does, and leaves nothing behind: an answer that comes too late carries an
old nonce and is dropped; after anything illegal the connection is closed and made anew.

Must not know: which peer to ask, blending, the trainer. Runs in: the Tx thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import zmq

from dpwa.errors import ConfigError, NodeClosed, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.sockets import dealer, endpoint
from dpwa.transport.wire import HAS_BODY, MAX_WINDOW, Chunk, Codec, Message, Mismatch, More, Offer, Pull, decode, encode

__all__ = ["Client", "Pulled", "ZmqClient"]

# Chunks under way. Half of the limit: enough to keep a fast link busy, little to throw away when a peer vanishes.
WINDOW = MAX_WINDOW // 2

# How often a pull looks whether the connection still stands while nothing arrives.
_CHECK_S = 0.1


@dataclass(frozen=True)
class Pulled:
    """The peer's answer to a pull.

    Attributes:
        answer: `Offer` (then all its bytes have been received), or one of the answers without a snapshot.
        received_bytes: bytes of bodies received.
        peer_layout: the peer's layout as text after a `Mismatch`, else empty.
    """

    answer: Message
    received_bytes: int = 0
    peer_layout: str = ""


class Client(Protocol):
    """What an exchange needs of a transport."""

    def pull(self, peer: str, pull: Pull, into: memoryview) -> Pulled:
        """Ask a peer for its snapshot and receive it into a buffer of exactly that size.

        Raises:
            PeerUnreachable: no connection in time, or it broke.
            PeerTimeout: connected, but no complete answer in time.
            RemoteProtocolError: the peer sent something illegal.
            NodeClosed: this node is being closed.
        """


class ZmqClient:
    """Pulls over ZeroMQ.

    Args:
        context: shared ZeroMQ context.
        addresses: host and port of each peer.
        timeout_s: deadline of a whole pull.
        connect_timeout_s: deadline of the connection within it.
        bell: rings when the node is being closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        addresses: Mapping[str, tuple[str, int]],
        timeout_s: float,
        connect_timeout_s: float,
        bell: Doorbell,
    ) -> None:
        self._context = context
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(connect_timeout_s, timeout_s)
        self._bell = bell
        self._dealers: dict[str, zmq.Socket[bytes]] = {}

    def pull(self, peer: str, pull: Pull, into: memoryview) -> Pulled:
        """See `Client.pull`."""
        start_s = time.monotonic()
        socket = self._open(peer)
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        try:
            self._connect(peer, socket, poller, start_s + self._connect_timeout_s)
            socket.send(encode(pull), zmq.NOBLOCK)
            return _Reception(self, peer, socket, poller, start_s + self._timeout_s, pull, into).run()
        except zmq.Again as error:  # the connection broke between the poll and the send
            self._hang_up(peer)
            raise PeerUnreachable(peer, "connection lost before the request was sent") from error
        except (PeerUnreachable, RemoteProtocolError):
            self._hang_up(peer)
            raise

    def wait(self, peer: str, socket: zmq.Socket[bytes], poller: zmq.Poller, event: int, deadline_s: float) -> bool:
        """Wait for the socket; False at the deadline.

        Raises:
            NodeClosed: the bell rang.
            PeerUnreachable: an established connection broke.
        """
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

    def close(self) -> None:
        """Close all connections."""
        for socket in self._dealers.values():
            socket.close()
        self._dealers.clear()

    def _hang_up(self, peer: str) -> None:
        """Close the connection, so that a dead peer costs nothing and a returning one is connected to at once."""
        self._dealers.pop(peer).close()

    def _open(self, peer: str) -> zmq.Socket[bytes]:
        socket = self._dealers.get(peer)
        if socket is None:
            host, port = self._addresses[peer]
            try:
                address = endpoint(host, port)
            except ConfigError as error:  # a name that resolved at the start may not do so later
                raise PeerUnreachable(peer, str(error)) from error
            socket = dealer(self._context)
            socket.connect(address)
            self._dealers[peer] = socket
        return socket

    def _connect(self, peer: str, socket: zmq.Socket[bytes], poller: zmq.Poller, deadline_s: float) -> None:
        if not self.wait(peer, socket, poller, zmq.POLLOUT, deadline_s):
            host, port = self._addresses[peer]
            raise PeerUnreachable(peer, f"no connection to {host}:{port} within {self._connect_timeout_s:g} s")


class _Reception:
    """The answer to one pull, frame by frame."""

    def __init__(
        self,
        client: ZmqClient,
        peer: str,
        socket: zmq.Socket[bytes],
        poller: zmq.Poller,
        deadline_s: float,
        pull: Pull,
        into: memoryview,
    ) -> None:
        self._client, self._peer, self._socket, self._poller = client, peer, socket, poller
        self._deadline_s = deadline_s
        self._pull = pull
        self._into = into

    def run(self) -> Pulled:
        answer = self._next()
        if isinstance(answer, Mismatch):
            body = self._socket.recv()
            return Pulled(answer, len(body), body.decode(errors="replace"))
        if isinstance(answer, Offer):
            self._receive_chunks(answer)
            return Pulled(answer, answer.total_bytes)
        if isinstance(answer, (Pull, More, Chunk)):
            raise self._illegal(f"{type(answer).__name__} where an answer was expected")
        return Pulled(answer)

    def _next(self) -> Message:
        """The next header of this pull; its body, if it has one, is the frame that is left in the socket."""
        while True:
            if not self._client.wait(self._peer, self._socket, self._poller, zmq.POLLIN, self._deadline_s):
                raise PeerTimeout(self._peer, "no complete answer in time")
            message = decode(self._socket.recv(), self._peer)
            has_body = bool(self._socket.getsockopt(zmq.RCVMORE))
            if has_body != isinstance(message, HAS_BODY):
                raise self._illegal(f"{type(message).__name__} with the wrong number of frames")
            if message.nonce == self._pull.nonce:
                return message
            if has_body:
                self._drop_body()

    def _drop_body(self) -> None:
        """Take the body of a late message off the socket."""
        self._socket.recv(copy=False)
        if self._socket.getsockopt(zmq.RCVMORE):
            raise self._illegal("message with more than two frames")

    def _receive_chunks(self, offer: Offer) -> None:
        if offer.total_bytes != len(self._into) or offer.codec != Codec.RAW:
            raise self._illegal(
                f"offer of {offer.total_bytes} bytes in codec {offer.codec}, "
                f"expected {len(self._into)} bytes in codec {Codec.RAW}"
            )
        count = -(-offer.total_bytes // offer.chunk_bytes)
        requested = min(self._pull.window, count)
        for index in range(count):
            # Asking for a few at a time keeps the window full with few messages.
            if requested < count and requested - index <= WINDOW // 2:
                more = min(WINDOW // 2, count - requested)
                self._socket.send(encode(More(self._pull.nonce, requested, more)), zmq.NOBLOCK)
                requested += more
            self._receive_chunk(offer, index)

    def _receive_chunk(self, offer: Offer, index: int) -> None:
        chunk = self._next()
        if not isinstance(chunk, Chunk) or chunk.index != index:
            raise self._illegal(f"{chunk} where chunk {index} was expected")
        part = self._into[index * offer.chunk_bytes : (index + 1) * offer.chunk_bytes]
        # recv_into cuts a longer frame short in silence and returns its true size.
        size = self._socket.recv_into(part)
        if size != len(part) or self._socket.getsockopt(zmq.RCVMORE):
            raise self._illegal(f"chunk {index} of {size} bytes, expected one frame of {len(part)}")

    def _illegal(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(self._peer, what[:200])
