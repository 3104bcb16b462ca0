"""What a node needs of a transport. `zeromq.py` and `in_memory.py` have it; one conformance suite tests both.

Runs in: every method is called by the trainer's thread; `published` and `ask` also by what was
deferred.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dpwa.exchange.exchanger import Exchanger
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.service import Service
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult
from dpwa.transport.rx import RxCounters

__all__ = ["Ends", "MakeTransport", "Transport"]


@dataclass(frozen=True)
class Ends:
    """The two ends that a node plugs into its transport.

    Attributes:
        service: answers the peers.
        exchanger: makes this node's exchanges.
    """

    service: Service
    exchanger: Exchanger


class Transport(Protocol):
    """Serves the node's snapshots and runs its exchanges."""

    counters: RxCounters
    """What the serving side did."""
    shares_memory: bool
    """Whether peers may read snapshots from shared memory."""

    def start(self) -> None:
        """Begin to serve.

        Raises:
            ConfigError: the node's address cannot be listened on.
        """

    def published(self) -> None:
        """A new snapshot stands in the service."""

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        """Have `ready` called, which blocks until a copy is there, and then `then`; in the order of the calls.

        The trainer does not wait, and `then` may run in another thread. What either raises is a background error.
        """

    def ask(self, request: ExchangeRequest) -> None:
        """Have one exchange made; never waits. At most one is under way.

        Of a push that the peer accepts the end comes when the peer has taken it.
        """

    def take(self, wait_s: float) -> ExchangeResult | None:
        """The result of an exchange that has ended, this node's or a peer's; None if none has.

        Args:
            wait_s: the longest wait for one.
        """

    def ask_for_leases(self, leasing: Leasing) -> None:
        """From now on, ask peers for blocks of data, and tell them of those that are trained.

        Args:
            leasing: says what to ask, and when.
        """

    def error(self) -> BaseException | None:
        """What ended a background thread, if one has ended by itself."""

    def close(self, timeout_s: float) -> None:
        """End everything. May be called in any state and any number of times.

        Raises:
            InternalError: something did not end in time.
        """


MakeTransport = Callable[[Ends], Transport]
