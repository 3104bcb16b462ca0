"""Pushes and pairs as state machines: any order of messages, lost and repeated ones, pauses, crashes and returns."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dpwa.config import ClusterConfig
from dpwa.exchange import Outcome
from dpwa.methods.base import Kind
from dpwa.node import Node
from scheduled_network import PATIENCE_S, Fate, ScheduledNetwork, ScheduledTransport
from support import VectorModel

COUNT = 3
SIZE = 2
TROUBLE = (Fate.IS_LOST, Fate.ARRIVES_TWICE)


class Exchanges(RuleBasedStateMachine):
    """Three nodes that average and do not train, so that whatever changes comes from exchanges."""

    method = ""
    most_crashes = 0

    def __init__(self) -> None:
        super().__init__()
        self.network = ScheduledNetwork()
        flow_control = {"probe_s": 0.01, "probe_max_s": 0.01}
        self.config = ClusterConfig.for_localhost(COUNT, method=self.method, flow_control=flow_control)
        self.start = np.random.default_rng(0).normal(size=(COUNT, SIZE))
        self.lives: list[tuple[Node, VectorModel, ScheduledTransport]] = []
        """Of all nodes, also of those that have ended."""
        self.nodes: list[int | None] = [self.begin(number) for number in range(COUNT)]
        """Which life each node is in; None between two."""
        self.crashes = 0
        for _ in range(6):
            self.step_all()
            self.run_all()

    def begin(self, number: int) -> int:
        """A life of a node begins."""
        name, model = f"w{number + 1}", VectorModel(self.start[number])
        transports: list[ScheduledTransport] = []

        def make(wiring) -> ScheduledTransport:
            transports.append(ScheduledTransport(self.network, name, wiring))
            return transports[0]

        node = Node(self.config, name, model, make_transport=make, monotonic_s=lambda: self.network.now_s)
        node.start()
        self.lives.append((node, model, transports[0]))
        return len(self.lives) - 1

    @property
    def living(self) -> list[tuple[Node, VectorModel, ScheduledTransport]]:
        return [self.lives[life] for life in self.nodes if life is not None]

    def step_all(self) -> None:
        for node, _, _ in self.living:
            node.step(1.0)

    def run_all(self) -> None:
        """Let everything under way end, with all messages arriving."""
        for _ in range(400):
            working = [transport for _, _, transport in self.living if transport.has_work]
            if not working:
                return
            for transport in working:
                transport.go_on(Fate.ARRIVES)
            self.network.now_s += PATIENCE_S / 20  # so that nobody waits for ever
        raise AssertionError("the exchanges do not end")

    # --- What can happen ------------------------------------------------------------------------------------------

    @rule(seed=st.integers(0, 2**32), moves=st.integers(1, 120), trouble=st.sampled_from([0.0, 0.05, 0.2, 0.5]))
    def go_on(self, seed: int, moves: int, trouble: float) -> None:
        """Nodes make steps, and their exchanges go on message by message, some of which are lost or repeated.

        Lists of such moves by hypothesis itself would be too short for the exchanges to get anywhere.
        """
        chance = random.Random(seed)
        for _ in range(moves):
            node, _, transport = chance.choice(self.living)
            if transport.has_work and chance.random() < 0.8:
                transport.go_on(chance.choice(TROUBLE) if chance.random() < trouble else Fate.ARRIVES)
            else:
                node.step(1.0)
            self.nothing_is_wrong()

    @rule(which=st.integers(0, 1000))
    def old_message(self, which: int) -> None:
        """A copy of a message that was sent long ago arrives; newer ones more often."""
        if self.network.sent:
            self.network.deliver_again(-1 - which % min(8, len(self.network.sent)))

    @rule()
    def time_passes(self) -> None:
        self.network.now_s += PATIENCE_S

    @precondition(lambda self: self.crashes < self.most_crashes and None not in self.nodes)
    @rule(number=st.integers(0, COUNT - 1))
    def crash(self, number: int) -> None:
        """A node ends in the middle of whatever it does."""
        self.ends(*self.lives[self.nodes[number]])
        self.lives[self.nodes[number]][0].close()
        self.nodes[number] = None
        self.crashes += 1

    @precondition(lambda self: None in self.nodes)
    @rule()
    def come_back(self) -> None:
        number = self.nodes.index(None)
        self.nodes[number] = self.begin(number)

    @invariant()
    def nothing_is_wrong(self) -> None:
        """What holds at any time."""

    def ends(self, node: Node, model: VectorModel, transport: ScheduledTransport) -> None:
        """A life is about to end."""

    # --- What must hold -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        for node, _, _ in self.living:
            node.method.probability = 0.0
        for _ in range(30):
            self.run_all()
            self.step_all()
            self.network.now_s += PATIENCE_S
        assert not any(node._boundary.in_flight for node, _, _ in self.living)

    def counted(self, outcome: Outcome) -> int:
        return sum(node.statistics().exchanges.get(outcome.value, 0) for node, _, _ in self.lives)

    def teardown(self) -> None:
        try:
            self.settle()
            self.check_settled()
        finally:
            for node, _, _ in self.living:
                node.close()

    def check_settled(self) -> None:
        raise NotImplementedError


class Ledger(Exchanges):
    """GoSGD: no mass is created, ever, and what is lost has been counted or was a crashed node's."""

    method = "gosgd"

    def __init__(self) -> None:
        self.gone = 0.0  # what crashed nodes held, for certain
        self.gone_perhaps = 0.0  # and what they had given away, or not taken up yet
        super().__init__()

    def ends(self, node: Node, model: VectorModel, transport: ScheduledTransport) -> None:  # noqa: ARG002
        numbers = node.statistics().method
        self.gone += numbers["mass"]
        waiting = [ended for ended in transport._exchanger.results._ended if ended.outcome is Outcome.BLENDED]
        self.gone_perhaps += numbers["mass_under_way"] + sum(ended.weight for ended in waiting)

    def held(self, key: str = "mass") -> np.ndarray:
        return np.array([node.statistics().method[key] for node, _, _ in self.living])

    def nothing_is_wrong(self) -> None:
        issued = len(self.lives) / COUNT
        assert self.held().sum() <= issued - self.gone + 1e-12

    def check_settled(self) -> None:
        self.nothing_is_wrong()
        lost = self.held("mass_lost").sum() + self.gone_perhaps
        assert self.held("mass_under_way").sum() == pytest.approx(0.0, abs=1e-12)
        assert self.held().sum() >= len(self.lives) / COUNT - self.gone - lost - 1e-9
        if self.crashes == 0 and lost == 0:
            assert self.held().sum() == pytest.approx(1.0, abs=1e-9)
            models = np.stack([model.vector for _, model, _ in self.living])
            assert self.held() @ models == pytest.approx(self.start.mean(axis=0), abs=1e-12)


class Pairs(Exchanges):
    """AD-PSGD: both sides of a pair move, or neither, or one has vanished or says that it does not know."""

    method = "adpsgd"

    def nothing_is_wrong(self) -> None:
        for _, _, transport in self.living:
            ended = [item for item in transport._exchanger.results._ended if item.outcome is Outcome.BLENDED]
            assert sum(item.kind is Kind.PAIR for item in ended) <= 1

    def check_settled(self) -> None:
        movers: dict[bytes, list[int]] = {}
        for life, (_, _, transport) in enumerate(self.lives):
            for exchange in transport.pairs:
                movers.setdefault(exchange, []).append(life)
        assert all(len(set(both)) == len(both) <= 2 for both in movers.values())
        halves = sum(len(both) == 1 for both in movers.values())
        assert halves <= self.counted(Outcome.LOST) + self.crashes
        if halves == 0 and self.crashes == 0:
            models = np.stack([model.vector for _, model, _ in self.living])
            assert models.mean(axis=0) == pytest.approx(self.start.mean(axis=0), abs=1e-13)


class LedgerWithCrashes(Ledger):
    most_crashes = 2


class PairsWithCrashes(Pairs):
    most_crashes = 2


TestLedger, TestLedgerWithCrashes = Ledger.TestCase, LedgerWithCrashes.TestCase
TestPairs, TestPairsWithCrashes = Pairs.TestCase, PairsWithCrashes.TestCase
for case in (TestLedger, TestLedgerWithCrashes, TestPairs, TestPairsWithCrashes):
    case.settings = settings(
        max_examples=60, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
