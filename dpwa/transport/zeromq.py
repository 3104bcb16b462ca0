"""A node's transport over ZeroMQ: its context, its Rx thread and its Tx thread, and one that asks for leases of data.

Runs in: the trainer's thread; the work is done in these threads.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import zmq

from dpwa.config import hosts
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import InternalError
from dpwa.exchange.leasing import Leasing
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult
from dpwa.transport.client import ZmqClient
from dpwa.transport.copy_waiter import CopyWaiter
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.interface import Ends
from dpwa.transport.key_folder import KeyFolder
from dpwa.transport.lease_thread import LeaseThread
from dpwa.transport.run_keys import run_keys_folder
from dpwa.transport.rx import RxThread
from dpwa.transport.segments import Segments
from dpwa.transport.sockets import Links, close_inherited, keep_freed_memory, raise_descriptor_limit, require_libzmq
from dpwa.transport.tx import TxThread
from dpwa.transport.worker_thread import WorkerThread

__all__ = ["ZmqTransport"]

_logger = logging.getLogger("dpwa")

# Nodes that may join get places at the door as if there were so many; the six connections that each of a larger number
# keeps open are spread over all.
_EXPECTED_MEMBERS = 64

# The longest that one wait for a thread takes; it ends with the thread.
_LONG_S = 3600.0


def _links(config: ClusterConfig, name: str, run_dir: Path | None) -> Links:
    """The ways to the peers: with the keys that the cluster file names, otherwise with those of the run."""
    folder = run_keys_folder(run_dir) if config.keys is None else Path(config.keys)
    if folder is None:
        return Links()
    return Links(curve=KeyFolder(folder, name, [peer.name for peer in config.peers_of(name)]))


class ZmqTransport:
    """Rx and Tx threads of one node. See `Transport` for the methods.

    Args:
        config: the cluster.
        name: this node.
        wiring: what to serve and how to exchange.
        run_dir: the run folder, which may hold the keys of the run; None: there is none.
        links: other ways to the peers than those that the file and the folder ask for.

    Raises:
        ConfigError: the keys cannot be used.
    """

    def __init__(
        self, config: ClusterConfig, name: str, wiring: Ends, *, run_dir: Path | None = None, links: Links | None = None
    ) -> None:
        require_libzmq()
        raise_descriptor_limit()
        links = links or _links(config, name, run_dir)
        own = config.node(name)
        asked = config.asked_by(name)
        addresses = {peer.name: (peer.host, peer.port) for peer in asked}
        # A context of its own, not the process-wide one: tests and studies run several nodes in one process.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._name = name
        host, self._port = own.listens_at
        self._serves = own.serve
        self._is_open = links.curve is None and own.serve and (config.insecure or not own.is_private)
        neighbours = [
            peer.name for peer in config.peers_of(name) if hosts.address_key(peer.host) == hosts.address_key(own.host)
        ]
        # Whoever joins may be on this host.
        reads_memory = config.shared_memory == "auto" and bool(neighbours or config.is_open)
        self.shares_memory = reads_memory and own.serve
        self._rx = RxThread(
            self._context,
            name=name,
            host=host,
            port=self._port,
            links=links,
            service=wiring.service,
            peers=max(len(config.nodes) - 1, _EXPECTED_MEMBERS) if config.is_open else len(config.nodes) - 1,
            timeout_s=config.timeout_s,
            longest_s=config.longest_s,
        )

        # The client gets what it needs of this object and no more: a circle would keep memory until a collection.
        context = self._context

        def make_client(bell: Doorbell) -> ZmqClient:
            return ZmqClient(
                context,
                name=name,
                addresses=addresses,
                links=links,
                segments=Segments(
                    run_id=config.run_id,
                    neighbours=neighbours if reads_memory else (),
                    size_bytes=wiring.service.layout.total_bytes,
                ),
                own_host=own.host if reads_memory else None,
                max_connections=config.max_connections,
                timeout_s=config.timeout_s,
                longest_s=config.longest_s,
                connect_timeout_s=config.connect_timeout_s,
                bell=bell,
            )

        self._make_client = make_client
        self._leases: LeaseThread | None = None
        self._tx = TxThread(name=name, exchanger=wiring.exchanger, make_client=make_client)
        self._results = wiring.exchanger.context.results
        self._proposals = wiring.service.proposals
        self._proposals.wake = self._tx.wake
        self._proposals.decided = self._rx.published
        self._proposals.guard(time.monotonic)
        self._copy_waiter = CopyWaiter(name)
        self.counters = self._rx.counters
        self._is_closed = False

    def start(self) -> None:
        """See `Transport.start`."""
        keep_freed_memory()
        if self._is_open:
            _logger.warning(
                "node %s works without keys (insecure: true): whoever reaches port %d can read and poison the model; "
                "docs/security.md says how to make keys",
                self._name,
                self._port,
            )
        _open_transports.add(self)
        if self._serves:
            self._rx.start()
        self._tx.start()

    def published(self) -> None:
        """See `Transport.published`."""
        self._rx.published()

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        """See `Transport.defer`."""
        self._copy_waiter.defer(ready, then)

    def ask(self, request: ExchangeRequest) -> None:
        """See `Transport.ask`."""
        self._tx.ask(request)

    def take(self, wait_s: float) -> ExchangeResult | None:
        """See `Transport.take`."""
        return self._results.take(wait_s)

    def ask_for_leases(self, leasing: Leasing) -> None:
        """See `Transport.ask_for_leases`."""
        self._leases = LeaseThread(name=self._name, leasing=leasing, make_client=self._make_client)
        leasing.wake = self._leases.wake
        self._leases.start()

    def error(self) -> BaseException | None:
        """See `Transport.error`."""
        leases = None if self._leases is None else self._leases.error
        return self._rx.error or self._tx.error or leases or self._copy_waiter.error

    def close(self, timeout_s: float) -> None:
        """See `Transport.close`."""
        _open_transports.discard(self)
        self._results.close()
        self._proposals.unplug()
        if self._is_closed:
            return
        self._is_closed = True
        deadline_s = time.monotonic() + timeout_s

        def left_s() -> float:
            return max(0.0, deadline_s - time.monotonic())

        # All are stopped before one is waited for, so that each has the whole time.
        parts: dict[str, WorkerThread] = {"Tx thread": self._tx, "Rx thread": self._rx}
        if self._leases is not None:
            parts["lease thread"] = self._leases
        sockets = tuple(parts.values())
        parts["copy waiter"] = self._copy_waiter
        for part in parts.values():
            part.stop(0.0)
        # The copy waiter comes last: it may wait for a GPU, and what it would hand out finds nobody any more.
        stuck = [thread for thread, part in parts.items() if not part.stop(left_s())]
        if stuck and stuck != ["copy waiter"]:
            # A daemon, so that it does not hold up the interpreter's end.
            args = (self._context, sockets)
            threading.Thread(target=_end_later, args=args, name=f"dpwa-end-{self._name}", daemon=True).start()
        else:
            _end(self._context)
        if stuck:
            raise InternalError(f"node {self._name}: the {' and the '.join(stuck)} did not end within {timeout_s:g} s")

    @property
    def port(self) -> int:
        """The port that this transport listens on."""
        return self._port


def _end(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """End a context whose threads have ended, with what sockets one that failed may have left open."""
    context.destroy(linger=0)


def _end_later(context: zmq.Context[zmq.Socket[bytes]], threads: tuple[WorkerThread, ...]) -> None:
    """End a context when the last of its threads has come back from where it was stuck."""
    for thread in threads:
        while not thread.stop(_LONG_S):
            pass
    _end(context)


_open_transports: weakref.WeakSet[ZmqTransport] = weakref.WeakSet()


def _let_go_in_child() -> None:
    ports = {transport.port for transport in _open_transports}
    if ports:
        close_inherited(ports)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
