"""Numbers of host names, by look-ups that may take as long as they like.

The system's resolver cannot be interrupted, and it can be silent for many seconds. So a look-up runs in a thread of its
own. Whoever needs an address waits for it no longer than it can, and then takes the last one that is known. Each
new connection looks anew, so that a name that means another machine by now is found: at the next try at the latest.

Must not know: ZeroMQ, what is at the addresses. Runs in: the thread that makes the connections; the look-ups in
short-lived threads, one at a time per name.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterable

from dpwa.config import hosts
from dpwa.errors import ConfigError, NodeClosed
from dpwa.transport.doorbell import Doorbell

__all__ = ["HostNames"]

# Names that are looked up before anybody asks for them; in a larger cluster the others follow when they are needed.
_MOST_AT_ONCE = 16

# How long an answer is waited for if a former one is known: most resolvers take a few milliseconds.
_PATIENCE_S = 0.1

# For the threads of look-ups that are about to end; those that hang are left behind.
_CLOSE_S = 0.1


class HostNames:
    """Host names of a cluster, and their numbers.

    Args:
        names: hosts that will be asked for, names and numbers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._numbers: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._under_way: dict[str, threading.Thread] = {}
        self._threads: set[threading.Thread] = set()
        self._answered: Doorbell | None = None
        for name in list(dict.fromkeys(filter(hosts.needs_resolving, names)))[:_MOST_AT_ONCE]:
            self._begin(name)

    def number(self, host: str, deadline_s: float, bell: Doorbell | None = None) -> str:
        """The number of a host: IPv4, or IPv6 where it has no other.

        Args:
            host: a name or a number.
            deadline_s: monotonic time until which an answer may be waited for.
            bell: rings when nobody needs it any more.

        Raises:
            ConfigError: it cannot be resolved, or not in time.
            NodeClosed: the bell rang.
        """
        if not hosts.needs_resolving(host):
            return hosts.address_key(host)
        answered = self._begin(host)
        if host in self._numbers:
            now_s = time.monotonic()
            deadline_s = min(now_s + _PATIENCE_S, now_s + (deadline_s - now_s) / 2)  # half is left for the connection
        self._wait(host, deadline_s, answered, bell)
        if host in self._numbers:
            return self._numbers[host]
        reason = self._reasons.get(host, "no answer from the resolver in time")
        raise ConfigError(f"host {host}: cannot be resolved ({reason}); use a name or address that this host knows")

    def forget(self, host: str) -> None:
        """Nobody is asked at this host any more; an answer that still comes is not kept."""
        for known in (self._under_way, self._numbers, self._reasons):
            known.pop(host, None)

    def close(self) -> None:
        """Leave the look-ups that are under way to themselves."""
        deadline_s = time.monotonic() + _CLOSE_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._answered is not None:
            self._answered.close()

    def _begin(self, host: str) -> Doorbell:
        """Look a name up, unless that is under way."""
        answered = self._answered = self._answered or Doorbell()
        if host not in self._under_way:
            thread = threading.Thread(target=self._look_up, args=(host,), name=f"dpwa-lookup-{host}", daemon=True)
            self._under_way[host] = thread
            self._threads = {one for one in self._threads if one.is_alive()} | {thread}
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                self._threads.discard(thread)
                del self._under_way[host]
                self._reasons[host] = str(error)
        return answered

    def _wait(self, host: str, deadline_s: float, answered: Doorbell, bell: Doorbell | None) -> None:
        poller = select.poll()
        for one in (answered, bell):
            if one is not None:
                poller.register(one.fileno(), select.POLLIN)
        while host in self._under_way:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            poller.poll(int(left_s * 1000) + 1)
            if bell is not None and bell.has_rung():
                raise NodeClosed("the node was closed during an exchange")
            answered.silence()  # before the look at what it was about

    # --- Look-up's thread -----------------------------------------------------------------------------------------

    def _look_up(self, host: str) -> None:
        number = reason = None
        try:
            number = hosts.number_of(host)
        except (OSError, UnicodeError) as error:
            reason = str(error)
        finally:
            if self._under_way.get(host) is threading.current_thread():
                if number is not None:
                    self._numbers[host] = number
                if reason is not None:
                    self._reasons[host] = reason
                self._under_way.pop(host, None)
            if self._answered is not None:
                self._answered.ring()
