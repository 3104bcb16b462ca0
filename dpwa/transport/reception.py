"""The answer to one pull: frame by frame from the stream, or from shared memory.

Must not know: which peer to ask, connections. Runs in: the Tx thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import zmq

from dpwa.blending import encoded_chunk_bytes
from dpwa.errors import PeerTimeout, RemoteProtocolError
from dpwa.transport.pulling import Pulled, Target
from dpwa.transport.segments import Segments
from dpwa.transport.shared_memory import SegmentUnusable
from dpwa.transport.wire import (
    HAS_BODY,
    MAX_WINDOW,
    Chunk,
    Codec,
    Done,
    Message,
    Mismatch,
    More,
    Offer,
    Pull,
    decode,
    encode,
)

__all__ = ["RUN", "Reception"]

RUN = MAX_WINDOW // 8
"""Chunks asked for in one message. With two runs under way the server always has the next to send while one is
received: enough to keep a fast link busy, little to throw away when a peer vanishes."""


class Reception:
    """Receives what a pull brings.

    Args:
        peer: name of the peer, for errors.
        socket: the connection, on which the pull has been sent.
        wait: waits until the socket can be read; False at the deadline.
        segments: the peers' shared memory.
        pull: the request.
        target: where it goes.
    """

    def __init__(
        self,
        peer: str,
        socket: zmq.Socket[bytes],
        wait: Callable[[], bool],
        segments: Segments,
        pull: Pull,
        target: Target,
    ) -> None:
        self._peer, self._socket, self._wait = peer, socket, wait
        self._segments = segments
        self._pull = pull
        self._target = target

    def run(self) -> Pulled:
        """Take the whole answer off the socket.

        Raises:
            PeerTimeout: it did not come in time.
            RemoteProtocolError: it is illegal.
            NodeClosed, PeerUnreachable, zmq.Again: from the connection.
        """
        answer = self._next()
        if isinstance(answer, Mismatch):
            body = self._socket.recv()
            return Pulled(answer, len(body), peer_layout=body.decode(errors="replace"))
        if isinstance(answer, Offer):
            return self._take(answer)
        if isinstance(answer, (Pull, More, Done, Chunk)):
            raise self._illegal(f"{type(answer).__name__} where an answer was expected")
        return Pulled(answer)

    def _take(self, offer: Offer) -> Pulled:
        staging = self._target.staging
        if offer.total_bytes != staging.layout.total_bytes:
            raise self._illegal(f"offer of {offer.total_bytes} bytes, expected {staging.layout.total_bytes}")
        if offer.slot >= 0 and not self._pull.shared:
            raise self._illegal("shared memory that was not asked for")
        start_s = time.monotonic()
        self._target.begin()
        note = ""
        if offer.slot >= 0:
            try:
                received = self._read_shared(offer)
            except SegmentUnusable as error:
                note = str(error)
                self._target.begin()
            else:
                self._send(Done(self._pull.nonce))
                return Pulled(offer, received, is_shared=True, transfer_s=time.monotonic() - start_s)
        received = self._receive_chunks(is_first_requested=offer.slot < 0)
        self._send(Done(self._pull.nonce))
        return Pulled(offer, received, transfer_s=time.monotonic() - start_s, note=note)

    def _read_shared(self, offer: Offer) -> int:
        reader = self._segments.reader(self._peer, offer.incarnation, offer.token)
        if reader.version(offer.slot) != offer.version:
            raise SegmentUnusable(f"the slot that peer {self._peer} offered holds another version")
        memory = reader.read(offer.slot)
        part, received = self._target.part, 0
        for first, count in part.ranges:
            first_byte = first * part.chunk_bytes
            stop_byte = min((first + count) * part.chunk_bytes, len(memory))
            self._target.staging.accept(first_byte, stop_byte, memory[first_byte:stop_byte])
            received += stop_byte - first_byte
        if reader.version(offer.slot) != offer.version:
            raise SegmentUnusable(f"the slot that peer {self._peer} offered was overwritten while it was read")
        return received

    def _receive_chunks(self, *, is_first_requested: bool) -> int:
        """Receive all chunks of the part, asking for a few at a time; the bytes received."""
        requests = deque(self._target.part.requests(RUN))
        expected: deque[int] = deque()
        if is_first_requested:  # the pull itself has asked for the first run
            first, count = requests.popleft()
            expected.extend(range(first, first + count))
        received = 0
        while requests or expected:
            while requests and len(expected) <= RUN:
                first, count = requests.popleft()
                self._send(More(self._pull.nonce, first, count))
                expected.extend(range(first, first + count))
            received += self._receive_chunk(expected.popleft())
        return received

    def _receive_chunk(self, index: int) -> int:
        chunk = self._next()
        if not isinstance(chunk, Chunk) or chunk.index != index:
            raise self._illegal(f"{chunk} where chunk {index} was expected")
        if chunk.codec not in (Codec.RAW, self._pull.codec):
            raise self._illegal(f"chunk {index} in codec {chunk.codec}, asked for codec {self._pull.codec}")
        codec, staging = Codec(chunk.codec), self._target.staging
        first_byte = index * self._pull.chunk_bytes
        stop_byte = min(first_byte + self._pull.chunk_bytes, staging.layout.total_bytes)
        body = self._socket.recv(copy=False)
        size = len(body.buffer)
        if size != encoded_chunk_bytes(staging.layout, first_byte, stop_byte, codec) or body.more:
            raise self._illegal(
                f"chunk {index} of {size} bytes in codec {codec.name} has another size or a second body"
            )
        staging.accept(first_byte, stop_byte, body.buffer, codec)
        return size

    def _next(self) -> Message:
        """The next header of this pull; its body, if it has one, is the frame that is left in the socket."""
        while True:
            message, has_body = self._header()
            if message.nonce == self._pull.nonce:
                return message
            if has_body and self._socket.recv(copy=False).more:  # the body of a late message
                raise self._illegal("message with more than two frames")

    def _header(self) -> tuple[Message, bool]:
        try:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if not self._wait():
                raise PeerTimeout(self._peer, "no complete answer in time") from None
            frame = self._socket.recv(copy=False)
        message = decode(frame.buffer, self._peer)
        if frame.more != isinstance(message, HAS_BODY):
            raise self._illegal(f"{type(message).__name__} with the wrong number of frames")
        return message, frame.more

    def _send(self, message: Message) -> None:
        self._socket.send(encode(message), zmq.NOBLOCK)

    def _illegal(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(self._peer, what[:200])
