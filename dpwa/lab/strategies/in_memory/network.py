"""The links between nodes in virtual time: an exchange takes as long as its latency and its bytes say.

A pull or a gathering reads the peer's snapshot when the request has arrived there, so that what comes back is as old
as the way home is long. A push lands when its bytes have arrived, a pair is made when they have gone both ways. A
gathering is made when every neighbour that still trains has published its round, or when the plan's wait is over.
Whoever asks in vain, because a message was lost, learns of it when the cluster's `timeout_ms` is over.

Runs in: the training thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dpwa.errors import ConfigError
from dpwa.exchange.service import Service
from dpwa.lab.strategies.in_memory.virtual_time import VirtualTime
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.staging import encoded_chunk_bytes
from dpwa.snapshot.state import Codec
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport
from dpwa.transport.interface import Ends

__all__ = ["Link", "VirtualNetwork", "VirtualTransport"]


@dataclass(frozen=True)
class Link:
    """Every way from one node to another.

    Attributes:
        latency_s: of one message, one way.
        bytes_per_s: the rate at which a model comes over it; infinite by default.
        codec: how models are encoded.
        wait_s: how long a step waits for its exchange, whatever the method says: the cluster file's `wait_ms`.
        timeout_s: how long a model may be on its way: the cluster file's `timeout_ms`.
    """

    latency_s: float
    bytes_per_s: float = math.inf
    codec: Codec = Codec.RAW
    wait_s: float = 0.0
    timeout_s: float = math.inf

    def check(self, layout: Layout) -> None:
        """Whether a whole model gets across.

        Raises:
            ConfigError: it does not within the timeout.
        """
        takes_s = 2 * self.latency_s + self.transfer_s(layout, 1.0)
        if takes_s > self.timeout_s:
            raise ConfigError(
                f"a model takes {takes_s:.3g} s over the virtual link, and timeout_ms ends an exchange after "
                f"{self.timeout_s:g} s; in memory nothing is made smaller for a slow link: set a longer timeout_ms, a "
                "codec, or a faster link in virtual"
            )

    def transfer_s(self, layout: Layout, fraction: float) -> float:
        """How long a share of a model is on its way, without the latency."""
        return fraction * encoded_chunk_bytes(layout, 0, layout.total_bytes, self.codec) / self.bytes_per_s


class VirtualNetwork(InMemoryNetwork):
    """Connects the nodes of one trial.

    Args:
        time: the trial's.
        link: between any two nodes.

    Attributes:
        waited_s: how long whoever asks at the moment has waited in vain.
    """

    def __init__(self, time: VirtualTime, link: Link) -> None:
        super().__init__()
        self.time = time
        self.link = link
        self.waited_s = 0.0
        self._services: dict[str, Service] = {}
        self._gathering: list[VirtualTransport] = []

    def appear(self, name: str, service: Service) -> None:
        """A node serves from now on: its rounds can be seen."""
        self._services[name] = service

    def is_there(self, name: str) -> bool:
        """Whether a node serves."""
        return name in self._services

    def leave(self, name: str) -> None:
        """See `InMemoryNetwork.leave`."""
        super().leave(name)
        self._services.pop(name, None)
        self._look_again()

    def pause(self, pause_s: float) -> None:
        """See `Client.pause`: virtual time stands still meanwhile, so that the result has to come so much later."""
        self.waited_s += pause_s

    def published(self) -> None:
        """A node has a new snapshot, or will have none any more."""
        if self._gathering:
            self._look_again()

    def gathers(self, transport: VirtualTransport) -> None:
        """A node waits for its neighbours' snapshots of a round."""
        self._gathering.append(transport)
        self._look_again()

    def _look_again(self) -> None:
        ready = [transport for transport in self._gathering if transport.has_all_of_round(self._services)]
        self._gathering = [transport for transport in self._gathering if transport not in ready]
        for transport in ready:
            transport.round_is_there()


class VirtualTransport(InMemoryTransport):
    """One node's place on a virtual network. See `Transport` for the methods.

    Args:
        network: the network to join.
        name: this node.
        wiring: what to serve and how to exchange.
    """

    def __init__(self, network: VirtualNetwork, name: str, wiring: Ends) -> None:
        super().__init__(network, name, wiring)
        network.link.check(wiring.service.layout)
        self._virtual = network
        self._asked: ExchangeRequest | None = None
        self._asks = 0  # plans name an exchange by its number: with the request they would keep its snapshot, too
        self._wait_s = 0.0  # how long a step may wait for it
        self._here_s = -math.inf  # when the result of the last exchange is here; infinite: not known yet
        self._on_arrival: Callable[[], None] | None = None

    def start(self) -> None:
        """See `Transport.start`."""
        self._virtual.appear(self._name, self._service)
        super().start()

    def published(self) -> None:
        """See `Transport.published`."""
        super().published()
        self._virtual.published()

    def ask(self, request: ExchangeRequest) -> None:
        """See `Transport.ask`. Virtual time makes the exchange."""
        time, link = self._virtual.time, self._virtual.link
        fraction = 1.0 if request.joining else request.plan.fraction
        kind = ExchangeKind.PULL if request.joining else request.plan.kind
        transfer_s = 0.0 if kind is None else link.transfer_s(self._service.layout, fraction)
        self._asked, self._here_s = request, math.inf
        self._wait_s = max(link.wait_s, request.plan.wait_s)
        self._asks += 1
        if kind is ExchangeKind.GATHER:
            time.after(max(link.latency_s, request.plan.wait_s), partial(self._perform, self._asks, transfer_s))
            time.after(link.latency_s, partial(self._virtual.gathers, self))
        elif kind is ExchangeKind.PULL:
            time.after(link.latency_s, partial(self._perform, self._asks, link.latency_s + transfer_s))
        else:
            ways = 1 if kind is ExchangeKind.PUSH else 2
            time.after(ways * link.latency_s + transfer_s, partial(self._perform, self._asks, 0.0))

    def take(self, wait_s: float) -> ExchangeResult | None:  # noqa: ARG002 - the step has waited before it was made
        """See `Transport.take`."""
        if self._here_s > self._virtual.time.now_s:
            return None
        self._exchanger.work(self._virtual)
        return self._exchanger.context.results.take(0.0)

    # --- Waiting ----------------------------------------------------------------------------------------------------

    @property
    def longest_wait_s(self) -> float:
        """How long the step that is due may wait for the exchange under way; 0 if there is none."""
        return self._wait_s if self._here_s > self._virtual.time.now_s else 0.0

    def on_arrival(self, action: Callable[[], None]) -> None:
        """Have something called as soon as the exchange under way is over: once, or never if it takes for ever."""
        self._on_arrival = action
        if self._here_s < math.inf:
            self._plan_arrival()

    # --- Rounds -----------------------------------------------------------------------------------------------------

    def has_all_of_round(self, services: dict[str, Service]) -> bool:
        """Whether every neighbour that is there and still trains has published the round that this node gathers."""
        request = self._asked
        if request is None:
            return True
        there = [services[peer].serving for peer in request.plan.peers or {} if peer in services]
        snapshots = [serving.snapshot for serving in there if not serving.finished]
        wanted = request.reference.state.round
        return all(snapshot is not None and snapshot.state.round >= wanted for snapshot in snapshots)

    def round_is_there(self) -> None:
        """All neighbours have published it."""
        link = self._virtual.link
        self._perform(self._asks, link.latency_s + link.transfer_s(self._service.layout, 1.0))

    def _perform(self, ask: int, way_home_s: float) -> None:
        """Make the exchange at this moment; its result is here later by the way home."""
        request = self._asked
        if request is None or ask != self._asks or not self._virtual.is_there(self._name):
            return  # it was made already, or this node is no more
        self._asked = None
        self._virtual.waited_s = 0.0
        self._exchanger.perform(request, self._virtual)
        # A gathering asks again and again, and its plan says how long that may take.
        in_vain_s = 0.0 if request.plan.kind is ExchangeKind.GATHER else self._virtual.waited_s
        self._here_s = self._virtual.time.now_s + way_home_s + in_vain_s
        if self._on_arrival is not None:
            self._plan_arrival()

    def _plan_arrival(self) -> None:
        action, self._on_arrival = self._on_arrival, None
        if action is not None:
            self._virtual.time.after(max(0.0, self._here_s - self._virtual.time.now_s), action)
