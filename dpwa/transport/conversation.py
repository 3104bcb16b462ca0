"""The answer to one request, frame by frame.

Must not know: connections, what the answer is for. Runs in: the Tx thread.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from dpwa.errors import ModelMismatch, PeerTimeout, RemoteProtocolError
from dpwa.exchange.messages import (
    HAS_BODY,
    Accepted,
    Busy,
    Lease,
    Leased,
    Meet,
    Message,
    Met,
    Mismatch,
    More,
    NotReady,
    Past,
    Propose,
    PullRequest,
    Refused,
    Settle,
    Settled,
    Vouch,
    Vouched,
)
from dpwa.transport.wire import decode, encode

__all__ = ["Conversation"]

_STANDS_ALONE = (Accepted, Settled, Busy, NotReady, Past, Refused, Met, Vouched, Leased)


class Conversation:
    """Sends and receives the messages that carry one request's nonce.

    Args:
        peer: name of the peer, for errors.
        socket: the connection.
        wait: waits until the socket can be read; False at the deadline.
        request: what was sent.
        look: raises when there is no more time for the request.
        on_answer: called when the first message of the answer is there.
        on_more: called with each further request for chunks.
    """

    def __init__(
        self,
        peer: str,
        socket: zmq.Socket[bytes],
        wait: Callable[[], bool],
        request: PullRequest | Propose | Settle | Meet | Vouch | Lease,
        look: Callable[[], None],
        *,
        on_answer: Callable[[], None] = lambda: None,
        on_more: Callable[[More], None] = lambda _: None,
    ) -> None:
        self.peer = peer
        self.socket = socket
        self.look = look
        """Call it between pieces of work that nothing else bounds.

        Raises:
            PeerTimeout: the deadline has come.
            NodeClosed: the node is being closed.
        """
        self._wait = wait
        self._nonce = request.nonce
        self._on_answer = on_answer
        self._on_more = on_more
        self._is_answered = False

    def answer(self) -> Message:
        """The answer to a proposal or a question.

        Raises:
            ModelMismatch: the peer trains another model.
            PeerTimeout: it did not come in time.
            RemoteProtocolError: it is illegal.
            NodeClosed, PeerUnreachable, zmq.Again: from the connection.
        """
        answer = self.next()
        if isinstance(answer, Mismatch):
            self.socket.recv()
            raise ModelMismatch(self.peer, "trains another model. All nodes must build the same model")
        if not isinstance(answer, _STANDS_ALONE):
            raise self.illegal(f"{type(answer).__name__} where an answer was expected")
        return answer

    def next(self) -> Message:
        """The next header with the nonce; its body, if it has one, is the frame that is left in the socket."""
        while True:
            message, has_body = self._header()
            if message.nonce == self._nonce:
                if not self._is_answered:
                    self._is_answered = True
                    self._on_answer()
                return message
            if has_body and self.socket.recv(copy=False).more:  # the body of a late message
                raise self.illegal("message with more than two frames")

    def send(self, message: Message) -> None:
        """Send without waiting."""
        if isinstance(message, More):
            self._on_more(message)
        self.socket.send(encode(message), zmq.NOBLOCK)

    def illegal(self, what: str) -> RemoteProtocolError:
        """The error that names what the peer did."""
        return RemoteProtocolError(self.peer, what[:200])

    def _header(self) -> tuple[Message, bool]:
        self.look()  # also while there is always something to read
        try:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if not self._wait():
                what = "no complete answer in time" if self._is_answered else "no answer in time"
                raise PeerTimeout(self.peer, what) from None
            frame = self.socket.recv(copy=False)
        message = decode(frame.buffer, self.peer)
        if frame.more != isinstance(message, HAS_BODY):
            raise self.illegal(f"{type(message).__name__} with the wrong number of frames")
        return message, frame.more
