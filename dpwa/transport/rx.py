"""The Rx thread: serves this node's newest snapshot to the rest of the cluster.

One ROUTER socket takes pulls from any number of peers. Each peer gets a window of chunks and asks for more as it
receives them, so that peers are served in turn, and one that stops reading costs a window and nothing else.

Runs in: the thread named `dpwa-rx-…`; `start`, `published` and `stop` are called by the trainer's thread. The socket is
made, used and closed in the Rx thread alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import zmq

from dpwa.errors import InternalError, RemoteProtocolError
from dpwa.exchange.messages import (
    Busy,
    Done,
    Lease,
    Meet,
    Message,
    Mismatch,
    More,
    Offer,
    Present,
    Propose,
    PullRequest,
    Refused,
    Settle,
    Vouch,
    Vouched,
)
from dpwa.exchange.service import Request, Service
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.transport.connection_rules import Cause, PeerConnection, framed_bytes
from dpwa.transport.door import Door, most_connections
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.gate import Gate
from dpwa.transport.guests import Guests
from dpwa.transport.sending import RxCounters, Sender
from dpwa.transport.sockets import Links, router
from dpwa.transport.transfers import Transfer, TransferRules, Waiting
from dpwa.transport.wire import decode
from dpwa.transport.worker_thread import WorkerThread

__all__ = ["RxCounters", "RxThread"]

# As a plain number: `&` with a member of an enumeration takes three times as long.
_POLLIN = int(zmq.POLLIN)

# Peers served or waiting at one time. Each may hold a snapshot buffer and a window of chunks.
_MAX_TRANSFERS = 64

# Connections remembered as cut off. A new connection has a new identity, so old entries lose their use.
_MAX_CUT_OFF = 1024

# Requests are answered for so long before the connections are looked at again.
_TURN_S = 0.01

_START_TIMEOUT_S = 5.0


@dataclass
class _Peers:
    """Per connection: what is under way. Keys are ZeroMQ's connection identities."""

    transfers: dict[bytes, Transfer] = field(default_factory=dict)
    waiting: dict[bytes, Waiting] = field(default_factory=dict)
    cut_off: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def forget(self, identity: bytes) -> None:
        self.transfers.pop(identity, None)
        self.waiting.pop(identity, None)

    def clear(self) -> None:
        for under_way in (self.transfers, self.waiting, self.cut_off):
            under_way.clear()

    def has(self, connection: PeerConnection) -> bool:
        return connection.identity in self.transfers or connection.identity in self.waiting


class RxThread(WorkerThread):
    """Serves one node.

    Args:
        context: shared ZeroMQ context.
        name: the node's name, for the thread's name and messages.
        host: address to listen on.
        port: port to listen on.
        links: other ways than plain TCP.
        service: decides the answers.
        peers: how many other nodes the cluster has.
        timeout_s: how long an asker waits for its answer; no pull waits longer for a publish than half of it.
        longest_s: how long it waits for the end of an answer on a slow link.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        name: str,
        host: str,
        port: int,
        links: Links,
        service: Service,
        peers: int,
        timeout_s: float,
        longest_s: float,
    ) -> None:
        super().__init__("rx", name)
        self.counters = RxCounters()
        self._context = context
        self._name = name
        self._host, self._port = host, port
        self._links = links
        self._guests = None if links.curve is None else Guests(links.curve)
        self._service = service
        self._most_connections = most_connections(peers)
        self._rules = TransferRules(timeout_s, longest_s)
        self._timeout_s = timeout_s
        self._short_since_s: float | None = None
        self._bell = Doorbell()
        self._ready = threading.Event()
        self._peers = _Peers()

    def start(self) -> None:
        """Listen, and return when the socket is bound.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        super().start()
        if not self._ready.wait(_START_TIMEOUT_S):
            self.error = InternalError(f"the Rx thread of node {self._name} was not ready after {_START_TIMEOUT_S:g} s")
        if self.error is not None:
            raise self.error

    def published(self) -> None:
        """Tell the thread that there is a new snapshot; costs nothing while no peer waits for one.

        The thread looks once more after it has noted a peer as waiting, and the trainer asks here after it has
        swapped the snapshot: so one of the two always sees the other.
        """
        if self._peers.waiting:
            self._bell.ring()

    def _interrupt(self) -> None:
        self._bell.ring()

    def _let_go(self) -> None:
        self._bell.close()

    # --- Rx thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.ExitStack() as closed, contextlib.closing(router(self._context, self._links.curve)) as socket:
            gate = self._gate()  # before anybody can come: ZeroMQ refuses those about whom it can ask nobody
            if gate is not None:
                closed.callback(gate.close)
            door = Door(
                self._context,
                socket,
                name=self._name,
                host=self._host,
                port=self._port,
                links=self._links,
                most=self._most_connections,
                transfer_s=self._rules.unread_s,
                counts=self.counters.guarded,
                is_engaged=self._peers.has,
                is_open=self._service.members is not None,
            )
            with contextlib.closing(door):
                self._door = door
                self._sender = Sender(socket, door, self._service, self.counters, self._peers.forget)
                self._ready.set()
                self._serve(socket, gate)

    def _gate(self) -> Gate | None:
        """Answers whose keys are let in; None without encryption."""
        if self._guests is None:
            return None
        return Gate(self._context, self._guests.user_id, lambda: self._door.happened(Cause.STRANGER))

    def _end(self) -> None:
        self._ready.set()  # also for a start that failed
        self._peers.clear()  # the door knows it, too, and each transfer holds a snapshot

    def _serve(self, socket: zmq.Socket[bytes], gate: Gate | None) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        poller.register(self._door.connections.monitor, zmq.POLLIN)
        if gate is not None:
            poller.register(gate.socket, zmq.POLLIN)
        while True:
            poller.poll(self._wait_ms())
            self._bell.silence()
            if self._stopping:
                return
            if gate is not None:
                gate.answer_all()
            self._receive_all(socket)
            self._answer_waiting()
            now_s = time.monotonic()
            if self._door.watch(now_s, is_alarmed=self._service.serving.is_short):
                self._free_buffers(now_s)
            self._drop_overdue(now_s)

    def _wait_ms(self) -> int | None:
        deadlines = [self._rules.deadline_s(transfer) for transfer in self._peers.transfers.values()]
        deadlines += [waiting.deadline_s for waiting in self._peers.waiting.values()]
        if self._door.next_s is not None:
            deadlines.append(self._door.next_s)
        if not deadlines:
            return None
        return max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1)

    def _receive_all(self, socket: zmq.Socket[bytes]) -> None:
        """Take what is there; bounded, so that a flood cannot keep the thread from its deadlines and its stop."""
        end_s, is_sealed = time.monotonic() + _TURN_S, self._links.curve is not None
        is_readable = bool(int(socket.getsockopt(zmq.EVENTS)) & _POLLIN)  # ten times as fast as an `Again`
        while is_readable and (now_s := time.monotonic()) < end_s:
            try:
                identity = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frame = rest = socket.recv(copy=False)
            read_bytes = framed_bytes(len(frame), is_sealed=is_sealed)
            while rest.more:
                rest = socket.recv(copy=False)
                read_bytes += framed_bytes(len(rest), is_sealed=is_sealed)
            self._receive(identity, frame, read_bytes, now_s)

    def _receive(self, identity: bytes, frame: zmq.Frame, read_bytes: int, now_s: float) -> None:
        connection = self._door.connections.find(identity, frame, read_bytes, now_s)
        if connection is not None:
            if connection.is_ended:
                return
        elif identity in self._peers.cut_off:
            return
        user_id, speaker = "", None
        if self._guests is not None:
            user_id = str(frame.get("User-Id"))
            speaker = self._guests.speaker(user_id)
            if speaker is None:
                if frame.more or not self._guests.present(user_id, frame.bytes):
                    self._cut_off(identity, Cause.STRANGER)
                return
        try:
            if frame.more:
                raise RemoteProtocolError("?", "request of several frames, expected 1")
            message = decode(frame.bytes, "?")
            if isinstance(message, Present) and self._guests is not None:
                self._guests.renew(user_id, message.certificate)
            else:
                self._take(identity, message, speaker, now_s)
        except RemoteProtocolError:
            self.counters.protocol_errors += 1
            self._cut_off(identity, Cause.ILLEGAL)

    def _take(self, identity: bytes, message: Message, speaker: str | None, now_s: float) -> None:
        """Do what a message asks for; `speaker` is whose key the connection has, where it is encrypted.

        Raises:
            RemoteProtocolError: it is illegal here.
        """
        if isinstance(message, More):
            self._more(identity, message, now_s)
        elif isinstance(message, Done):
            self._done(identity, message, now_s)
        elif isinstance(message, PullRequest | Propose | Settle | Meet | Vouch | Lease):
            if self._guests is not None and speaker != message.node:
                raise RemoteProtocolError("?", "a request in the name of a node that has another key")
            if isinstance(message, Vouch):
                self._vouch(identity, message, now_s)
            else:
                self._request(identity, message, now_s)
        else:
            raise RemoteProtocolError("?", f"{type(message).__name__} sent to the serving side")

    def _cut_off(self, identity: bytes, cause: Cause) -> None:
        """Close a connection. Where it is not known, never look at it again."""
        self._peers.forget(identity)
        connection = self._door.connections.by_identity(identity)
        if connection is not None:
            self._door.end(connection, cause)
            return
        self._door.happened(cause)
        self._peers.cut_off[identity] = None
        if len(self._peers.cut_off) > _MAX_CUT_OFF:
            self._peers.cut_off.popitem(last=False)

    def _request(self, identity: bytes, request: Request, now_s: float) -> None:
        self._replace(identity, now_s)
        peers = self._peers
        if len(peers.transfers) + len(peers.waiting) >= _MAX_TRANSFERS and not self._made_room(now_s):
            self._sender.answer(identity, Busy(request.nonce))
            return
        wait_s = self._service.longest_wait_s(request, self._timeout_s)
        self._answer(identity, Waiting(request, now_s, now_s + wait_s))

    def _vouch(self, identity: bytes, vouch: Vouch, now_s: float) -> None:
        """Tell a member the certificate of another."""
        connection, curve = self._door.connections.by_identity(identity), self._links.curve
        if connection is not None:
            connection.last_request_s = now_s
        certificate = b"" if curve is None else curve.certified.certificate_of(vouch.name)
        self._sender.answer(identity, Vouched(vouch.nonce, certificate))

    def _replace(self, identity: bytes, now_s: float) -> None:
        """A new request ends the connection's former one; what ZeroMQ still holds of that is remembered."""
        transfer = self._peers.transfers.get(identity)
        self._peers.forget(identity)
        connection = None if transfer is None else transfer.connection
        if transfer is None or connection is None:
            return
        connection.replaced.append((connection.sent_bytes, now_s))
        if connection.replaces_too_much:
            self._door.connections.measure_one(connection, now_s)  # the last look may be a while ago
            if connection.replaces_too_much:
                self._door.end(connection, Cause.UNREAD)
                raise RemoteProtocolError("?", "asks for snapshots and does not read them")

    def _made_room(self, now_s: float) -> bool:
        """Make room for another peer at the cost of a transfer that is hopeless."""
        identity = self._rules.without_hope(self._peers.transfers, now_s)
        if identity is not None:
            self._give_up(identity, Cause.HOLDING)
        return identity is not None

    def _answer(self, identity: bytes, waiting: Waiting) -> None:
        request = waiting.request
        now_s = time.monotonic()
        answered = self._service.answer(request, now_s=now_s, may_wait=now_s < waiting.deadline_s)
        connection = self._door.connections.by_identity(identity)
        if connection is not None and not (answered and isinstance(answered[0], Refused | Mismatch)):
            connection.last_request_s = waiting.began_s
        if answered is None:
            self._peers.waiting[identity] = waiting
            return
        self._peers.waiting.pop(identity, None)
        answer, snapshot = answered
        is_pull = isinstance(request, PullRequest)
        self.counters.refused += is_pull and not isinstance(answer, Offer)
        sent_before = 0 if connection is None else connection.sent_bytes
        if self._sender.answer(identity, answer) and snapshot is not None and isinstance(request, PullRequest):
            is_shared = isinstance(answer, Offer) and answer.slot >= 0
            transfer = Transfer(request, snapshot, is_shared, connection, now_s, now_s, sent_before)
            self._peers.transfers[identity] = transfer
            if not is_shared:
                transfer.ask(request.first, request.count)
                self._sender.chunks(identity, transfer, request.first, request.count)

    def _answer_waiting(self) -> None:
        for identity, waiting in list(self._peers.waiting.items()):
            self._answer(identity, waiting)

    def _more(self, identity: bytes, more: More, now_s: float) -> None:
        transfer = self._peers.transfers.get(identity)
        if transfer is None or transfer.pull.nonce != more.nonce:
            return  # of a transfer that has ended meanwhile: late, not illegal
        transfer.ask_more(more, now_s)
        if transfer.connection is not None:
            transfer.connection.last_request_s = now_s
        self._sender.chunks(identity, transfer, more.first, more.count)

    def _done(self, identity: bytes, done: Done, now_s: float) -> None:
        transfer = self._peers.transfers.get(identity)
        if transfer is not None and transfer.pull.nonce == done.nonce:
            self.counters.served += 1
            self.counters.shared_out += transfer.is_shared
            if transfer.connection is not None:
                transfer.connection.has_completed = True
                transfer.connection.last_request_s = now_s
            self._peers.forget(identity)
            if transfer.pull.exchange_id != NO_EXCHANGE:
                self._service.proposals.fetched(transfer.pull.exchange_id)

    # --- Transfers that have lasted too long ----------------------------------------------------------------------

    def _drop_overdue(self, now_s: float) -> None:
        for identity, transfer in list(self._peers.transfers.items()):
            if self._rules.deadline_s(transfer) <= now_s:
                self._give_up(identity, Cause.UNREAD, only_if_unread=True)

    def _free_buffers(self, now_s: float) -> None:
        """While the trainer finds no buffer: end transfers that hold one and make no progress, the oldest first."""
        serving = self._service.serving
        if not serving.is_short:
            self._short_since_s = None
            return
        if self._short_since_s is None:
            self._short_since_s = now_s
        short_s = now_s - self._short_since_s
        for identity in self._rules.in_the_way(self._peers.transfers, serving.snapshot, short_s, now_s):
            self._give_up(identity, Cause.HOLDING)
        for connection in list(self._door.connections.standing):  # what was replaced may hold one, too
            grace_s = self._rules.grace_s(connection)
            if connection.replaced and now_s - connection.replaced[0][1] > grace_s:
                self._door.end(connection, Cause.HOLDING)

    def _give_up(self, identity: bytes, cause: Cause, *, only_if_unread: bool = False) -> None:
        """End a transfer, and close its connection: ZeroMQ holds what was not read.

        Args:
            identity: whose.
            cause: why.
            only_if_unread: leave the connection of a peer that has read all of it, and may ask again.
        """
        transfer = self._peers.transfers[identity]
        self.counters.dropped += 1
        self._peers.forget(identity)
        connection = transfer.connection
        if connection is not None and (connection.unread_bytes > 0 or not only_if_unread):
            self._door.end(connection, cause)
