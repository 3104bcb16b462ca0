"""A network of poor links between network namespaces: latency, jitter, loss and a rate that can be changed at any time.

Each node has a namespace of its own with one TUN device in it. All packets come to one thread of this process, which
keeps each for as long as the link would, or loses it. This is what the kernel's netem does, where there is one.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass

import switch
from switch import ip

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

_USUAL_MTU_BYTES = 1500
_QUEUE_S = 0.25
"""What has to wait longer for a link of limited rate is dropped, as a router's full queue does."""


@dataclass(frozen=True)
class Link:
    """How each way between two nodes is.

    Attributes:
        delay_s: of each packet.
        jitter_s: of the delay, at most so much more or less; packets stay in order.
        loss: share of the packets that are lost.
        bytes_per_s: into each node, and out of one with a link of its own.
        out_bytes_per_s: out of each node without a link of its own.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = float("inf")
    out_bytes_per_s: float = float("inf")

    @classmethod
    def of_rate(cls, bytes_per_s: float, delay_s: float = 0.0) -> Link:
        """A cable with this rate in each of its two directions."""
        return cls(delay_s, bytes_per_s=bytes_per_s, out_bytes_per_s=bytes_per_s)


CUT_OFF = Link(loss=1.0)
"""As behind a cable that was pulled, at a switch that goes on: what is sent is lost without a word."""


def needs() -> str | None:
    """What is missing here, if anything is."""
    if missing := switch.needs():
        return missing
    return None if os.access(_TUN, os.R_OK | os.W_OK) else f"needs {_TUN}, for a network whose links are poor"


class PoorNetwork:
    """So many namespaces, 10.78.0.1 and so on, and the thread that carries their packets.

    Args:
        count: of namespaces.
        seed: of losses and jitter.
        mtu_bytes: longest packet. The thread takes as long for a long one as for a short one, so that at high rates
            long ones leave the processor to the nodes.
    """

    def __init__(self, count: int, seed: int = 1, mtu_bytes: int = _USUAL_MTU_BYTES) -> None:
        stem = f"dpwa{os.getpid()}n"
        self.places = [f"{stem}{number}" for number in range(1, count + 1)]
        self.hosts = [f"10.78.0.{number}" for number in range(1, count + 1)]
        self.link = Link()
        self.own_links: dict[str, Link] = {}
        """Of hosts whose link is another one, both ways."""
        self.carried = self.lost = self.queued = 0
        """Packets so far; what a queue had no room for counts as lost, and what waited for the rate as queued."""
        self.carried_bytes = 0
        self.words: dict[bytes, int] = {}
        """What to look for in packets, and in how many it was."""
        self.one_way: set[str] = set()
        """Hosts behind a router that lets out whatever begins there, and lets nothing in that begins elsewhere."""
        self.turned_away = 0
        """Connections that somebody tried to make to such a host; each try of the system's counts."""
        self._rng = random.Random(seed)
        self._mtu_bytes = mtu_bytes
        self._made: list[str] = []
        self._ports: dict[bytes, int] = {}
        self._hosts: dict[bytes, str] = {}
        self._due: list[tuple[float, int, Link | None, bytes]] = []
        self._taken = 0
        self._free_s: dict[tuple[str, bytes], float] = {}
        self._last_due_s: dict[tuple[bytes, bytes], float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry)

    def build(self) -> None:
        for place, host in zip(self.places, self.hosts, strict=True):
            ip("netns", "add", place)
            self._made.append(place)
            port = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
            self._ports[socket.inet_aton(host)] = port
            self._hosts[socket.inet_aton(host)] = host
            fcntl.ioctl(port, _TUNSETIFF, struct.pack("16sH22x", place.encode(), _IFF_TUN | _IFF_NO_PI))
            ip("link", "set", place, "netns", place)
            ip("-n", place, "address", "add", f"{host}/24", "dev", place)
            ip("-n", place, "link", "set", place, "mtu", str(self._mtu_bytes))
            for link in ("lo", place):
                ip("-n", place, "link", "set", link, "up")
        self._thread.start()

    def remove(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        for port in self._ports.values():
            os.close(port)
        for place in self._made:
            ip("netns", "delete", place)

    def _carry(self) -> None:
        with selectors.DefaultSelector() as selector:
            for port in self._ports.values():
                selector.register(port, selectors.EVENT_READ)
            while not self._closing.is_set():
                wait_s = min(0.05, max(0.0, self._due[0][0] - time.monotonic())) if self._due else 0.05
                for key, _ in selector.select(wait_s):
                    self._take(key.fd)
                while self._due and self._due[0][0] <= time.monotonic():
                    due_s, _, last_link, packet = heapq.heappop(self._due)
                    if last_link is not None:
                        self._send_in(packet, last_link, due_s)
                    else:
                        os.write(self._ports[packet[16:20]], packet)

    def _take(self, port: int) -> None:
        """One packet that a node has sent: kept until it is due, or lost."""
        packet = os.read(port, self._mtu_bytes)
        source, target = packet[12:16], packet[16:20]
        if target not in self._ports:
            return  # not IPv4, or to nobody
        if self.one_way and self._hosts[target] in self.one_way and _begins_a_connection(packet):
            self.turned_away += 1
            return
        for word in self.words:
            self.words[word] += word in packet
        own = self.own_links.get(self._hosts[source])
        into = self.own_links.get(self._hosts[target])
        link = own or into or self.link
        if self._rng.random() < link.loss:
            self.lost += 1
            return
        rate = own.bytes_per_s if own is not None else self.link.out_bytes_per_s
        sent_s = self._through(("from", source), rate, packet, time.monotonic())
        if sent_s is None:
            return
        due_s = sent_s + link.delay_s + self._rng.uniform(-link.jitter_s, link.jitter_s)
        due_s = max(due_s, self._last_due_s.get((source, target), 0.0))
        self._last_due_s[source, target] = due_s
        self._keep(due_s, into or self.link, packet)

    def _send_in(self, packet: bytes, link: Link, now_s: float) -> None:
        """A packet has come to the target's own cable."""
        due_s = self._through(("to", packet[16:20]), link.bytes_per_s, packet, now_s)
        if due_s is not None:
            self.carried += 1
            self.carried_bytes += len(packet)
            self._keep(due_s, None, packet)

    def _through(self, way: tuple[str, bytes], bytes_per_s: float, packet: bytes, now_s: float) -> float | None:
        """When a packet has passed one direction of a cable; None: its queue was full."""
        free_s = max(now_s, self._free_s.get(way, 0.0))
        if free_s - now_s > _QUEUE_S:
            self.lost += 1
            return None
        self.queued += free_s > now_s
        self._free_s[way] = free_s = free_s + len(packet) / bytes_per_s
        return free_s

    def _keep(self, due_s: float, link: Link | None, packet: bytes) -> None:
        self._taken += 1
        heapq.heappush(self._due, (due_s, self._taken, link, packet))


def _begins_a_connection(packet: bytes) -> bool:
    """Whether a packet of IPv4 is TCP's first one: SYN without ACK."""
    flags = packet[4 * (packet[0] & 0x0F) + 13] if packet[9] == socket.IPPROTO_TCP else 0
    return flags & 0x12 == 0x02
