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

_PACKET_BYTES = 2048
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
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = float("inf")


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
    """

    def __init__(self, count: int, seed: int = 1) -> None:
        stem = f"dpwa{os.getpid()}n"
        self.places = [f"{stem}{number}" for number in range(1, count + 1)]
        self.hosts = [f"10.78.0.{number}" for number in range(1, count + 1)]
        self.link = Link()
        self.own_links: dict[str, Link] = {}
        """Of hosts whose link is another one, both ways."""
        self.carried = self.lost = self.queued = 0
        """Packets so far; what a queue had no room for counts as lost, and what waited for the rate as queued."""
        self.one_way: set[str] = set()
        """Hosts behind a router that lets out whatever begins there, and lets nothing in that begins elsewhere."""
        self.turned_away = 0
        """Connections that somebody tried to make to such a host; each try of the system's counts."""
        self._rng = random.Random(seed)
        self._made: list[str] = []
        self._ports: dict[bytes, int] = {}
        self._hosts: dict[bytes, str] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
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
                    _, _, port, packet = heapq.heappop(self._due)
                    os.write(port, packet)

    def _take(self, port: int) -> None:
        """One packet that a node has sent: kept until it is due, or lost."""
        packet = os.read(port, _PACKET_BYTES)
        source, target = packet[12:16], packet[16:20]
        to = self._ports.get(target)
        if to is None:
            return  # not IPv4, or to nobody
        if self.one_way and self._hosts[target] in self.one_way and _begins_a_connection(packet):
            self.turned_away += 1
            return
        now_s = time.monotonic()
        own = self.own_links.get(self._hosts[source])
        link = own or self.own_links.get(self._hosts[target], self.link)
        way = ("from", source) if own else ("to", target)
        free_s = max(now_s, self._free_s.get(way, 0.0))
        if self._rng.random() < link.loss or free_s - now_s > _QUEUE_S:
            self.lost += 1
            return
        self.queued += free_s > now_s
        self._free_s[way] = free_s = free_s + len(packet) / link.bytes_per_s
        due_s = free_s + link.delay_s + self._rng.uniform(-link.jitter_s, link.jitter_s)
        due_s = max(due_s, self._last_due_s.get((source, target), 0.0))
        self._last_due_s[source, target] = due_s
        self.carried += 1
        heapq.heappush(self._due, (due_s, self.carried, to, packet))


def _begins_a_connection(packet: bytes) -> bool:
    """Whether a packet of IPv4 is TCP's first one: SYN without ACK."""
    flags = packet[4 * (packet[0] & 0x0F) + 13] if packet[9] == socket.IPPROTO_TCP else 0
    return flags & 0x12 == 0x02
