"""Nodes whose messages move only when a test says so: any order, with losses, repetitions and crashes in between.

Each node's exchanges run in a thread of their own, as over ZeroMQ; but it stops before each message and goes on when it
is told to, so that one thread runs at a time and a run is repeated exactly. Service, exchange and blend are dpwa's own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import NodeClosed, PeerTimeout, PeerUnreachable
from dpwa.exchange.client import Pulled
from dpwa.exchange.messages import Message, Offer, Propose, PullRequest, Settle
from dpwa.exchange.slices import Slice
from dpwa.methods.exchange import NO_EXCHANGE, ExchangeKind, ExchangeRequest, ExchangeResult, Outcome
from dpwa.node.node import Node
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.staging import Staging, encode_chunk
from dpwa.transport.interface import Ends
from dpwa.transport.rx import RxCounters
from support import VectorModel

PATIENCE_S = 1.0
DEADLINE_S = 10.0


class Fate(Enum):
    """What becomes of the message that a node is about to send or to get."""

    ARRIVES = "arrives"
    IS_LOST = "is lost"
    ARRIVES_TWICE = "arrives twice"


class ScheduledNetwork:
    """Who can be reached, the time, and copies of all messages that were ever sent."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.transports: dict[str, ScheduledTransport] = {}
        self.sent: list[tuple[str, Propose | Settle]] = []

    def find(self, peer: str) -> ScheduledTransport:
        """The transport of a peer, as a message reaches it."""
        if peer not in self.transports:
            raise PeerUnreachable(peer, "not there")
        return self.transports[peer]

    def deliver_again(self, index: int) -> None:
        """A copy of an old message arrives, and its answer is heard by nobody."""
        peer, message = self.sent[index]
        if peer in self.transports:
            self.transports[peer].serve(message, may_wait=False)


class ScheduledTransport:
    """One node's transport, and its client. See `Transport` and `Client` for the methods."""

    patience_s = PATIENCE_S

    def __init__(self, network: ScheduledNetwork, name: str, wiring: Ends) -> None:
        self.counters = RxCounters()
        self.shares_memory = False
        self.pairs: list[bytes] = []
        """Ids of the pairs that the trainer has taken to apply. (The exchanges themselves would hold buffers.)"""
        self._network = network
        self._name = name
        self.service = wiring.service
        self._exchanger = wiring.exchanger
        self._asks: deque[ExchangeRequest] = deque()
        self._is_woken = False
        self._is_talking = False
        self._is_closing = False
        self._fate = Fate.ARRIVES
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"dpwa-scheduled-{name}", daemon=True)
        self.service.proposals.wake = self._wake

    # --- What the test does ---------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether something happens when the node's exchanges go on now."""
        due_s = self._exchanger.next_deadline_s()
        is_due = due_s is not None and due_s <= self._network.now_s
        return self._is_talking or bool(self._asks) or self._is_woken or is_due

    @property
    def waiting(self) -> list[ExchangeResult]:
        """Ended exchanges that the trainer has not taken yet."""
        return list(self._exchanger.context.results._ended)

    def go_on(self, fate: Fate) -> None:
        """Let the exchanges go on up to the next message, which has this fate if it is the one they have stopped at."""
        self._fate = fate
        self._go.release()
        assert self._stopped.acquire(timeout=DEADLINE_S), f"the exchanges of {self._name} hang"

    def serve(
        self, request: Propose | Settle | PullRequest, *, may_wait: bool
    ) -> tuple[Message, Snapshot | None] | None:
        """What the serving side answers."""
        return self.service.answer(request, now_s=self._network.now_s, may_wait=may_wait)

    # --- Transport: the trainer -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._network.transports[self._name] = self
        self._thread.start()
        self.published()

    def published(self) -> None:
        self.service.wanted = True

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        ready()
        then()

    def ask(self, request: ExchangeRequest) -> None:
        self._asks.append(request)

    def take(self, wait_s: float) -> ExchangeResult | None:  # noqa: ARG002 - time does not pass by itself
        result = self._exchanger.context.results.take(0.0)
        if result is not None and result.kind is ExchangeKind.PAIR and result.outcome is Outcome.BLENDED:
            self.pairs.append(result.exchange_id)
        return result

    def error(self) -> BaseException | None:
        return None

    def close(self, timeout_s: float) -> None:
        self._network.transports.pop(self._name, None)
        self._is_closing = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # --- The thread of the exchanges ------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._is_woken = True

    def _run(self) -> None:
        self._go.acquire()
        try:
            while not self._is_closing:
                self._is_talking, self._is_woken = True, False
                if self._asks:
                    self._exchanger.perform(self._asks.popleft(), self)
                self._exchanger.work(self)
                self._is_talking = False
                self._stop()
        except NodeClosed:
            pass
        finally:
            self._stopped.release()

    def _stop(self) -> Fate:
        """Wait until the test lets the exchanges go on."""
        self._stopped.release()
        self._go.acquire()
        if self._is_closing:
            raise NodeClosed("closed meanwhile")
        return self._fate

    # --- Client ---------------------------------------------------------------------------------------------------

    def can_share(self, peer: str) -> bool:  # noqa: ARG002
        return False

    def pause(self, pause_s: float) -> None:
        self._network.now_s += pause_s
        self._stop()

    def request(self, peer: str, message: Propose | Settle) -> Message:
        fate, began_s = self._stop(), self._network.now_s
        self._lose_if(fate, peer)
        self._network.sent.append((peer, message))
        while (answered := self._network.find(peer).serve(message, may_wait=self._waits(began_s))) is None:
            self._lose_if(self._stop(), peer)
        if fate is Fate.ARRIVES_TWICE:
            self._network.find(peer).serve(message, may_wait=False)
        self._lose_if(self._stop(), peer)
        return answered[0]

    def pull(
        self,
        peer: str,
        request: PullRequest,
        staging: Staging,
        part: Slice,
        within_s: float | None = None,  # noqa: ARG002
    ) -> Pulled:
        self._lose_if(self._stop(), peer)
        answered = self._network.find(peer).serve(request, may_wait=False)
        assert answered is not None
        answer, snapshot = answered
        self._lose_if(self._stop(), peer)
        if not isinstance(answer, Offer) or snapshot is None:
            return Pulled(answer)
        staging.begin(whole=part.is_whole)
        for index in part.chunks():
            first_byte = index * request.chunk_bytes
            stop_byte = min(first_byte + request.chunk_bytes, len(snapshot.memory))
            wanted = self._network.find(peer).service.codec_for(request, snapshot)
            codec, body = encode_chunk(staging.layout, snapshot.memory, first_byte, stop_byte, wanted)
            staging.accept(first_byte, stop_byte, memoryview(body), codec)
        # The peer hears that all of it has come, or not; the values are here in any case.
        if self._stop() is not Fate.IS_LOST and peer in self._network.transports and request.exchange_id != NO_EXCHANGE:
            self._network.transports[peer].service.proposals.fetched(request.exchange_id)
            self._stop()  # this thread may be held up before it does anything with them
        return Pulled(answer, len(snapshot.memory))

    def _waits(self, began_s: float) -> bool:
        return self._network.now_s < began_s + PATIENCE_S / 2

    def _lose_if(self, fate: Fate, peer: str) -> None:
        if fate is Fate.IS_LOST:
            self._network.now_s += PATIENCE_S
            raise PeerTimeout(peer, "lost")


@dataclass(frozen=True)
class Life:
    """One life of a node."""

    node: Node
    model: VectorModel
    transport: ScheduledTransport

    def has_begun_to_wait(self) -> bool:
        """Whether the trainer has an exchange under way."""
        return self.node._boundary.in_flight


class ScheduledCluster:
    """Nodes on a scheduled network, which have joined.

    Args:
        start: their models, shape (nodes, size).
        settings: keys of the cluster file.
    """

    def __init__(self, start: np.ndarray, **settings: object) -> None:
        self.start = start
        self.network = ScheduledNetwork()
        flow_control = {"probe_s": 0.01, "probe_max_s": 0.01}
        self.config = ClusterConfig.for_localhost(len(start), flow_control=flow_control, **settings)
        self.lives: list[Life] = []
        """Of all nodes, also of those that have ended."""
        self.present: list[Life | None] = []
        """The life that each node is in; None between two."""
        for number in range(len(start)):
            self.present.append(None)
            self.begin(number)
        for _ in range(6):
            self.step_all()
            self.run_all()
        self.settle()

    @property
    def living(self) -> list[Life]:
        """The nodes that are there."""
        return [life for life in self.present if life is not None]

    def begin(self, number: int) -> Life:
        """A life of a node begins."""
        name, model = f"w{number + 1}", VectorModel(self.start[number])
        transports: list[ScheduledTransport] = []

        def make(wiring: Ends) -> ScheduledTransport:
            transports.append(ScheduledTransport(self.network, name, wiring))
            return transports[0]

        node = Node(self.config, name, model, make_transport=make, monotonic_s=lambda: self.network.now_s)
        node.start()
        life = Life(node, model, transports[0])
        self.lives.append(life)
        self.present[number] = life
        return life

    def end(self, number: int) -> None:
        """A node's life ends, in the middle of whatever it does."""
        life = self.present[number]
        assert life is not None
        life.node.close()
        self.present[number] = None

    def step_all(self) -> None:
        """Each node makes a step."""
        for life in self.living:
            life.node.step(1.0)

    def run_all(self) -> None:
        """Let everything under way end that the trainers need not end; all messages arrive."""
        for _ in range(400):
            working = [life.transport for life in self.living if life.transport.has_work]
            if not working:
                return
            for transport in working:
                transport.go_on(Fate.ARRIVES)
            self.network.now_s += PATIENCE_S / 20  # so that nobody waits for ever
        raise AssertionError("the exchanges do not end")

    def set_probability(self, probability: float) -> None:
        """How often the nodes begin an exchange."""
        for life in self.living:
            life.node.method.probability = probability

    def settle(self) -> None:
        """Step, and let everything end, until nothing is under way; no exchange is begun."""
        before = [life.node.method.probability for life in self.living]
        self.set_probability(0.0)
        for _ in range(30):
            self.run_all()
            self.step_all()
            self.network.now_s += PATIENCE_S
        assert not any(life.has_begun_to_wait() for life in self.living)
        for life, probability in zip(self.living, before, strict=True):
            life.node.method.probability = probability

    def close(self) -> None:
        """End all nodes."""
        for life in self.living:
            life.node.close()

    # --- What can be seen -----------------------------------------------------------------------------------------

    def vectors(self) -> np.ndarray:
        """The models of those that are there, shape (nodes, size)."""
        return np.stack([life.model.vector for life in self.living])

    def held(self, key: str = "mass") -> np.ndarray:
        """A number of the method of those that are there, shape (nodes,)."""
        return np.array([life.node.statistics().method[key] for life in self.living])

    def counted(self, outcome: Outcome) -> int:
        """How many exchanges of all lives have ended so."""
        return sum(life.node.statistics().exchanges.get(outcome.value, 0) for life in self.lives)
