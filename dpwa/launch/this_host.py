"""Which nodes of a cluster file belong to this host.

A host is this one when a socket can be bound to one of its addresses: the only question that interface lists, host
names and containers answer alike. Some systems bind to any address (a network namespace in which no address was ever
set up, `net.ipv4.ip_nonlocal_bind`); there the way that packets would take decides.

Must not know: processes, ports. Runs in: any thread; name resolution may take seconds when a name server does not
answer.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from dpwa.config import hosts

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["is_local", "local_node_names"]


def is_local(host: str) -> bool:
    """Whether this name or address means the machine we are on.

    Args:
        host: a name or an IP address. One that cannot be resolved is not local.
    """
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # UnicodeError: an empty or overlong label in the name
        return False
    return any(
        _is_own_address(family, address) if _binds_anything(family) else _can_bind(family, address)
        for family, _, _, _, address in addresses
    )


def local_node_names(config: ClusterConfig) -> list[str]:
    """Names of the nodes whose host is this one, in the order of the file.

    Loopback is every machine's. So where the nodes of a file are on several machines, it says nothing of a node that
    cannot be asked (`serve: false`) and names no other host.
    """
    answers: dict[str, bool] = {}  # a cluster names the same few hosts many times
    is_one_machine = all(node.is_private for node in config.nodes) and not any(
        not hosts.is_loopback(seed) for seed, _ in config.seeds
    )
    found = []
    for node in config.nodes:
        home = node.home
        if home not in answers:
            answers[home] = is_local(home)
        if answers[home] and (node.serve or is_one_machine or not hosts.is_loopback(home)):
            found.append(node.name)
    return found


# Addresses for documentation, which no machine has (RFC 5737, RFC 3849).
_NOBODYS = {socket.AF_INET: ("192.0.2.1", 0), socket.AF_INET6: ("2001:db8::1", 0)}


def _binds_anything(family: int) -> bool:
    return family in _NOBODYS and _can_bind(family, _NOBODYS[socket.AddressFamily(family)])


def _is_own_address(family: int, address: tuple[object, ...]) -> bool:
    """Whether packets to an address would come from that very address; none is sent.

    Of several addresses in one network only the first is recognised.
    """
    number = str(address[0])
    if ipaddress.ip_address(number.partition("%")[0]).is_loopback:
        return True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((number, 9, *address[2:]))
            return str(probe.getsockname()[0]) == number
    except OSError:
        return False


def _can_bind(family: int, address: object) -> bool:
    # UDP and port 0: nothing is disturbed, and no port can be in use.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it for this family
    except OSError:
        return False
    return True
