"""A TCP proxy that lets only so many bytes per second through: a slow link to one peer."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time

from support import DEADLINE_S

_PIECE_BYTES = 16384
_FAST_BYTES_PER_S = 1e9


class SlowLink:
    """Stands before a node's port. What comes back from the node is slow, what goes there is not.

    Args:
        port: the node's.
        bytes_per_s: the rate; may be changed at any time.
    """

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.passed_bytes = 0
        self._target = port
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                near, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=(near,))
                self._threads.append(thread)
                thread.start()

    def _carry(self, near: socket.socket) -> None:
        far = socket.socket()
        with near, far, contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            far.connect(("127.0.0.1", self._target))
            for end in (near, far):  # else a short answer may wait 40 ms for an acknowledgement
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near.settimeout(DEADLINE_S)  # a reader that stands still must not keep the test from ending
            free_s = time.monotonic()
            selector = stack.enter_context(contextlib.closing(selectors.DefaultSelector()))
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is near:
                        data = near.recv(_PIECE_BYTES)
                        if not data:
                            return
                        far.sendall(data)
                    else:
                        self._closing.wait(max(0.0, free_s - time.monotonic()))
                        data = far.recv(16 * _PIECE_BYTES if self.bytes_per_s > _FAST_BYTES_PER_S else _PIECE_BYTES)
                        if not data:
                            return
                        near.sendall(data)
                        self.passed_bytes += len(data)
                        free_s = max(free_s, time.monotonic() - 0.01) + len(data) / self.bytes_per_s
