"""TCP ports for nodes: finding free ones, and finding out why one cannot be used.

Must not know: the config, processes. Runs in: any thread.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from dpwa.config.hosts import address_text
from dpwa.errors import DpwaError

__all__ = ["HIGHEST_PORT", "LOWEST_PORT", "free_ports", "port_problem"]

LOWEST_PORT = 20000
HIGHEST_PORT = 29999
"""Ports are taken from below the range that the kernel gives to outgoing connections (Linux: from 32768 up). A port
inside that range can be taken by any connection at any moment between our test and the node's start; a node that
tries to reach a peer that is not up yet could even be given the peer's port and connect to itself."""


_LISTENS = "0A"  # a state in /proc/net/tcp


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nobody uses now.

    They are held all together while the search goes on, so that no two are the same, and free when this returns:
    another program could take one before a node does, though only by asking for just that port.

    Args:
        count: how many.
        host: address that the nodes will listen on.

    Raises:
        DpwaError: there are not that many.
    """
    candidates = list(range(LOWEST_PORT, HIGHEST_PORT + 1))
    # Random, so that two launches at the same moment rarely try the same; no result depends on it.
    random.shuffle(candidates)
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            if not candidates:
                raise DpwaError(
                    f"looking for {count} free ports on {host} from {LOWEST_PORT} to {HIGHEST_PORT}: found only "
                    f"{len(ports)}; end programs that hold ports, or name the ports in a cluster file"
                )
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                probe.bind((host, candidates[-1]))
            except OSError:
                probe.close()
            else:
                ports.append(candidates[-1])
            candidates.pop()
    return ports


def port_problem(host: str, port: int) -> str | None:
    """Why a node could not listen here, in words, or None if it could.

    Args:
        host: a name or address of this machine.
        port: TCP port, 1 to 65535.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"host {host} cannot be resolved ({error}); correct the host"
    # The node listens on IPv4 where a name has both, and on both at `::`.
    family, kind, protocol, _, address = min(addresses, key=lambda found: found[0] != socket.AF_INET)
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As the node does it: a port whose last connections are still fading away counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return _explain(error, host, port)
    return None


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = _holder_of(port)
        who = "the program that holds it" if holder is None else holder
        return f"port {port} on {host} is in use; stop {who} or change the port"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is not an address of this machine; start this node on its own host, correct the host, or write "
            "bind: 0.0.0.0 beside it where a port of that host leads here"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this user has; choose a port from 1024 up"
    return f"cannot listen on {address_text(host, port)}: {error.strerror}; correct the host or the port"


def _holder_of(port: int) -> str | None:
    """The process that listens on a port, as "process 1234 (python)"; None where that cannot be seen."""
    sockets = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    for folder in Path("/proc").glob("[0-9]*") if sockets else ():
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if any(os.readlink(entry) in sockets for entry in (folder / "fd").iterdir()):
                return f"process {folder.name} ({(folder / 'comm').read_text().strip()})"
    return None


def _listening_inodes(table: str, port: int) -> list[str]:
    try:
        lines = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:  # not Linux
        return []
    columns = [line.split() for line in lines]
    return [row[9] for row in columns if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port]
