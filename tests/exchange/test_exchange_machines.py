"""Pushes and pairs as state machines: any order of messages, lost and repeated ones, pauses, crashes and returns."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scheduled_network import PATIENCE_S, Fate, ScheduledCluster

from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import Outcome

pytestmark = pytest.mark.heavy

COUNT = 3
START = np.array([[1.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 100.0]])
TROUBLE = (Fate.IS_LOST, Fate.ARRIVES_TWICE)


class Exchanges(RuleBasedStateMachine):
    """Three nodes that average and do not train, so that whatever changes comes from exchanges."""

    method = ""
    codec = "auto"
    most_crashes = 0

    def __init__(self) -> None:
        super().__init__()
        self.crashes = 0
        self.cluster: ScheduledCluster | None = None

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        # With a bound on distances, a node that comes back to one peer alone may refuse that one's model for ever.
        self.cluster = ScheduledCluster(START, method=self.method, codec=self.codec, seed=seed, guard="finite")

    # --- What can happen ------------------------------------------------------------------------------------------

    @rule(seed=st.integers(0, 2**32), moves=st.integers(1, 150), trouble=st.sampled_from([0.0, 0.05, 0.2, 0.5]))
    def go_on(self, seed: int, moves: int, trouble: float) -> None:
        """Nodes make steps, and their exchanges go on message by message, some of which are lost or repeated.

        Lists of such moves by hypothesis itself would be too short for the exchanges to get anywhere.
        """
        chance = random.Random(seed)
        for _ in range(moves):
            life = chance.choice(self.cluster.living)
            if life.transport.has_work and chance.random() < 0.8:
                life.transport.go_on(chance.choice(TROUBLE) if chance.random() < trouble else Fate.ARRIVES)
            else:
                life.node.step(1.0)
            self.check()

    @rule(which=st.integers(1, 8))
    def old_message(self, which: int) -> None:
        """A copy of a message that was sent some time ago arrives."""
        if len(self.cluster.network.sent) >= which:
            self.cluster.network.deliver_again(-which)

    @rule()
    def time_passes(self) -> None:
        self.cluster.network.now_s += PATIENCE_S

    @precondition(lambda self: self.crashes < self.most_crashes and None not in self.cluster.present)
    @rule(number=st.integers(0, COUNT - 1))
    def crash(self, number: int) -> None:
        """A node ends in the middle of whatever it does."""
        self.note_crash(number)
        self.cluster.end(number)
        self.crashes += 1

    @precondition(lambda self: None in self.cluster.present)
    @rule()
    def come_back(self) -> None:
        self.cluster.begin(self.cluster.present.index(None))

    # --- What must hold -------------------------------------------------------------------------------------------

    def note_crash(self, number: int) -> None:
        """A node is about to end."""

    def check(self) -> None:
        """What holds at any time."""

    def check_settled(self) -> None:
        """What holds when nothing is under way."""

    def teardown(self) -> None:
        if self.cluster is None:
            return
        try:
            self.cluster.settle()
            self.check()
            self.check_settled()
        finally:
            self.cluster.close()


class Ledger(Exchanges):
    """GoSGD: no mass is created, ever, and what is lost has been counted or was a crashed node's."""

    method = "gosgd"

    def __init__(self) -> None:
        super().__init__()
        self.gone = 0.0  # what crashed nodes held, for certain
        self.gone_perhaps = 0.0  # and what they had given away, or not taken up yet

    def note_crash(self, number: int) -> None:
        life = self.cluster.present[number]
        numbers = life.node.statistics().method
        self.gone += numbers["mass"]
        pushes = [ended for ended in life.transport.waiting if ended.kind is ExchangeKind.PUSH]
        waiting = [ended for ended in pushes if ended.request is None]
        self.gone_perhaps += numbers["mass_under_way"] + sum(ended.weight for ended in waiting)

    @property
    def issued(self) -> float:
        """What all lives began with, less what ended with some of them."""
        return len(self.cluster.lives) / COUNT - self.gone

    def check(self) -> None:
        assert self.cluster.held().sum() <= self.issued + 1e-12

    def check_settled(self) -> None:
        held, lost = self.cluster.held(), self.cluster.held("mass_lost").sum()
        assert self.cluster.held("mass_under_way") == pytest.approx(0.0, abs=1e-12)
        brought = (len(self.cluster.lives) - COUNT) / COUNT  # a node that comes back late enough has nothing at first
        assert held.sum() >= self.issued - brought - lost - self.gone_perhaps - 1e-9
        if self.crashes == 0 and lost == 0:
            assert held.sum() == pytest.approx(1.0, abs=1e-9)
            assert held @ self.cluster.vectors() == pytest.approx(START.mean(axis=0), abs=1e-11)


class Pairs(Exchanges):
    """AD-PSGD: both sides of a pair move, or neither, or one has crashed, or says that it does not know."""

    method = "adpsgd"

    def check(self) -> None:
        for life in self.cluster.living:
            pairs = [ended for ended in life.transport.waiting if ended.kind is ExchangeKind.PAIR]
            assert sum(ended.outcome is Outcome.BLENDED for ended in pairs) <= 1

    def check_settled(self) -> None:
        movers: dict[bytes, list[int]] = {}
        for number, life in enumerate(self.cluster.lives):
            for exchange in life.transport.pairs:
                movers.setdefault(exchange, []).append(number)
        assert all(len(set(both)) == len(both) <= 2 for both in movers.values())
        halves = sum(len(both) == 1 for both in movers.values())
        assert halves <= self.cluster.counted(Outcome.LOST) + self.crashes
        if halves == 0 and self.crashes == 0:
            assert self.cluster.vectors().mean(axis=0) == pytest.approx(START.mean(axis=0), abs=1e-11)


class LedgerWithCrashes(Ledger):
    most_crashes = 2


class PairsWithCrashes(Pairs):
    most_crashes = 2


class LedgerRounded(Ledger):
    codec = "int8"


class PairsRounded(Pairs):
    codec = "int8"


def collected(machine: type[Exchanges], examples: int = 40) -> type:
    """The machine as what pytest collects."""
    machine.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=10, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return machine.TestCase


TestLedger, TestLedgerWithCrashes = collected(Ledger), collected(LedgerWithCrashes)
TestPairs, TestPairsWithCrashes = collected(Pairs), collected(PairsWithCrashes)
TestLedgerRounded, TestPairsRounded = collected(LedgerRounded, 20), collected(PairsRounded, 20)
