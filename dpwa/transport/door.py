"""The door of a node: who is let in, who is shown out, and the one warning to the user about it.

It looks at the connections often enough that nobody can make the node hold much between two looks: what ZeroMQ collects
of a message before it is complete is bounded by what its I/O thread can read in that time.

Must not know: messages, snapshots. Runs in: the Rx thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import zmq

from dpwa.transport.connection_rules import Cause, ConnectionRules, PeerConnection
from dpwa.transport.connections import Connections
from dpwa.transport.listening import Listener
from dpwa.transport.sockets import Links, descriptor_limit

__all__ = ["Door", "most_connections"]

# One look at 64 connections takes 0.16 ms, so all looks take 0.3 % of a core; with a handful of connections, a tenth of
# that. The shorter interval is for as long as bytes come in that are no requests.
_LOOK_S = 0.05
_LOOK_WHEN_ALARMED_S = 0.01
_ALARMING_BYTES = 8 << 10

# The peers of a cluster connect once each, and again after a failure or a restart.
_LEAST_CONNECTIONS = 64
_CONNECTIONS_PER_PEER = 4

# Each takes two descriptors; the training script needs some, too.
_SHARE_OF_DESCRIPTORS = 8

_KEEP_OUT = "Keep strangers from this port, by a firewall or a network of its own"

_WARNINGS = {
    Cause.CROWD: "more connections than this cluster can need; those that are of no use are closed. " + _KEEP_OUT,
    Cause.INCOMPLETE: "somebody sends bytes that are no requests; such connections are closed. " + _KEEP_OUT,
    Cause.ILLEGAL: "somebody sends illegal messages; such connections are closed. All nodes need the same version of "
    "dpwa. " + _KEEP_OUT,
    Cause.UNREAD: "somebody asks for snapshots and does not read them in time; such connections are closed. If it is a "
    "peer on a slow link, raise timeout_ms, or set codec, pull_fraction or bandwidth_limit",
    Cause.HOLDING: "somebody holds the buffers of old snapshots and makes no progress; such connections are closed "
    "when their buffers are needed. If it is a peer on a slow link, raise timeout_ms, or set codec or pull_fraction",
    Cause.STRANGER: "somebody without a key of this cluster knocks; nobody is let in without one. If it is a node of "
    "yours, its key is not in this machine's allowed.yaml, its own list is old, or its certificate does not count",
    Cause.DESCRIPTORS: "this process has no file descriptor left, and lets nobody in while that lasts; training goes "
    "on. Raise the limit (ulimit -n), or use fewer files and workers",
}


def most_connections(peers: int) -> int:
    """How many connections a node keeps.

    Args:
        peers: how many other nodes the cluster has.
    """
    wanted = max(_LEAST_CONNECTIONS, _CONNECTIONS_PER_PEER * peers + 16)
    return max(2, min(wanted, descriptor_limit() // _SHARE_OF_DESCRIPTORS))


class Door:
    """Watches over one ROUTER socket.

    Args:
        context: of the socket.
        router: the socket; it is bound here.
        name: the node's name.
        host: address to listen on.
        port: port to listen on.
        links: other ways than plain TCP.
        most: how many connections there may be.
        transfer_s: how long a transfer may take.
        counts: by cause, what was done; counted up here.
        is_engaged: whether a transfer to a connection is under way, or a request of it waits.
        is_open: nodes may join.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        name: str,
        host: str,
        port: int,
        links: Links,
        most: int,
        transfer_s: float,
        counts: dict[Cause, int],
        is_engaged: Callable[[PeerConnection], bool],
        is_open: bool = False,
    ) -> None:
        self._name = name
        self._is_open = is_open
        self._told: set[Cause] = set()
        self._port = port
        self._links = links
        self._counts = counts
        self._is_engaged = is_engaged
        self._rules = ConnectionRules(most=most, transfer_s=transfer_s)
        self._next_look_s = 0.0
        self.connections = Connections(context, router, port, is_sealed=links.curve is not None)
        self._listener = Listener(router, name=name, host=host, port=port, links=links)
        try:
            self._listener.open()
        except BaseException:
            self.connections.close()
            raise

    @property
    def next_s(self) -> float | None:
        """When to look next; None if only an event can change anything."""
        if self.connections.standing:
            return self._next_look_s
        return self._listener.resumes_s

    def watch(self, now_s: float, *, is_alarmed: bool) -> bool:
        """Note who has come and gone, and look at those that stand, if it is time; True if it was.

        Args:
            now_s: monotonic time.
            is_alarmed: there is a reason to look again soon.
        """
        self.connections.note_events(now_s)
        if self.connections.is_short:
            self.connections.is_short = False
            self.happened(Cause.DESCRIPTORS)
            self._listener.pause(now_s)
        if self.connections.broken_handshakes:
            is_sealed, count = self.connections.is_sealed, self.connections.broken_handshakes
            self.connections.broken_handshakes = 0
            # Who joins does not know which member is there, and tries the keys of its list one after the other.
            is_news = not (is_sealed and self._is_open)
            self.happened(Cause.STRANGER if is_sealed else Cause.ILLEGAL, count, is_news=is_news)
        self._listener.resume_if_due(now_s)
        standing = self.connections.standing
        for connection, cause in self._rules.crowd(standing, self._is_engaged):
            self.end(connection, cause)
        if now_s < self._next_look_s:
            return False
        self.connections.measure(now_s)
        expects_guests = self._links.curve is not None and self._links.curve.certified.takes_guests
        for connection, cause in self._rules.overdue(standing, now_s, self._is_engaged, expects_guests=expects_guests):
            self.end(connection, cause)
        is_alarmed = is_alarmed or any(one.unexplained_bytes > _ALARMING_BYTES for one in standing)
        self._next_look_s = now_s + (_LOOK_WHEN_ALARMED_S if is_alarmed else _LOOK_S)
        return True

    def end(self, connection: PeerConnection, cause: Cause) -> None:
        """Close a connection."""
        if self.connections.end(connection, time.monotonic()):
            self.happened(cause)

    def happened(self, cause: Cause, count: int = 1, *, is_news: bool = True) -> None:
        """Count something, and tell the user of its kind once, if it is news at all."""
        self._counts[cause] += count
        if is_news and cause in _WARNINGS and cause not in self._told:
            self._told.add(cause)
            logging.getLogger("dpwa").warning(
                "node %s, port %d: %s (told once; counts are in the journal)", self._name, self._port, _WARNINGS[cause]
            )

    def close(self) -> None:
        """Watch no more. Call it before the ROUTER is closed."""
        self.connections.close()
