"""What a host in a cluster file may be, which hosts are this machine's loopback, and whether names resolve.

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

__all__ = ["address_key", "hint_for", "is_loopback", "needs_resolving", "problem_with", "unresolvable"]

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_RESOLVER_THREADS = 16


def problem_with(host: str) -> str | None:
    """What was expected instead, when `host` cannot be the host of a node; None when it can."""
    address = _as_ipv4(host)
    if address is not None:
        if address.is_unspecified or address.is_multicast:
            return "expected an address that peers can reach, such as this node's own"
        return None
    labels = host.removesuffix(".").split(".")
    # A last label of digits alone is a mistyped address: no top-level domain looks like that.
    if len(host) > 253 or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        return "expected a host name or an IPv4 address"
    return None


def hint_for(host: str) -> str:
    """What to do about a host that `problem_with` refuses, where the reason is a common one."""
    try:
        ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return ""
    return "; IPv6 is not supported yet, write the node's IPv4 address or a host name"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts only when it is localhost."""
    address = _as_ipv4(host)
    return host.lower().removesuffix(".") == "localhost" if address is None else address.is_loopback


def needs_resolving(host: str) -> bool:
    """Whether the resolver has to be asked about `host`."""
    return _as_ipv4(host) is None and not is_loopback(host)


def address_key(host: str) -> str:
    """The same text for all ways of writing one host; localhost is 127.0.0.1."""
    host = host.lower().removesuffix(".")
    return "127.0.0.1" if host == "localhost" else host


def unresolvable(
    names: Iterable[str], *, timeout_s: float, lookup: Callable[[str], object] | None = None
) -> dict[str, str]:
    """Which of the names have no IPv4 address, and why.

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
            answers.put((name, _failure(name, lookup or _system_lookup)))

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


def _system_lookup(name: str) -> object:
    return socket.getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_STREAM)


def _as_ipv4(host: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None
