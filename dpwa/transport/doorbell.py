"""A bell that any thread may ring and one thread waits for, together with its sockets.

A transport thread blocks in one poll over its ZeroMQ sockets and its bell; so it never wakes up just to look at a
flag, and a stop reaches it at once, also in the middle of a transfer.

Must not know: what ringing means. Runs in: `ring` in any thread; the rest in the thread that owns the bell.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

__all__ = ["Doorbell"]


class Doorbell:
    """A connected pair of sockets: one end to ring, the other to poll."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ringing_end, self._waiting_end = socket.socketpair()
        self._ringing_end.setblocking(False)  # noqa: FBT003  (the standard library's signature)
        self._waiting_end.setblocking(False)  # noqa: FBT003  (the standard library's signature)
        self._poll = select.poll()  # not `select.select`: descriptors may be above 1023
        self._poll.register(self._waiting_end, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor that becomes readable when the bell has rung."""
        return self._waiting_end.fileno()

    def ring(self) -> None:
        """Wake the owner. Never blocks; a bell that is full of rings, or closed, needs no further one.

        In a forked child it does nothing: the sockets are the parent's, and so is the thread that would hear it.
        """
        if self._pid == os.getpid():
            with contextlib.suppress(BlockingIOError, OSError):
                self._ringing_end.send(b"!")

    def has_rung(self) -> bool:
        """Whether there are rings that have not been silenced."""
        return bool(self._poll.poll(0))

    def silence(self) -> None:
        """Forget all rings so far. Call it before looking at what they were about, so that none is missed."""
        with contextlib.suppress(BlockingIOError):
            while self._waiting_end.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends. Call it when the owning thread has ended."""
        self._ringing_end.close()
        self._waiting_end.close()
