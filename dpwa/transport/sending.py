"""Sends answers and chunks of snapshots to peers, and counts what the serving side does.

Must not know: requests, which snapshot a peer gets. Runs in: the Rx thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from dpwa.exchange.messages import Chunk, Message, Mismatch
from dpwa.exchange.service import Service
from dpwa.snapshot.staging import encode_chunk
from dpwa.snapshot.state import Codec
from dpwa.transport.connection_rules import Cause, framed_bytes
from dpwa.transport.door import Door
from dpwa.transport.transfers import Transfer
from dpwa.transport.wire import encode

__all__ = ["RxCounters", "Sender"]


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
        guarded: by cause, how often a connection was closed or none was let in.
    """

    bytes_out: int = 0
    shared_out: int = 0
    served: int = 0
    refused: int = 0
    protocol_errors: int = 0
    dropped: int = 0
    guarded: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))


class Sender:
    """Sends for one node.

    Args:
        socket: the ROUTER.
        door: knows the connections.
        service: what is served.
        counters: counted up here.
        forget: called with the identity of a peer that does not read, or is gone.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        door: Door,
        service: Service,
        counters: RxCounters,
        forget: Callable[[bytes], None],
    ) -> None:
        self._socket = socket
        self._door = door
        self._service = service
        self._counters = counters
        self._forget = forget
        self._layout_text: bytes | None = None

    def answer(self, identity: bytes, message: Message) -> bool:
        """Send an answer, with its body if it has one; False if the peer does not read or is gone."""
        if not isinstance(message, Mismatch):
            return self._send(identity, message)
        if self._layout_text is None:  # one for all, because ZeroMQ holds each that is not read
            self._layout_text = self._service.mismatch_body()
        return self._send(identity, message, self._layout_text)

    def chunks(self, identity: bytes, transfer: Transfer, first: int, count: int) -> None:
        """Send chunks of a transfer."""
        memory, pull = transfer.snapshot.memory, transfer.pull
        for index in range(first, first + count):
            first_byte = index * pull.chunk_bytes
            stop_byte = min(first_byte + pull.chunk_bytes, len(memory))
            if first_byte >= stop_byte:
                return  # asked for more than there is: harmless in a first request
            wanted = self._service.codec_for(pull, transfer.snapshot)
            codec, body = encode_chunk(self._service.layout, memory, first_byte, stop_byte, wanted)
            if transfer.connection is not None and codec is not Codec.RAW:
                transfer.connection.has_copies = True
            if not self._send(identity, Chunk(pull.nonce, index, codec), body):
                return
            self._counters.bytes_out += len(body)

    def _send(self, identity: bytes, message: Message, body: bytes | memoryview | None = None) -> bool:
        frames: list[bytes | memoryview] = [identity, encode(message)]
        if body is not None:
            frames.append(body)
        connection = self._door.connections.by_identity(identity)
        try:
            # copy=False: ZeroMQ sends a body straight from the snapshot, whose buffer it keeps from being reused.
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=body is None)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._counters.dropped += 1
            self._forget(identity)
            if connection is not None and error.errno == zmq.EAGAIN:
                self._door.end(connection, Cause.UNREAD)
            return False
        if connection is not None:
            connection.sent_bytes += sum(
                framed_bytes(len(frame), is_sealed=connection.is_sealed) for frame in frames[1:]
            )
        return True
