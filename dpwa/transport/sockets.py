"""How dpwa sets up a ZeroMQ socket: addresses, limits, heartbeats, and what a forked child must let go of.

Must not know: messages, threads. Runs in: the thread that will own the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import zmq

from dpwa.config import hosts
from dpwa.errors import DpwaError
from dpwa.exchange.messages import MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_WINDOW
from dpwa.transport.certified import Certified
from dpwa.transport.gate import ZAP_DOMAIN
from dpwa.transport.names import HostNames

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "Curve",
    "CurveKeys",
    "Links",
    "allow_ipv6",
    "close_inherited",
    "dealer",
    "descriptor_limit",
    "endpoint",
    "keep_freed_memory",
    "raise_descriptor_limit",
    "require_libzmq",
    "router",
    "second_handle",
]

# Older versions have known holes that a peer can use before any of our checks run (CVE-2019-13132, CVE-2020-15166).
_OLDEST_LIBZMQ = (4, 3, 5)

# glibc never raises its threshold above 32 MiB.
_LARGEST_KEPT_BYTES = 31 << 20

# What a node ever needs beside those of the training script: two for each connection.
_ENOUGH_DESCRIPTORS = 8192

# One message is header and body; a window of chunks plus a few small answers must fit, and no more.
_QUEUE_MESSAGES = 2 * MAX_WINDOW

# For this host's own name, at the start.
_RESOLVE_TIMEOUT_S = 4.0

_COMMON: dict[int, int] = {
    zmq.LINGER: 0,  # the default -1 makes closing the context hang while a peer does not read
    zmq.SNDHWM: _QUEUE_MESSAGES,
    zmq.HANDSHAKE_IVL: 2000,  # ms; a client that connects and says nothing is closed after this
    zmq.TCP_KEEPALIVE: 1,
}


class Curve(Protocol):
    """Keys for encrypted links, and whose they are. All in ZeroMQ's text form, as `zmq.curve_keypair` makes them.

    Attributes:
        public: this node's public key.
        secret: its secret key.
        certified: whose keys are known by certificates.
    """

    @property
    def public(self) -> bytes: ...  # noqa: D102

    @property
    def secret(self) -> bytes: ...  # noqa: D102

    @property
    def certified(self) -> Certified: ...  # noqa: D102

    def name_of(self, public: bytes) -> str | None:
        """Whose key this is; None if it is nobody's who may connect. Safe in any thread."""

    def server_key(self, peer: str) -> bytes:
        """The public key to expect of a peer. Safe in any thread.

        Raises:
            ConfigError: there is none, or it does not count any more.
        """

    def failed(self, peer: str) -> None:
        """No connection to a peer was made with that key. Safe in any thread."""


@dataclass(frozen=True)
class CurveKeys:
    """Keys that never change; see `Curve`.

    Attributes:
        public: this node's public key.
        secret: its secret key.
        peers: each peer's public key.
        certified: of nobody.
    """

    public: bytes
    secret: bytes = field(repr=False)
    peers: Mapping[str, bytes]
    certified: Certified = field(default_factory=lambda: Certified("?"))

    def name_of(self, public: bytes) -> str | None:
        """See `Curve.name_of`."""
        return next((name for name, key in self.peers.items() if key == public), None)

    def server_key(self, peer: str) -> bytes:
        """See `Curve.server_key`."""
        return self.peers[peer]

    def failed(self, peer: str) -> None:
        """See `Curve.failed`: there is no other."""


@dataclass(frozen=True)
class Links:
    """Other ways to the peers than plain TCP at the addresses of the cluster file.

    Attributes:
        listen: ZeroMQ endpoint to serve at; None for the address of the cluster file.
        peers: ZeroMQ endpoint of each peer that is not reached at its address.
        curve: keys for encryption; None: no encryption.
    """

    listen: str | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    curve: Curve | None = None


def require_libzmq() -> None:
    """Refuse to run on a ZeroMQ library with known holes.

    Raises:
        DpwaError: libzmq is older than 4.3.5.
    """
    if zmq.zmq_version_info() < _OLDEST_LIBZMQ:
        needed = ".".join(map(str, _OLDEST_LIBZMQ))
        raise DpwaError(f"libzmq {needed} or newer is needed, found {zmq.zmq_version()}; install a current pyzmq wheel")


def keep_freed_memory() -> None:
    """Have the C library keep the memory of received frames instead of giving it back and asking for it again.

    ZeroMQ allocates each frame anew. At first glibc takes blocks of a chunk's size straight from the kernel, a page
    fault for every 4 KiB, which makes a stream half as fast again as it need be. Freeing one large block raises its
    threshold for that (mallopt(3), M_MMAP_THRESHOLD: "dynamic"). Training does so by itself sooner or later; here it is
    done at once. Elsewhere than on glibc this allocates a block and frees it.
    """
    block = np.empty(_LARGEST_KEPT_BYTES, np.uint8)
    del block


def descriptor_limit() -> int:
    """How many file descriptors this process may have."""
    if resource is None:
        return _ENOUGH_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Let this process have more file descriptors, as far as the system allows a process to decide that by itself.

    The usual soft limit of 1024 is for programs that use `select`; the hard limit is the one that protects the system.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def endpoint(host: str, port: int) -> str:
    """The ZeroMQ address of a host and port, with the host resolved to a number.

    Raises:
        ConfigError: the host cannot be resolved. (ZeroMQ itself would say nothing and never connect.)
    """
    names = HostNames([host])
    try:
        return f"tcp://{hosts.address_text(names.number(host, time.monotonic() + _RESOLVE_TIMEOUT_S), port)}"
    finally:
        names.close()


def router(context: zmq.Context[zmq.Socket[bytes]], curve: Curve | None = None) -> zmq.Socket[bytes]:
    """The socket that serves: a vanished or stuck peer is an error at once, never a silent drop or a wait."""
    made = context.socket(zmq.ROUTER)
    _configure(
        made,
        {
            zmq.ROUTER_MANDATORY: 1,
            zmq.MAXMSGSIZE: MAX_HEADER_BYTES,  # only answers have bodies: no frame that comes here is longer
            # No limit here, but for bytes that were not read yet, in `connection_rules.py`. At a limit libzmq 4.3.5
            # stops reading; if the connection then breaks, and a heartbeat is due, an assertion ends the process:
            # any stranger could bring that about. For the same reason the server sends no heartbeats of its own. Those
            # of the asker say for how long it may be silent.
            zmq.RCVHWM: 0,
        },
    )
    if curve is not None:
        made.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without somebody to ask (`gate.py`) nobody gets in
        made.setsockopt(zmq.CURVE_SERVER, 1)
        made.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
    return made


def allow_ipv6(made: zmq.Socket[bytes], address: str) -> None:
    """Let a socket use this ZeroMQ address, if it is one of IPv6. With the option on, IPv4 would go by way of IPv6."""
    if address.startswith("tcp://["):
        made.setsockopt(zmq.IPV6, 1)


def dealer(context: zmq.Context[zmq.Socket[bytes]], curve: Curve | None, peer: str) -> zmq.Socket[bytes]:
    """The socket that pulls from one peer: queues nothing until it is connected, and connects once.

    Raises:
        ConfigError: there is no key to expect of the peer.
        zmq.ZMQError: there are no descriptors left.
    """
    server_key = None if curve is None else curve.server_key(peer)
    made = context.socket(zmq.DEALER)
    _configure(
        made,
        {
            zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
            zmq.RCVHWM: _QUEUE_MESSAGES,
            zmq.HEARTBEAT_IVL: 500,  # ms; finds a vanished machine, which TCP alone does not for minutes
            zmq.HEARTBEAT_TIMEOUT: 1500,
            zmq.HEARTBEAT_TTL: 1500,  # and so long the server waits for the next one
            zmq.IMMEDIATE: 1,
            zmq.RECONNECT_IVL: -1,  # never by itself: a new socket finds a returned peer at once
        },
    )
    if curve is not None and server_key is not None:
        made.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        made.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
        made.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
    return made


def second_handle(descriptor: int) -> socket.socket | None:
    """The same TCP connection under a number of our own; None if the descriptor is none of a socket.

    The first number may be closed and used again for something else at any moment; the second stays what it is.

    Raises:
        OSError: there is no such descriptor, or no number for another.
    """
    number = os.dup(descriptor)
    try:
        return socket.socket(fileno=number)
    except OSError:  # a file
        os.close(number)
        return None


def _configure(made: zmq.Socket[bytes], special: dict[int, int]) -> None:
    for option, value in {**_COMMON, **special}.items():
        made.setsockopt(option, value)


def close_inherited(ports: set[int]) -> None:
    """Close, in a forked child, every TCP socket that listens on or is connected from one of these ports.

    A DataLoader worker inherits the trainer's listening socket. If the trainer is killed, the worker would hold the
    port for seconds, and a restarted node could not bind it. The threads that used the sockets do not exist in the
    child, so that nothing there can miss them.
    """
    if not os.path.isdir("/dev/fd"):
        return
    for entry in os.listdir("/dev/fd"):
        descriptor = int(entry)
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _local_port(descriptor) in ports:
                os.close(descriptor)


def _local_port(descriptor: int) -> int | None:
    """The local TCP port of a socket, None for other kinds; leaves the descriptor open."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        is_tcp = borrowed.family in (socket.AF_INET, socket.AF_INET6) and borrowed.type == socket.SOCK_STREAM
        return int(borrowed.getsockname()[1]) if is_tcp else None
    finally:
        borrowed.detach()
