"""What a host in a cluster file may be, how addresses are written, which are loopback, and whether names resolve.

An IPv6 address stands by itself as a host (`::1`), and in brackets where a port follows (`[::1]:21000`).

Must not know: the config's models, files, ZeroMQ. Runs in: any thread; `unresolvable` starts short-lived threads.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

__all__ = [
    "address_key",
    "address_text",
    "hint_for",
    "is_any",
    "is_loopback",
    "needs_resolving",
    "number_of",
    "problem_with",
    "split_address",
    "unresolvable",
]

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_RESOLVER_THREADS = 16


def problem_with(host: str) -> str | None:
    """What was expected instead, when `host` cannot be the host of a node; None when it can."""
    address = _as_address(host)
    if address is not None:
        if address.is_unspecified or address.is_multicast:
            return "expected an address that peers can reach, such as this node's own"
        if address.version == 6 and (address.is_link_local or address.scope_id is not None):
            return (
                "expected an address that means the same on every machine; one with a zone, or from fe80::/10, does not"
            )
        return None
    labels = host.removesuffix(".").split(".")
    # A last label of digits alone is a mistyped address: no top-level domain looks like that.
    if len(host) > 253 or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        return "expected a host name or an IP address"
    return None


def hint_for(host: str) -> str:
    """What to do about a host that `problem_with` refuses, where the reason is a common one."""
    if host.startswith("[") and _as_address(host.strip("[]")) is not None:
        return "; write it without brackets"
    parts = split_address(host)
    if parts is not None:
        return f"; write host: {parts[0]} and port: {parts[1]}"
    return ""


def split_address(text: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[IPv6]:port`; None for any other text. Whether the host can be one is not asked.

    Args:
        text: as in `join` of a cluster file.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, int(port)) if ":" in host else None
    return None if ":" in host or not host else (host, int(port))


def address_text(host: str, port: int) -> str:
    """A host and a port as one text, which `split_address` takes apart again."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts only when it is localhost."""
    address = _as_address(host)
    return host.lower().removesuffix(".") == "localhost" if address is None else address.is_loopback


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of a machine, as 0.0.0.0 and :: do for whoever listens."""
    address = _as_address(host)
    return address is not None and address.is_unspecified


def needs_resolving(host: str) -> bool:
    """Whether the resolver has to be asked about `host`."""
    return _as_address(host) is None and not is_loopback(host)


@lru_cache(maxsize=4096)  # asked for each entry about a member that is heard
def address_key(host: str) -> str:
    """The same text for all ways of writing one host; localhost is 127.0.0.1."""
    host = host.lower().removesuffix(".")
    if host == "localhost":
        return "127.0.0.1"
    address = _as_address(host)
    return host if address is None else str(address)


def number_of(name: str) -> str:
    """The address of a host name: its first IPv4 address, or its first IPv6 address where it has no other.

    Whoever listens at a name and whoever connects to it ask alike, and so mean the same one. May take as long as the
    system's resolver likes.

    Raises:
        OSError: it has none.
        UnicodeError: it cannot be a name.
    """
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        try:
            found = socket.getaddrinfo(name, None, family=socket.AF_INET6, type=socket.SOCK_STREAM)
        except OSError:
            raise error from None
        return str(found[0][4][0])


def unresolvable(
    names: Iterable[str], *, timeout_s: float, lookup: Callable[[str], object] | None = None
) -> dict[str, str]:
    """Which of the names have no address, and why.

    Args:
        names: host names.
        timeout_s: time for all of them together, in seconds. The system's resolver cannot be interrupted, so the
            look-ups run in daemon threads, and one that is still out at the end counts as failed.
        lookup: asks about one name and raises OSError when there is no answer; the system's resolver by default.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    given_up = threading.Event()
    unanswered = list(dict.fromkeys(names))
    for name in unanswered:
        waiting.put(name)

    def work() -> None:
        while not given_up.is_set():
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            answers.put((name, _failure(name, lookup or number_of)))

    threads = [
        threading.Thread(target=work, name="dpwa-resolver", daemon=True)
        for _ in range(min(_RESOLVER_THREADS, len(unanswered)))
    ]
    for thread in threads:
        thread.start()
    failures: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    while unanswered:
        try:
            name, failure = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            given_up.set()
            return failures | dict.fromkeys(unanswered, f"no answer within {timeout_s:g} s")
        unanswered.remove(name)
        if failure is not None:
            failures[name] = failure
    for thread in threads:
        thread.join()  # at once: nothing is waiting any more
    return failures


def _failure(name: str, lookup: Callable[[str], object]) -> str | None:
    try:
        lookup(name)
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError as error:  # a name that cannot be encoded for the DNS
        return str(error)
    return None


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The number that a host is; that of an IPv4 address where one stands in an IPv6 address (`::ffff:10.0.0.1`)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped
