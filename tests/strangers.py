"""Strangers at a node's port: raw ZMTP connections, and a process full of them that does one thing for a while.

    python strangers.py KIND PORT SECONDS HEX

with a pull in HEX, or the node's public key and that of a signer, prints `begun` when it has begun, and at the end one
line of JSON with what it did. It comes again when it is shown out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter

import zmq
from zmq.utils import z85

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_PROPERTY = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
_READY = b"\x05READY" + _PROPERTY

_CURVE_GREETING = _GREETING.replace(b"NULL" + bytes(16), b"CURVE" + bytes(15))
# A command of CURVE's handshake that announces a GiB.
_ENDLESS_COMMAND = b"\x06" + struct.pack(">Q", 1 << 30)


class Stranger:
    """A connection by hand.

    Args:
        port: of a node on this host.
        speaks: makes the ZeroMQ handshake.
        receive_buffer: bytes that the system takes from the node unread; None for its default.
        host: an address of this host.
    """

    def __init__(
        self, port: int, *, speaks: bool = True, receive_buffer: int | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5.0)
        try:
            self.socket.connect((host, port))
            if speaks:
                self._shake_hands()
        except OSError:
            self.close()
            raise

    def _shake_hands(self) -> None:
        self.socket.sendall(_GREETING)
        self._read(64)
        self.socket.sendall(b"\x04" + bytes([len(_READY)]) + _READY)
        _, size = self._read(2)
        self._read(size)

    def _read(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            part = self.socket.recv(size - len(read))
            if not part:
                raise ConnectionResetError
            read += part
        return read

    def send(self, header: bytes, *, more: bool = False) -> None:
        """Send one frame."""
        size = struct.pack(">Q", len(header)) if len(header) > 255 else bytes([len(header)])
        self.socket.sendall(bytes([more + 2 * (len(header) > 255)]) + size + header)

    def is_closed(self, within_s: float = 0.0) -> bool:
        """Whether the node ends the connection in that time; what it sends is thrown away."""
        end_s = time.monotonic() + within_s
        while True:
            ready, _, _ = select.select([self.socket], [], [], max(0.0, end_s - time.monotonic()))
            if not ready:
                return False
            try:
                if not self.socket.recv(1 << 16):
                    return True
            except OSError:
                return True

    def close(self) -> None:
        self.socket.close()


# --- The process ----------------------------------------------------------------------------------------------------


class _Crowd:
    """Connections of one attack, each made again when it was ended."""

    def __init__(self, port: int, size: int, **options: object) -> None:
        self._port, self._options = port, options
        self.standing: list[Stranger | None] = [None] * size
        self.did: Counter[str] = Counter()

    def fill(self, begin, most: int = 10_000) -> None:
        """Make what is missing, or so many of them; `begin` is called with each new connection."""
        missing = [index for index, stranger in enumerate(self.standing) if stranger is None]
        for index in missing[:most]:
            with contextlib.suppress(OSError):
                made = Stranger(self._port, **self._options)
                self.did["connections"] += 1
                made.socket.setblocking(False)
                begin(made)
                self.standing[index] = made

    def lose(self, index: int) -> None:
        """Note that one was ended by the node."""
        self.standing[index].close()
        self.standing[index] = None
        self.did["ended"] += 1

    def send_all(self, data: bytes) -> None:
        """Send on every connection what its buffer takes."""
        for index, stranger in enumerate(self.standing):
            if stranger is None:
                continue
            try:
                self.did["bytes"] += stranger.socket.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.lose(index)

    def read_all(self, size: int) -> None:
        """Read a little from each, and find out which were ended."""
        for index, stranger in enumerate(self.standing):
            if stranger is None:
                continue
            try:
                if stranger.socket.recv(size) == b"":
                    self.lose(index)
            except BlockingIOError:
                pass
            except OSError:
                self.lose(index)


def _nothing(made: Stranger) -> None:
    del made


# What is sent at once, and then again and again.
_FIRST_BYTES = {
    "plain": (_GREETING + b"\x04" + bytes([len(_READY)]) + _READY, b""),
    "half": (_CURVE_GREETING, b""),
    "announces": (_CURVE_GREETING + _ENDLESS_COMMAND, bytes(1 << 16)),
    "garbage": (bytes(range(256)) * 4, b"\xff\x01" * 512),
}


def _forged(signer: bytes, key: bytes) -> bytes:
    """The message with a certificate for a key, by the right signer but for the signature."""
    certificate = b"dpwacrt1" + signer + key + struct.pack(">QQ", 1, 4_000_000_000) + b"\x02w9" + bytes(64)
    return bytes([0x94, 1, 18, 0, 0xC4, len(certificate)]) + certificate


_KNOCKING = ("unknown_key", "guests_silent", "guests_garbage", "guests_forged")


def _knock(port: int, end_s: float, kind: str, server_key: bytes, signer: bytes) -> Counter[str]:
    """Connect again and again with keys that are on no list; the node's own public key is no secret.

    Where a list names a signer some get in: to be silent and stay, to say something else, or to show what is forged.
    """
    did: Counter[str] = Counter()
    context = zmq.Context()
    print("begun", flush=True)
    kept, is_guest = [], kind.startswith("guests")
    while time.monotonic() < end_s or (is_guest and not did["in"]):  # on a busy machine a handshake takes its time
        knockers = []
        for _ in range(20):
            knocker = context.socket(zmq.DEALER)
            public, knocker.curve_secretkey = zmq.curve_keypair()
            knocker.curve_publickey = public
            knocker.curve_serverkey = server_key
            knocker.immediate = 1  # else it can send before it is let in
            knocker.connect(f"tcp://127.0.0.1:{port}")
            knockers.append((knocker, public))
        time.sleep(0.2 if did["in"] or not is_guest else 0.5)
        did["connections"] += len(knockers)
        inside = [knocker for knocker, _ in knockers if int(knocker.getsockopt(zmq.EVENTS)) & zmq.POLLOUT]
        did["in"] += len(inside)
        for knocker, public in knockers:
            if knocker in inside and kind == "guests_forged":
                knocker.send(_forged(signer, z85.decode(public)), zmq.NOBLOCK)
            elif knocker in inside and kind == "guests_garbage":
                knocker.send(bytes(4000), zmq.NOBLOCK)
        time.sleep(0.05)  # what was said is on its way
        for knocker, _ in knockers:
            if kind == "guests_silent" and knocker in inside:
                kept.append(knocker)
            else:
                knocker.close(linger=0)
    context.destroy(linger=0)
    return did


def _attack(kind: str, port: int, seconds: float, pull: bytes) -> Counter[str]:
    end_s = time.monotonic() + seconds
    if kind == "silent":
        crowd = _Crowd(port, 2000, speaks=False)
        turn = lambda: crowd.read_all(64)  # noqa: E731
        begin, pause_s = _nothing, 0.2
    elif kind == "multipart":
        crowd = _Crowd(port, 4)
        turn = lambda: crowd.send_all(b"\x01\x00" * 50_000)  # noqa: E731
        begin, pause_s = _nothing, 0.0
    elif kind == "incomplete":
        crowd = _Crowd(port, 100)
        # A frame of 4,000 bytes begins, and goes on by a byte now and then.
        begin = lambda made: made.socket.send(b"\x02" + struct.pack(">Q", 4000) + bytes(3000))  # noqa: E731
        turn = lambda: (crowd.send_all(b"\0"), crowd.read_all(4096))  # noqa: E731
        pause_s = 0.05
    elif kind == "slow":
        crowd = _Crowd(port, 100, receive_buffer=4096)
        begin = lambda made: made.send(pull)  # noqa: E731
        turn = lambda: crowd.read_all(1)  # noqa: E731
        pause_s = 0.2
    elif kind == "flood":
        crowd = _Crowd(port, 8, receive_buffer=4096)
        begin = lambda made: made.send(pull)  # noqa: E731
        framed = bytes([0, len(pull)]) + pull
        turn = lambda: crowd.send_all(framed * 20)  # noqa: E731
        pause_s = 0.002
    elif kind in _FIRST_BYTES:
        crowd = _Crowd(port, 2000 if kind == "half" else 100, speaks=False)
        first, later = _FIRST_BYTES[kind]
        begin = lambda made: made.socket.send(first)  # noqa: E731
        turn = lambda: (crowd.send_all(later) if later else None, crowd.read_all(4096))  # noqa: E731
        pause_s = 0.1
    elif kind in _KNOCKING:
        return _knock(port, end_s, kind, server_key=pull[:40], signer=pull[40:])
    elif kind == "holders":
        crowd = _Crowd(port, 4)
        begin = lambda made: made.send(pull)  # noqa: E731
        turn = lambda: crowd.read_all(1 << 22)  # noqa: E731
        pause_s = 0.1
    else:
        raise ValueError(kind)
    # Holders want one snapshot each, not the same.
    at_a_time = 1 if kind == "holders" else 10_000
    crowd.fill(begin, at_a_time)
    print("begun", flush=True)
    while time.monotonic() < end_s:
        turn()
        crowd.fill(begin, at_a_time)
        crowd.did["turns"] += 1
        time.sleep(pause_s)
    return crowd.did


if __name__ == "__main__":
    os.nice(10)  # what counts is what they do to the node, not that they take the processor from it
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    done = _attack(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), bytes.fromhex(sys.argv[4]))
    print(json.dumps(done), flush=True)
