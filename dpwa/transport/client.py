"""The asking side over ZeroMQ: one DEALER per peer, opened when first needed.

A pull is bounded in time and in memory whatever the peer does, and leaves nothing behind: an answer that comes too late
carries an old nonce and is dropped; after anything illegal the connection is closed and made anew.

Must not know: which peer to ask, the trainer. Runs in: the Tx thread alone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

import zmq

from dpwa.config import hosts
from dpwa.errors import ConfigError, ModelMismatch, NodeClosed, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.exchange.client import Pulled
from dpwa.exchange.messages import (
    NEWEST_ROUND,
    Lease,
    Meet,
    Message,
    Propose,
    PullRequest,
    Settle,
    Vouch,
)
from dpwa.exchange.patience import Patience
from dpwa.exchange.slices import Slice
from dpwa.snapshot.staging import Staging, encoded_chunk_bytes
from dpwa.snapshot.state import Codec
from dpwa.transport.asking import Asking
from dpwa.transport.connection import REFUSED, Connection
from dpwa.transport.conversation import Conversation
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.names import HostNames
from dpwa.transport.peer_keys import PeerKeys
from dpwa.transport.reception import Reception
from dpwa.transport.segments import Segments
from dpwa.transport.sockets import Links, dealer
from dpwa.transport.wire import encode

__all__ = ["ZmqClient"]

_Received = TypeVar("_Received")

# How often a pull looks whether its connection still stands, and how much has come, while nothing complete arrives. At
# a gigabyte per second so much comes within one look that twice the time would be felt.
_CHECK_S = 0.02

# A meeting is answered by the Rx thread at once, or it is not worth the time that exchanges could have. The connection
# may take longer.
_MEETING_S = 1.0

# ZeroMQ's greeting takes one to two round trips and its handshake one, with keys two: as many, twice over.
_HANDSHAKE_ROUND_TRIPS = 8

# Between two tries of the first connection to a peer, which may be starting just now.
_RETRY_S = 0.05


class ZmqClient:
    """Pulls over ZeroMQ.

    Args:
        context: shared ZeroMQ context.
        name: this node.
        addresses: host and port of each peer.
        links: other ways than plain TCP.
        segments: the peers' shared memory.
        own_host: this node's host, if nodes on it share memory; None: none do.
        timeout_s: deadline of a request whose link is fast enough.
        longest_s: deadline on links that were measured to need it.
        connect_timeout_s: deadline of the connection within it.
        max_connections: connections kept open; beyond that the least recently used is closed.
        bell: rings when the node is being closed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        name: str,
        addresses: Mapping[str, tuple[str, int]],
        links: Links,
        segments: Segments,
        own_host: str | None = None,
        timeout_s: float,
        longest_s: float,
        connect_timeout_s: float,
        max_connections: int,
        bell: Doorbell,
    ) -> None:
        self._context = context
        self._addresses = dict(addresses)
        self._own_host = None if own_host is None else hosts.address_key(own_host)
        self._links = links
        self._segments = segments
        self.patience_s = timeout_s
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(connect_timeout_s, timeout_s)
        self._max_connections = max_connections
        self._bell = bell
        self._patience = Patience(timeout_s, longest_s)
        self._connections: OrderedDict[str, Connection] = OrderedDict()
        self._names = HostNames(host for peer, (host, _) in addresses.items() if peer not in links.peers)
        self._tried: set[str] = set()
        self._keys = PeerKeys(links.curve, name)
        self._heard: set[str] = set()

    def can_share(self, peer: str) -> bool:
        """See `Client.can_share`."""
        return self._segments.can_share(peer)

    def know(self, peer: str, host: str, port: int, teller: str = "") -> None:
        """See `Client.know`."""
        self._addresses[peer] = (host, port)
        if hosts.address_key(host) == self._own_host:
            self._segments.know(peer)
        if ":" not in peer:
            self._have_vouched(peer, teller)

    def _doubt(self, peer: str) -> str:
        """What may be the reason where a peer that has never answered breaks off."""
        return "" if peer in self._heard else self._keys.doubt

    def _have_vouched(self, peer: str, teller: str) -> None:
        """Where the key of a peer is not known: ask whoever spoke of it, or else whom this node has asked last."""
        asked = teller if teller in self._addresses else next(reversed(self._connections), peer)
        question = None if asked == peer or ":" in asked else self._keys.question(peer)
        if question is not None:
            with contextlib.suppress(PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch):
                self._keys.take(peer, self.request(asked, question))

    def forget(self, peer: str) -> None:
        """See `Client.forget`."""
        self._hang_up(peer)
        self._segments.part(peer)
        self._patience.forget(peer)
        host, _ = self._addresses.pop(peer, ("", 0))
        if not any(host == other for other, _ in self._addresses.values()):
            self._names.forget(host)
        self._tried.discard(peer)
        self._heard.discard(peer)

    def pull(
        self, peer: str, request: PullRequest, staging: Staging, part: Slice, within_s: float | None = None
    ) -> Pulled:
        """See `Client.pull`."""
        # How the snapshot of a round travels the peer decides.
        codec = Codec(request.codec) if request.round == NEWEST_ROUND else Codec.RAW
        whole_bytes = encoded_chunk_bytes(staging.layout, 0, staging.layout.total_bytes, codec)
        share = sum(count for _, count in part.ranges) * part.chunk_bytes / max(1, staging.layout.total_bytes)
        received = self._ask(
            peer,
            request,
            lambda talk: Reception(talk, self._segments, request, staging, part).run(),
            within_s,
            wanted_bytes=whole_bytes * min(1.0, share),
        )
        if not received.is_shared:
            self._patience.received(peer, received.received_bytes, received.transfer_s)
        return received

    def request(self, peer: str, message: Propose | Settle | Meet | Vouch | Lease) -> Message:
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
        message: PullRequest | Propose | Settle | Meet | Vouch | Lease,
        receive: Callable[[Conversation], _Received],
        within_s: float | None = None,
        wanted_bytes: float = 0.0,
    ) -> _Received:
        start_s = time.monotonic()
        rest_s = self._patience.rest_s(peer, wanted_bytes)
        longest_s = self._patience.longest_s if within_s is None else min(self._patience.longest_s, within_s)
        first_word_end_s = start_s + min(self._timeout_s, longest_s)
        self._close_flooded()
        asking: Asking | None = None
        try:
            connection = self._connected(peer, start_s, first_word_end_s)
            asked_s = time.monotonic()
            is_small = isinstance(message, Meet | Vouch | Lease)
            end_s = min(start_s + longest_s, asked_s + _MEETING_S if is_small else math.inf)
            first_word_end_s = min(first_word_end_s, end_s, asked_s + self._first_word_s(peer, message))
            asking = Asking(connection, message, asked_s, first_word_end_s, rest_s, end_s)
            connection.socket.send(encode(message), zmq.NOBLOCK)
            conversation = Conversation(
                peer,
                connection.socket,
                lambda: self._wait(peer, connection, asking.deadline_s),
                message,
                lambda: self._look(peer, asking.deadline_s),
                on_answer=asking.answered,
                on_more=asking.more,
            )
            received = receive(conversation)
        except zmq.Again as error:  # the connection broke between the poll and the send
            self._hang_up(peer)
            raise PeerUnreachable(peer, "connection lost before the request was sent") from error
        except (PeerTimeout, PeerUnreachable, RemoteProtocolError) as error:
            deadline_s = first_word_end_s if asking is None else asking.deadline_s
            error.late_s = max(0.0, time.monotonic() - deadline_s)
            if asking is not None and isinstance(error, PeerTimeout):
                self._timed_out(peer, asking, error)
            else:
                self._hang_up(peer)
            raise
        self._patience.answered(peer, asking.answered_after_s)
        self._heard.add(peer)
        connection.end()
        return received

    def _first_word_s(self, peer: str, message: PullRequest | Propose | Settle | Meet | Vouch | Lease) -> float:
        # A question what became of a proposal is never cut short: not to hear the answer costs what is conserved. Nor
        # one for the snapshot of a round, which a neighbour may only be about to make.
        is_cut_short = isinstance(message, Propose) or (
            isinstance(message, PullRequest) and message.round == NEWEST_ROUND
        )
        return self._patience.first_word_s(peer) if is_cut_short else self._timeout_s

    def _timed_out(self, peer: str, asking: Asking, error: PeerTimeout) -> None:
        if not asking.is_answered:
            if not asking.is_short:  # less than what an exchange would wait says nothing of exchanges
                self._patience.was_silent(peer)
            if asking.is_in_the_way():
                self._hang_up(peer)
            return
        self._patience.answered(peer, asking.answered_after_s)
        asking.tell_progress(error)
        self._patience.received(peer, error.received_bytes, error.transfer_s)
        # What is still under way would stand before the next answer, and on a slow link take all of its time.
        self._hang_up(peer)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._names.close()

    def _hang_up(self, peer: str) -> None:
        """Close the connection, so that a dead peer costs nothing and a returning one is connected to at once."""
        connection = self._connections.pop(peer, None)
        if connection is not None:
            connection.close()
        self._segments.forget(peer)

    def _close_flooded(self, *, without: str = "") -> None:
        """Close the connections over which more came than was asked for, while nobody looked.

        Args:
            without: a peer whose connection is in use: whoever uses it looks by himself.
        """
        for peer, connection in list(self._connections.items()):
            if peer != without and connection.excess() is not None:
                self._hang_up(peer)

    def _connected(self, peer: str, start_s: float, last_s: float) -> Connection:
        """The connection to a peer; a new one if there is none, or it has broken since it was used last.

        Args:
            peer: whose it is.
            start_s: when the time to connect begins.
            last_s: its end on links of long latency, for which the time to connect would be too short.

        Raises:
            NodeClosed: the bell rang.
            PeerUnreachable: there is none.
        """
        connection = self._connections.get(peer)
        if connection is not None and not (connection.is_ready and self._keys.are_known(peer)):
            self._hang_up(peer)
            connection = None
        if connection is None:
            while len(self._connections) >= self._max_connections:
                self._hang_up(next(iter(self._connections)))
            connection = self._make(peer, min(last_s, start_s + self._connect_timeout_s), last_s)
        self._connections.move_to_end(peer)
        return connection

    def _make(self, peer: str, deadline_s: float, last_s: float) -> Connection:
        """Make a connection. One that is refused is tried again only if it is the first to that peer in this life.

        Nodes are started together and not at the same moment. A peer that refuses later has gone, and must not cost
        its whole connect timeout each time it is given another chance.
        """
        if peer not in self._addresses:
            raise PeerUnreachable(peer, "it has left the cluster, or was forgotten")
        is_first = peer not in self._tried
        self._tried.add(peer)
        while True:
            connection = self._connections[peer] = self._open(peer, deadline_s)
            failure = self._failure(connection, deadline_s, last_s)
            if failure is None:
                connection.made()
                if self._keys.to_show is not None:
                    connection.socket.send(encode(self._keys.to_show), zmq.NOBLOCK)
                return connection
            if self._links.curve is not None:
                self._links.curve.failed(peer)
            if not is_first or time.monotonic() + _RETRY_S >= deadline_s:
                address = hosts.address_text(*self._addresses[peer])
                raise PeerUnreachable(peer, f"no connection to {address}{failure}{self._doubt(peer)}")
            self._hang_up(peer)
            # At an address of `join` anybody of the list may be: the next key is tried at once.
            if self._links.curve is None or ":" not in peer or failure.endswith(REFUSED):
                self.pause(_RETRY_S)

    def _open(self, peer: str, deadline_s: float) -> Connection:
        host, port = self._addresses[peer]
        try:
            other_way = self._links.peers.get(peer)
            address = other_way
            if address is None:
                number = self._names.number(host, deadline_s, self._bell)
                address = f"tcp://{hosts.address_text(number, port)}"
            return Connection(dealer(self._context, self._links.curve, peer), address)
        except ConfigError as error:  # a name that resolved at the start may not do so later
            raise PeerUnreachable(peer, str(error)) from error
        except (zmq.ZMQError, OSError) as error:
            what = str(error.strerror or error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                what += "; this process has no file descriptors left: raise `ulimit -n`, or close files"
            raise PeerUnreachable(peer, f"no connection can be opened: {what}") from error

    def _failure(self, connection: Connection, deadline_s: float, last_s: float) -> str | None:
        """Wait until a new connection stands, or why it will not.

        TCP's connection takes one round trip. With a far peer the handshake may take longer than the time to connect;
        a peer that is near and hangs gets no more.
        """
        start_s = time.monotonic()
        poller = self._poller(connection, zmq.POLLOUT)
        if connection.monitor is not None:
            poller.register(connection.monitor, zmq.POLLIN)
        while not connection.is_ready:
            failure = connection.failure()
            if failure is not None:
                return f": {failure}"
            far_s = 0.0
            if connection.round_trip_s is not None:
                far_s = start_s + (1 + _HANDSHAKE_ROUND_TRIPS) * connection.round_trip_s
            left_s = max(deadline_s, min(last_s, far_s)) - time.monotonic()
            if left_s <= 0:
                # The same words each time, so that the journal can count what repeats.
                if far_s > deadline_s:
                    return f" within {_HANDSHAKE_ROUND_TRIPS} round trips"
                return f" within {self._connect_timeout_s:g} s"
            if self._bell.fileno() in dict(poller.poll(int(left_s * 1000) + 1)):
                raise NodeClosed("the node was closed during an exchange")
        return None

    def _poller(self, connection: Connection, event: int) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        poller.register(connection.socket, event)
        return poller

    def _look(self, peer: str, deadline_s: float) -> None:
        """Between pieces of work that nothing else bounds: see `Conversation.look`."""
        if self._bell.has_rung():
            raise NodeClosed("the node was closed during an exchange")
        if time.monotonic() >= deadline_s:
            raise PeerTimeout(peer, "no complete answer in time")

    def _wait(self, peer: str, connection: Connection, deadline_s: float) -> bool:
        """Wait for a message; False at the deadline.

        Raises:
            NodeClosed: the bell rang.
            PeerUnreachable: the connection broke.
            RemoteProtocolError: more comes than was asked for.
        """
        poller = self._poller(connection, zmq.POLLIN)
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            ready = dict(poller.poll(int(min(left_s, _CHECK_S) * 1000) + 1))
            if self._bell.fileno() in ready:
                raise NodeClosed("the node was closed during an exchange")
            if connection.socket in ready:
                return True
            if not connection.is_ready:
                raise PeerUnreachable(peer, f"connection lost before the answer was complete{self._doubt(peer)}")
            excess = connection.excess()
            if excess is not None:
                raise RemoteProtocolError(peer, excess)
            self._close_flooded(without=peer)
