"""What a node needs of a transport. `zeromq.py` and `in_memory.py` have it; one conformance suite tests both.

Must not know: how. Runs in: every method is called by the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dpwa.exchange import Ask, Exchange, Exchanger
from dpwa.transport.rx import RxCounters
from dpwa.transport.service import Service

__all__ = ["MakeTransport", "Transport", "Wiring"]


@dataclass(frozen=True)
class Wiring:
    """The two ends that a node plugs into its transport.

    Attributes:
        service: answers the peers.
        exchanger: makes this node's own exchanges.
    """

    service: Service
    exchanger: Exchanger


class Transport(Protocol):
    """Serves the node's snapshots and runs its exchanges."""

    counters: RxCounters
    """What the serving side did."""

    def start(self) -> None:
        """Begin to serve.

        Raises:
            ConfigError: the node's address cannot be listened on.
        """

    def published(self) -> None:
        """A new snapshot stands in the service."""

    def ask(self, ask: Ask) -> None:
        """Have one exchange made; never waits. At most one is under way."""

    def take(self, wait_s: float) -> Exchange | None:
        """The finished exchange, waiting at most so long for it; None if it is not finished."""

    def error(self) -> BaseException | None:
        """What ended a background thread, if one has ended by itself."""

    def close(self, timeout_s: float) -> None:
        """End everything. May be called in any state and any number of times.

        Raises:
            InternalError: something did not end in time.
        """


MakeTransport = Callable[[Wiring], Transport]
