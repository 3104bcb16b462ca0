"""The answer to one pull: frame by frame from the stream, or from shared memory.

Must not know: which peer to ask, connections. Runs in: the Tx thread.
"""

from __future__ import annotations

import time
from collections import deque

from dpwa.errors import PeerTimeout
from dpwa.exchange.client import Pulled
from dpwa.exchange.messages import (
    NEWEST_ROUND,
    Busy,
    Chunk,
    Done,
    Mismatch,
    More,
    NotModified,
    NotReady,
    Offer,
    Past,
    PullRequest,
    Refused,
)
from dpwa.exchange.slices import Slice
from dpwa.snapshot.staging import Staging, encoded_chunk_bytes
from dpwa.snapshot.state import Codec
from dpwa.transport.conversation import Conversation
from dpwa.transport.segments import Segments
from dpwa.transport.shared_memory import SegmentUnusable

__all__ = ["Reception"]

# Read from shared memory at a time: milliseconds, between which the deadline and the node's end are looked at.
_READ_BYTES = 4 << 20

_WITHOUT_SNAPSHOT = (NotModified, NotReady, Busy, Past, Refused)


class Reception:
    """Receives what a pull brings.

    Args:
        conversation: about the pull, which has been sent.
        segments: the peers' shared memory.
        pull: the request.
        staging: where it goes.
        part: the chunks that are wanted.
    """

    def __init__(
        self,
        conversation: Conversation,
        segments: Segments,
        pull: PullRequest,
        staging: Staging,
        part: Slice,
    ) -> None:
        self._conversation = conversation
        self._peer, self._socket = conversation.peer, conversation.socket
        self._segments = segments
        self._pull = pull
        self._staging = staging
        self._part = part
        self._codec: Codec | None = None
        self._codecs = {Codec.RAW, pull.codec}
        if pull.round != NEWEST_ROUND:  # the snapshot of a round has one codec for all who ask
            self._codecs = set(Codec)

    def run(self) -> Pulled:
        """Take the whole answer off the socket.

        Raises:
            PeerTimeout: it did not come in time.
            RemoteProtocolError: it is illegal.
            NodeClosed, PeerUnreachable, zmq.Again: from the connection.
        """
        answer = self._conversation.next()
        if isinstance(answer, Mismatch):
            body = self._socket.recv()
            return Pulled(answer, len(body), peer_layout=body.decode(errors="replace"))
        if isinstance(answer, Offer):
            return self._take(answer)
        if not isinstance(answer, _WITHOUT_SNAPSHOT):
            raise self._conversation.illegal(f"{type(answer).__name__} where an answer was expected")
        return Pulled(answer)

    def _take(self, offer: Offer) -> Pulled:
        staging = self._staging
        if offer.total_bytes != staging.layout.total_bytes:
            raise self._conversation.illegal(
                f"offer of {offer.total_bytes} bytes, expected {staging.layout.total_bytes}"
            )
        if offer.slot >= 0 and not self._pull.shared:
            raise self._conversation.illegal("shared memory that was not asked for")
        start_s = time.monotonic()
        staging.begin(whole=self._part.is_whole)
        note = ""
        if offer.slot >= 0:
            try:
                received = self._read_shared(offer)
            except SegmentUnusable as error:
                note = str(error)
                staging.begin(whole=self._part.is_whole)
            else:
                self._conversation.send(Done(self._pull.nonce))
                return Pulled(offer, received, is_shared=True, transfer_s=time.monotonic() - start_s)
        received = self._receive_chunks(is_first_requested=offer.slot < 0)
        self._conversation.send(Done(self._pull.nonce))
        return Pulled(offer, received, transfer_s=time.monotonic() - start_s, note=note, codec=self._codec)

    def _read_shared(self, offer: Offer) -> int:
        reader = self._segments.reader(self._peer, offer.incarnation, offer.token)
        if reader.version(offer.slot) != offer.version:
            raise SegmentUnusable(f"the slot that peer {self._peer} offered holds another version")
        memory = reader.read(offer.slot)
        part, received = self._part, 0
        for first, count in part.ranges:
            stop_byte = min((first + count) * part.chunk_bytes, len(memory))
            for first_byte in range(first * part.chunk_bytes, stop_byte, _READ_BYTES):
                self._conversation.look()
                next_byte = min(first_byte + _READ_BYTES, stop_byte)
                self._staging.accept(first_byte, next_byte, memory[first_byte:next_byte])
                received += next_byte - first_byte
        if reader.version(offer.slot) != offer.version:
            raise SegmentUnusable(f"the slot that peer {self._peer} offered was overwritten while it was read")
        return received

    def _receive_chunks(self, *, is_first_requested: bool) -> int:
        """Receive all chunks of the part, asking for a few at a time; the bytes received."""
        part = self._part
        requests = deque(part.requests())
        expected: deque[int] = deque()
        if is_first_requested:  # the pull itself has asked for the first run
            first, count = requests.popleft()
            expected.extend(range(first, first + count))
        received = 0
        while requests or expected:
            while requests and len(expected) <= part.run:
                first, count = requests.popleft()
                self._conversation.send(More(self._pull.nonce, first, count))
                expected.extend(range(first, first + count))
            try:
                received += self._receive_chunk(expected.popleft())
            except PeerTimeout as error:
                error.received_bytes = received
                raise
        return received

    def _receive_chunk(self, index: int) -> int:
        chunk = self._conversation.next()
        if not isinstance(chunk, Chunk) or chunk.index != index:
            raise self._conversation.illegal(f"{chunk} where chunk {index} was expected")
        if chunk.codec not in self._codecs:
            raise self._conversation.illegal(
                f"chunk {index} in codec {chunk.codec}, asked for codec {self._pull.codec}"
            )
        codec, staging = Codec(chunk.codec), self._staging
        first_byte = index * self._pull.chunk_bytes
        stop_byte = min(first_byte + self._pull.chunk_bytes, staging.layout.total_bytes)
        body = self._socket.recv(copy=False)
        size = len(body.buffer)
        if size != encoded_chunk_bytes(staging.layout, first_byte, stop_byte, codec) or body.more:
            raise self._conversation.illegal(
                f"chunk {index} of {size} bytes in codec {codec.name} has another size or a second body"
            )
        staging.accept(first_byte, stop_byte, body.buffer, codec)
        self._codec = max(codec, self._codec or Codec.RAW)
        return size
