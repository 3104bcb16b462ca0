"""One node of `dpwa launch --engine ray`: the process that the launcher runs in its place, with Ray to the far end.

It does not talk to Ray: that takes seconds to begin, and one process does it for all nodes, the broker. When this
process is killed, its connection to the broker ends, and the far end ends the node.

A node that is started again may be on another machine: then it gets a cluster file with the addresses of now.

It imports little, because one is started for each node.

Must not know: Ray. Runs in: as `near_end`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from dpwa.launch.far_words import END, OUTPUT, Errand, Frames
from dpwa.launch.near_end import CarrierFailed, run_near_end

__all__ = ["config_name_of", "main"]

_PART_BYTES = 1 << 16
_MOST_ANSWER_BYTES = 1 << 20


def main() -> NoReturn:
    """Runs the node that a file of `dpwa launch --engine ray` describes; ends as the node does."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run_near_end(order, _Ray(order))


def config_name_of(text: str) -> str:
    """What a cluster file is called whose addresses are not those of the run folder's first one."""
    return f"config-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"


class _Ray:
    """One connection to the broker; see `Carrier`.

    Args:
        order: for the near end, with `socket` (the broker's) and `may_move` (whether the others find the node at
            another address).
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._addresses: dict[str, tuple[str, int]] = {}
        self._frames = Frames()
        self._parts: deque[tuple[bytes, bytes]] = deque()
        self._why: str | None = None

    def open(self) -> None:
        """See `Carrier`, also for the others."""
        try:
            self._socket.connect(self._order["socket"])
            self._socket.sendall(json.dumps({"node": self._order["errand"]["node"]}).encode() + b"\n")
            answer = b""
            while b"\n" not in answer and len(answer) < _MOST_ANSWER_BYTES:
                part = self._socket.recv(_PART_BYTES)
                if not part:
                    raise CarrierFailed(self.why(is_told=False))
                answer += part
        except OSError as error:
            raise CarrierFailed(f"the launcher's connection to Ray has ended ({error.strerror or error})") from error
        line, _, rest = answer.partition(b"\n")
        self._parts.extend(self._frames.feed(rest))
        found = json.loads(line)
        if "problem" in found:
            raise CarrierFailed(found["problem"])
        self._addresses = {name: (str(host), int(port)) for name, (host, port) in found["addresses"].items()}

    def adapted(self, errand: Errand) -> Errand:
        """The errand, with another cluster file where the node's place is another one than before."""
        host, port = self._addresses[errand.node]
        if (host, port) == (errand.host, errand.port):
            return errand
        if not self._order["may_move"]:
            raise CarrierFailed(
                f"its place is now {host}, and the others look for it at {errand.host} alone: this method, or this "
                "topology, needs the same nodes from the first step to the last; start all again with --resume"
            )
        from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import
        from dpwa.engines.placed import moved  # noqa: PLC0415

        text = moved(ClusterConfig.from_text(errand.config), self._addresses).to_yaml()
        name = config_name_of(text)
        with suppress(OSError):  # the folder may be the one in which the node looks for it
            Path(self._order["run_dir"], name).write_text(text, encoding="utf-8")
        return replace(errand, host=host, port=port, config=text, config_name=name)

    def read(self) -> bytes:
        while not self._parts:
            try:
                data = self._socket.recv(_PART_BYTES)
            except OSError:
                data = b""
            if not data:
                return b""
            self._parts.extend(self._frames.feed(data))
        kind, payload = self._parts.popleft()
        if kind == END:
            self._why = payload.decode(errors="replace")
        return payload if kind == OUTPUT else b""

    def write(self, data: bytes) -> None:
        with suppress(OSError):
            self._socket.sendall(data)

    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def why(self, *, is_told: bool) -> str:
        if self._why is None:
            return "the launcher's connection to Ray has ended; the node ends as soon as that is noticed on its side"
        last = self._why.strip().rpartition("\n")[2]
        if is_told:
            return last or f"the far end on {self._order['told']} was killed"
        return f"dpwa does not start on {self._order['told']}: {last}"
