"""Nodes of one process exchanging by plain function calls: for tests and simulations, with nothing left to chance.

Pulls are made in the trainer's thread at the moment that their result is taken; pushes and pairs when they are asked
for, and the peer takes its part in the same call. With seeded nodes stepped in a fixed order, a run gives the same
result bit for bit. Service, exchange and blend are the same code as over ZeroMQ.

A pull lasts from the ask to the next step, and none waits: nodes that are stepped in turn see the peers before them
one step ahead.

Must not know: ZeroMQ. Runs in: one thread, the trainers'.
"""

from __future__ import annotations

from collections.abc import Callable

from dpwa.errors import InternalError, ModelMismatch, PeerUnreachable
from dpwa.exchange.client import Pulled
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.messages import Lease, Meet, Message, Mismatch, Offer, Propose, PullRequest, Settle
from dpwa.exchange.service import Request, Service
from dpwa.exchange.slices import Slice
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import NO_EXCHANGE, ExchangeRequest, ExchangeResult
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.staging import Staging, encode_chunk
from dpwa.transport.interface import Ends
from dpwa.transport.rx import RxCounters

__all__ = ["InMemoryNetwork", "InMemoryTransport"]


class InMemoryNetwork:
    """Connects the nodes of one process. A node that is not on it is unreachable."""

    def __init__(self) -> None:
        self.patience_s = 0.0
        self._transports: dict[str, InMemoryTransport] = {}

    def join(self, name: str, transport: InMemoryTransport) -> None:
        """Make a node reachable."""
        self._transports[name] = transport

    def leave(self, name: str) -> None:
        """Make a node unreachable."""
        self._transports.pop(name, None)

    def can_share(self, peer: str) -> bool:  # noqa: ARG002
        """See `Client.can_share`: all memory is one here."""
        return False

    def pull(
        self,
        peer: str,
        request: PullRequest,
        staging: Staging,
        part: Slice,
        within_s: float | None = None,  # noqa: ARG002
    ) -> Pulled:
        """See `Client.pull`; the network is every node's client."""
        return self._find(peer).serve(request, staging, part)

    def know(self, peer: str, host: str, port: int, teller: str = "") -> None:
        """See `Client.know`: names are enough here."""

    def forget(self, peer: str) -> None:
        """See `Client.forget`."""

    def request(self, peer: str, message: Propose | Settle | Meet | Lease) -> Message:
        """See `Client.request`."""
        answer = self._find(peer).answer(message)
        if isinstance(answer, Mismatch):
            raise ModelMismatch(peer, "trains another model. All nodes must build the same model")
        return answer

    def pause(self, pause_s: float) -> None:
        """See `Client.pause`: nothing changes while one waits."""

    def _find(self, peer: str) -> InMemoryTransport:
        transport = self._transports.get(peer)
        if transport is None:
            raise PeerUnreachable(peer, "not on the in-memory network")
        return transport


class InMemoryTransport:
    """One node's place on the network. See `Transport` for the methods.

    Args:
        network: the network to join.
        name: this node.
        wiring: what to serve and how to exchange.
    """

    def __init__(self, network: InMemoryNetwork, name: str, wiring: Ends) -> None:
        self.counters = RxCounters()
        self.shares_memory = False
        self._network = network
        self._name = name
        self._service: Service = wiring.service
        self._exchanger = wiring.exchanger
        self._pending: ExchangeRequest | None = None
        self._leasing: Leasing | None = None

    def start(self) -> None:
        """See `Transport.start`."""
        self._network.join(self._name, self)
        self.published()

    def published(self) -> None:
        """See `Transport.published`. No pull can wait here, so every step publishes: nothing served is stale."""
        self._service.wanted = True

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        """See `Transport.defer`. There is no other thread: the trainer waits."""
        ready()
        then()

    def ask(self, request: ExchangeRequest) -> None:
        """See `Transport.ask`. A pull is made when it is taken: it lasts exactly from the ask to there."""
        if request.plan.kind in (ExchangeKind.PUSH, ExchangeKind.PAIR) and not request.joining:
            self._exchanger.perform(request, self._network)
        else:
            self._pending = request

    def take(self, wait_s: float) -> ExchangeResult | None:  # noqa: ARG002  (there is nothing to wait for)
        """See `Transport.take`."""
        request, self._pending = self._pending, None
        if request is not None:
            self._exchanger.perform(request, self._network)
        self._exchanger.work(self._network)
        if self._leasing is not None:
            self._leasing.work(self._network)
        return self._exchanger.context.results.take(0.0)

    def ask_for_leases(self, leasing: Leasing) -> None:
        """See `Transport.ask_for_leases`. They are asked for at steps, and while the trainer waits for a block."""
        self._leasing = leasing
        leasing.pump = self._pump

    def _pump(self) -> None:
        if self._leasing is not None:
            self._leasing.work(self._network)

    def error(self) -> BaseException | None:
        """See `Transport.error`: there is no background thread."""
        return None

    def close(self, timeout_s: float) -> None:  # noqa: ARG002
        """See `Transport.close`."""
        self._leasing = None
        self._network.leave(self._name)

    def answer(self, request: Propose | Settle | Meet | Lease) -> Message:
        """Answer a peer's proposal or question; what was accepted is fetched at once."""
        answer, _ = self._answered(request)
        self._exchanger.work(self._network)
        return answer

    def serve(self, pull: PullRequest, staging: Staging, part: Slice) -> Pulled:
        """Answer a peer's pull."""
        answer, snapshot = self._answered(pull)
        if isinstance(answer, Mismatch):
            return Pulled(answer, peer_layout=self._service.mismatch_body().decode())
        if not isinstance(answer, Offer) or snapshot is None:
            self.counters.refused += 1
            return Pulled(answer)
        staging.begin(whole=part.is_whole)
        received = 0
        for index in part.chunks():
            first_byte = index * pull.chunk_bytes
            stop_byte = min(first_byte + pull.chunk_bytes, len(snapshot.memory))
            wanted = self._service.codec_for(pull, snapshot)
            codec, body = encode_chunk(self._service.layout, snapshot.memory, first_byte, stop_byte, wanted)
            staging.accept(first_byte, stop_byte, memoryview(body), codec)
            received += len(body)
        self.counters.served += 1
        self.counters.bytes_out += received
        if pull.exchange_id != NO_EXCHANGE:
            self._service.proposals.fetched(pull.exchange_id)
        return Pulled(answer, received, codec=self._service.codec_for(pull, snapshot))

    def _answered(self, request: Request) -> tuple[Message, Snapshot | None]:
        answered = self._service.answer(request, now_s=0.0, may_wait=False)
        if answered is None:
            raise InternalError("a service that may not wait must answer")
        return answered
