"""Who gets in where links are encrypted: answers ZeroMQ's question whose key this is (ZAP, rfc.zeromq.org/spec/27).

ZeroMQ asks on a socket within the process before a handshake is complete, and tells nobody anything until it is
answered. Its socket is set up so that a key about which nobody can be asked is refused (`router` in `sockets.py`).

Must not know: messages, files. Runs in: the Rx thread.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq
from zmq.utils import z85

__all__ = ["ZAP_DOMAIN", "Gate"]

ZAP_DOMAIN = b"dpwa"

_ADDRESS = "inproc://zeromq.zap.01"  # the name that ZeroMQ asks at
_VERSION = b"1.0"
_PARTS = 8  # of a question: route, empty, version, number, domain, address, identity, mechanism; then the key


class Gate:
    """Answers for one node.

    Args:
        context: of the socket that serves.
        user_id: what the messages of the holder of a key, in ZeroMQ's text form, are marked with; None: keep it out.
        refused: called for each key that is not let in.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        user_id: Callable[[bytes], str | None],
        refused: Callable[[], None],
    ) -> None:
        self._user_id = user_id
        self._refused = refused
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ADDRESS)

    def answer_all(self) -> None:
        """Answer every question that is there."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            mark = self._admitted(parts)
            if mark is None:
                self._refused()
            verdict = (b"400", b"unknown key", b"") if mark is None else (b"200", b"", mark.encode("ascii"))
            route, empty, number = parts[0], parts[1], parts[3] if len(parts) > 3 else b""
            self.socket.send_multipart([route, empty, _VERSION, number, *verdict, b""])

    def _admitted(self, parts: list[bytes]) -> str | None:
        if len(parts) != _PARTS + 1 or parts[2] != _VERSION or parts[4] != ZAP_DOMAIN or parts[7] != b"CURVE":
            return None
        return self._user_id(z85.encode(parts[8])) if len(parts[8]) == 32 else None

    def close(self) -> None:
        """Answer no more: nobody gets in."""
        self.socket.close()
