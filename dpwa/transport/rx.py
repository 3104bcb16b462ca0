"""The Rx thread: serves this node's newest snapshot to the rest of the cluster.

One ROUTER socket takes pulls from any number of peers. Each peer gets a window of chunks and asks for more as it
receives them, so that peers are served in turn, and one that stops reading costs a window and nothing else.

Must not know: the model, scores, blending. Runs in: the thread named `dpwa-rx-…`; `start`, `wake` and `stop` are
called by the trainer's thread. The socket is made, used and closed in the Rx thread alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import zmq

from dpwa.blending import encode_chunk
from dpwa.errors import ConfigError, InternalError, RemoteProtocolError
from dpwa.snapshot import Snapshot
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.messages import (
    NO_EXCHANGE,
    Busy,
    Chunk,
    Codec,
    Done,
    Message,
    Mismatch,
    More,
    Offer,
    Propose,
    Pull,
    Settle,
)
from dpwa.transport.service import Request, Service
from dpwa.transport.sockets import Links, endpoint, router
from dpwa.transport.wire import decode, encode

__all__ = ["RxCounters", "RxThread"]

# Peers served or waiting at one time. Each may hold a snapshot buffer and a window of chunks.
_MAX_TRANSFERS = 64

# Connections remembered as cut off. A new connection has a new identity, so old entries lose their use.
_MAX_CUT_OFF = 1024

_START_TIMEOUT_S = 5.0


@dataclass
class RxCounters:
    """What the Rx thread did; written by it alone, read by anyone.

    Attributes:
        bytes_out: bytes of snapshots handed to ZeroMQ.
        shared_out: snapshots that peers read from shared memory.
        served: transfers that peers have called done.
        refused: pulls that were answered without a snapshot because of run, name or layout.
        protocol_errors: illegal messages received; each cuts its sender off.
        dropped: transfers given up because the peer stopped reading or vanished.
    """

    bytes_out: int = 0
    shared_out: int = 0
    served: int = 0
    refused: int = 0
    protocol_errors: int = 0
    dropped: int = 0


@dataclass
class _Transfer:
    pull: Pull
    snapshot: Snapshot
    is_shared: bool
    idle_deadline_s: float


@dataclass
class _Waiting:
    request: Request
    deadline_s: float


@dataclass
class _Peers:
    """Per connection: what is under way. Keys are ZeroMQ's connection identities."""

    transfers: dict[bytes, _Transfer] = field(default_factory=dict)
    waiting: dict[bytes, _Waiting] = field(default_factory=dict)
    cut_off: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def forget(self, identity: bytes) -> None:
        self.transfers.pop(identity, None)
        self.waiting.pop(identity, None)


class RxThread:
    """Serves one node.

    Args:
        context: shared ZeroMQ context.
        name: the node's name, for the thread's name and messages.
        host: address to listen on.
        port: port to listen on.
        links: other ways than plain TCP.
        service: decides the answers.
        idle_s: a transfer without a request for this long is given up; no pull waits longer than half of it.
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
        idle_s: float,
    ) -> None:
        self.counters = RxCounters()
        self.error: BaseException | None = None
        self._context = context
        self._name = name
        self._host, self._port = host, port
        self._links = links
        self._service = service
        self._idle_s = idle_s
        self._bell = Doorbell()
        self._ready = threading.Event()
        self._stopping = False
        self._peers = _Peers()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-rx-{name}", daemon=True)

    def start(self) -> None:
        """Listen, and return when the socket is bound.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._thread.start()
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

    def stop(self, timeout_s: float) -> bool:
        """End the thread; True if it ended in time. May be called again, and before `start`."""
        self._stopping = True
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._bell.close()
        return True

    # --- Rx thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with contextlib.closing(router(self._context, self._links.curve)) as socket:
                self._bind(socket)
                self._ready.set()
                self._serve(socket)
        except Exception as error:  # noqa: BLE001  the one broad catch of this thread: kept, and raised to the trainer
            self.error = error
        finally:
            self._ready.set()
            self._peers = _Peers()

    def _bind(self, socket: zmq.Socket[bytes]) -> None:
        try:
            socket.bind(self._links.listen or endpoint(self._host, self._port))
        except zmq.ZMQError as error:
            raise ConfigError(
                f"node {self._name}: cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "stop the program that holds the port, or change host or port in the cluster file"
            ) from error

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        while True:
            poller.poll(self._wait_ms())
            self._bell.silence()
            if self._stopping:
                return
            # Bounded, so that a flood of requests cannot keep the thread from its deadlines and its stop.
            for _ in range(_MAX_TRANSFERS):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._receive(socket, frames)
            self._answer_waiting(socket)
            self._drop_idle()

    def _wait_ms(self) -> int | None:
        deadlines = [transfer.idle_deadline_s for transfer in self._peers.transfers.values()]
        deadlines += [waiting.deadline_s for waiting in self._peers.waiting.values()]
        if not deadlines:
            return None
        return max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1)

    def _receive(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        identity = frames[0]
        if identity in self._peers.cut_off:
            return
        try:
            if len(frames) != 2:
                raise RemoteProtocolError("?", f"request of {len(frames) - 1} frames, expected 1")
            message = decode(frames[1], "?")
            if isinstance(message, Pull | Propose | Settle):
                self._request(socket, identity, message)
            elif isinstance(message, More):
                self._more(socket, identity, message)
            elif isinstance(message, Done):
                self._done(identity, message)
            else:
                raise RemoteProtocolError("?", f"{type(message).__name__} sent to the serving side")
        except RemoteProtocolError:
            self._cut_off(identity)

    def _cut_off(self, identity: bytes) -> None:
        """Never look at this connection again. (ZeroMQ has no way to close one connection of a ROUTER.)"""
        self.counters.protocol_errors += 1
        self._peers.forget(identity)
        self._peers.cut_off[identity] = None
        if len(self._peers.cut_off) > _MAX_CUT_OFF:
            self._peers.cut_off.popitem(last=False)

    def _request(self, socket: zmq.Socket[bytes], identity: bytes, request: Request) -> None:
        self._peers.forget(identity)  # a new request ends the connection's former one
        if len(self._peers.transfers) + len(self._peers.waiting) >= _MAX_TRANSFERS:
            self._send(socket, identity, Busy(request.nonce))
            return
        wait_s = self._service.longest_wait_s(request, self._idle_s)
        self._answer(socket, identity, _Waiting(request, time.monotonic() + wait_s))

    def _answer(self, socket: zmq.Socket[bytes], identity: bytes, waiting: _Waiting) -> None:
        request = waiting.request
        now_s = time.monotonic()
        answered = self._service.answer(request, now_s=now_s, may_wait=now_s < waiting.deadline_s)
        if answered is None:
            self._peers.waiting[identity] = waiting
            return
        self._peers.waiting.pop(identity, None)
        answer, snapshot = answered
        body = self._service.mismatch_body() if isinstance(answer, Mismatch) else None
        is_pull = isinstance(request, Pull)
        self.counters.refused += is_pull and not isinstance(answer, Offer)
        if self._send(socket, identity, answer, body) and snapshot is not None and isinstance(request, Pull):
            is_shared = isinstance(answer, Offer) and answer.slot >= 0
            self._peers.transfers[identity] = _Transfer(request, snapshot, is_shared, time.monotonic() + self._idle_s)
            if not is_shared:
                self._send_chunks(socket, identity, request.first, request.count)

    def _answer_waiting(self, socket: zmq.Socket[bytes]) -> None:
        for identity, waiting in list(self._peers.waiting.items()):
            self._answer(socket, identity, waiting)

    def _more(self, socket: zmq.Socket[bytes], identity: bytes, more: More) -> None:
        transfer = self._peers.transfers.get(identity)
        if transfer is None or transfer.pull.nonce != more.nonce:
            return  # of a transfer that has ended meanwhile: late, not illegal
        transfer.idle_deadline_s = time.monotonic() + self._idle_s
        transfer.is_shared = False
        self._send_chunks(socket, identity, more.first, more.count)

    def _done(self, identity: bytes, done: Done) -> None:
        transfer = self._peers.transfers.get(identity)
        if transfer is not None and transfer.pull.nonce == done.nonce:
            self.counters.served += 1
            self.counters.shared_out += transfer.is_shared
            self._peers.forget(identity)
            if transfer.pull.exchange != NO_EXCHANGE:
                self._service.proposals.fetched(transfer.pull.exchange)

    def _send_chunks(self, socket: zmq.Socket[bytes], identity: bytes, first: int, count: int) -> None:
        transfer = self._peers.transfers[identity]
        memory, pull = transfer.snapshot.memory, transfer.pull
        for index in range(first, first + count):
            first_byte = index * pull.chunk_bytes
            stop_byte = min(first_byte + pull.chunk_bytes, len(memory))
            if first_byte >= stop_byte:
                return  # asked for more than there is: harmless
            codec, body = encode_chunk(self._service.layout, memory, first_byte, stop_byte, _known(pull.codec))
            if not self._send(socket, identity, Chunk(pull.nonce, index, codec), body):
                return
            self.counters.bytes_out += len(body)

    def _send(
        self, socket: zmq.Socket[bytes], identity: bytes, message: Message, body: bytes | memoryview | None = None
    ) -> bool:
        """Send header and body; False, and the peer's transfer is dropped, if it does not read or is gone."""
        frames: list[bytes | memoryview] = [identity, encode(message)]
        if body is not None:
            frames.append(body)
        try:
            # copy=False: ZeroMQ sends a body straight from the snapshot, whose buffer it keeps from being reused.
            socket.send_multipart(frames, zmq.NOBLOCK, copy=body is None)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.counters.dropped += 1
            self._peers.forget(identity)
            return False
        return True

    def _drop_idle(self) -> None:
        now_s = time.monotonic()
        for identity, transfer in list(self._peers.transfers.items()):
            if transfer.idle_deadline_s <= now_s:
                self.counters.dropped += 1
                self._peers.forget(identity)


def _known(codec: int) -> Codec:
    """The codec asked for, or the plain one where a newer peer asks for one that this node does not know."""
    return Codec(codec) if codec in Codec.__members__.values() else Codec.RAW
