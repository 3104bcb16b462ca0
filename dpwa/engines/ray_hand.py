"""The hand of a launch on a machine of a Ray cluster: an actor that says where it is, and carries to a far end.

It is sent to the machine as code, so that one which has no dpwa, or another version, can say so. Hence the standard
library and Ray alone. The far end is a process of its own session, so that Ray, when it ends a worker with its process
group, does not end a node in the middle of a save.

Must not know: dpwa, what is carried. Runs in: Ray's threads, one that writes and one that reads.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any, BinaryIO

__all__ = ["Hand"]

_PORTS = range(21000, 30000)
_TRIES = 200
_PART_BYTES = 1 << 16
_LAST_BYTES = 2000


class Hand:
    """On one machine, for one node."""

    def __init__(self) -> None:
        self._held: socket.socket | None = None
        self._port = 0
        self._lives: dict[int, subprocess.Popen[bytes]] = {}
        self._errors: dict[int, BinaryIO] = {}

    def card(self, folder: str) -> dict[str, Any]:
        """Where this is.

        Args:
            folder: in which a command is to run; "" for any.
        """
        try:
            from dpwa._version import __version__ as version  # noqa: PLC0415 - there may be none
        except ImportError:
            version = ""
        import ray  # noqa: PLC0415

        if not self._port:
            self._hold_port()
        return {
            "host": ray.util.get_node_ip_address(),
            "machine": ray.get_runtime_context().get_node_id(),
            "port": self._port,
            "version": version,
            "python": sys.executable,
            "folder": folder,
            "has_folder": not folder or os.path.isdir(folder),
        }

    def _hold_port(self) -> None:
        """A free port, which no other hand on this machine is given."""
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for port in random.SystemRandom().sample(_PORTS, _TRIES):
            with suppress(OSError):
                held.bind(("", port))
                self._held, self._port = held, port
                return
        held.close()
        raise RuntimeError(f"no free port from {_PORTS[0]} to {_PORTS[-1]}")

    def let_go_of_port(self) -> None:
        """The node takes it."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def begin(self, life: int, program: str, folder: str) -> None:
        """Start a far end.

        Args:
            life: by which it is called from now on.
            program: what Python runs.
            folder: in which.
        """
        self.let_go_of_port()
        errors = self._errors[life] = tempfile.TemporaryFile()  # noqa: SIM115 - read when the far end has ended
        # Ray's threads let no signal through, and a process takes that over from the thread that starts it.
        blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            self._lives[life] = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def read(self, life: int) -> bytes:
        """What that far end says next; empty at its end."""
        process = self._lives[life]
        if process.stdout is None:
            return b""
        return os.read(process.stdout.fileno(), _PART_BYTES)

    def last_words(self, life: int) -> str:
        """What that far end has said about an error of its own, after its end."""
        errors = self._errors[life]
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _LAST_BYTES))
        return errors.read().decode(errors="replace").strip()

    def write(self, life: int, data: bytes) -> None:
        """Say something to a far end; nothing more if it is empty."""
        process = self._lives[life]
        if process.stdin is None or process.stdin.closed:
            return
        with suppress(OSError):  # it has ended
            if not data:
                process.stdin.close()
                return
            view = memoryview(data)
            while view:
                view = view[os.write(process.stdin.fileno(), view) :]

    def end(self, timeout_s: float) -> None:
        """Have all far ends end, and wait for that.

        Args:
            timeout_s: how long at most.
        """
        watchers = [threading.Thread(target=process.wait, daemon=True) for process in self._lives.values()]
        for life, watcher in zip(list(self._lives), watchers, strict=True):
            self.write(life, b"")
            watcher.start()
        for watcher in watchers:
            watcher.join(timeout_s)
