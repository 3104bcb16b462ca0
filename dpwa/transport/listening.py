"""Where a node listens, and that it stops listening for a while when the process has no descriptor left.

With no descriptor free, accepting fails, the connection stays in the queue, and ZeroMQ's I/O thread tries again at
once, forever: a whole core for nothing. Connections that stand are served meanwhile.

The listening socket is made here and handed to ZeroMQ. When ZeroMQ binds a TCP address itself it looks up the network
interfaces, and where no descriptor is left for that, an assertion in libzmq 4.3.5 ends the process.

Must not know: messages, who connects. Runs in: the Rx thread.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from urllib.parse import urlsplit

import zmq

from dpwa.config import hosts
from dpwa.errors import ConfigError
from dpwa.transport.sockets import Links, allow_ipv6, endpoint

__all__ = ["Listener"]

_PAUSE_S = 1.0

# Connections that may wait to be accepted: ZeroMQ's own number.
_BACKLOG = 100

# Of each connection: requests are small. What a closed connection has left there is still read, message by message.
_RECEIVE_BUFFER_BYTES = 8192


class Listener:
    """Binds a ROUTER socket, and can take it off its address for a while.

    Args:
        router: the socket.
        name: the node's name, for messages.
        host: address to listen on.
        port: port to listen on.
        links: other ways than plain TCP.
    """

    def __init__(self, router: zmq.Socket[bytes], *, name: str, host: str, port: int, links: Links) -> None:
        self._router = router
        self._name = name
        self._host, self._port = host, port
        self._links = links
        self._address = ""
        self.resumes_s: float | None = None
        """When it will listen again; None while it does."""

    def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        try:
            self._bind(self._links.listen or endpoint(self._host, self._port))
        except (zmq.ZMQError, OSError) as error:
            if error.errno == errno.EADDRNOTAVAIL:
                what = (
                    "this machine has no such address. Where peers reach it by another one, as behind a forwarded port "
                    'or in a container, write bind: 0.0.0.0 (or "::") beside host in the cluster file'
                )
            else:
                what = "stop the program that holds the port, or change host, port or bind in the cluster file"
            address = hosts.address_text(self._host, self._port)
            raise ConfigError(f"node {self._name}: cannot listen on {address} ({error.strerror}); {what}") from error
        self._address = bytes(self._router.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def pause(self, now_s: float) -> None:
        """Listen no more for a second."""
        if self.resumes_s is None:
            with contextlib.suppress(zmq.ZMQError):
                self._router.unbind(self._address)
        self.resumes_s = now_s + _PAUSE_S

    def resume_if_due(self, now_s: float) -> None:
        """Listen again, if the pause is over and there is a descriptor to do it with."""
        if self.resumes_s is None or now_s < self.resumes_s:
            return
        try:
            self._bind(self._address)
        except (zmq.ZMQError, OSError):  # no descriptor yet, or the old one is not closed yet
            self.resumes_s = now_s + _PAUSE_S
        else:
            self.resumes_s = None

    def _bind(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            with contextlib.closing(_server(parts.hostname, parts.port)) as made:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
                made.setblocking(False)  # noqa: FBT003  (the standard library's signature)
                allow_ipv6(self._router, address)
                self._router.setsockopt(zmq.USE_FD, made.fileno())
                self._router.bind(address)
                made.detach()  # it is ZeroMQ's from now on
        else:
            self._router.bind(address)


def _server(number: str, port: int) -> socket.socket:
    """A socket that listens; at `::` also for IPv4, where the system has that."""
    if ":" not in number:
        return socket.create_server((number, port), backlog=_BACKLOG)
    takes_both = hosts.is_any(number) and socket.has_dualstack_ipv6()
    return socket.create_server((number, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=takes_both)
