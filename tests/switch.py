"""Network namespaces for tests that part a network. They need root and the program `ip`."""

from __future__ import annotations

import os
import shutil
import subprocess


def needs() -> str | None:
    """What is missing here, if anything is."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and the program ip, for network namespaces"
    return None


def ip(*words: str) -> str:
    """Run `ip`; what it printed."""
    words = (shutil.which("ip") or "ip", *words)
    return subprocess.run(words, check=True, capture_output=True, encoding="utf-8").stdout


class Switch:
    """Two network namespaces with a bridge between them, in a third one, from which a cable can be pulled."""

    def __init__(self) -> None:
        stem = f"dpwa{os.getpid()}"
        self.sides, self._place = [f"{stem}a", f"{stem}b"], f"{stem}s"
        self._made: list[str] = []

    def build(self) -> None:
        for name in (self._place, *self.sides):
            ip("netns", "add", name)
            self._made.append(name)
        # Without IPv6 the bridge says nothing by itself, and whatever crosses it was sent by a node.
        ip("netns", "exec", self._place, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        ip("-n", self._place, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._place, "link", "set", "bridge", "up")
        for number, side in enumerate(self.sides, start=1):
            cable = ["type", "veth", "peer", "name", "eth0", "netns", side]
            ip("link", "add", f"port{number}", "netns", self._place, *cable)
            ip("-n", side, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for place, link in ((side, "eth0"), (side, "lo"), (self._place, f"port{number}")):
                ip("-n", place, "link", "set", link, "up")
            self.plug(number)

    def plug(self, number: int) -> None:
        ip("-n", self._place, "link", "set", f"port{number}", "master", "bridge")

    def pull(self, number: int) -> None:
        """No carrier is lost: what is sent is dropped without a word."""
        ip("-n", self._place, "link", "set", f"port{number}", "nomaster")

    def packets(self) -> tuple[int, int]:
        """How many came into the first port from its side, and how many went out of the second one."""
        shown = ip("netns", "exec", self._place, "cat", "/proc/net/dev")
        counts = {line.split(":")[0].strip(): line.split(":")[1].split() for line in shown.splitlines()[2:]}
        return int(counts["port1"][1]), int(counts["port2"][9])

    def remove(self) -> None:
        for name in self._made:
            ip("netns", "delete", name)
