"""Any pattern of restarts, losses and nodes out of reach: no trained model takes anything of an untrained one.

All trained models are at 1.0 and each new life begins at 100.0, without training, so that whatever leaves 1.0 shows.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scheduled_network import PATIENCE_S, Fate, ScheduledCluster

pytestmark = pytest.mark.heavy

COUNT = 4
TRAINED, UNTRAINED = 1.0, 100.0
FIRST_CLOCK = 250
MOST_MOVES = 250
"""Steps and messages in one example: a new life stays more than 50 updates behind the survivor whatever happens."""


class Restarts(RuleBasedStateMachine):
    """The first node survives; the others end and begin, and can be out of reach."""

    method = ""

    def __init__(self) -> None:
        super().__init__()
        self.cluster: ScheduledCluster | None = None
        self.moves = 0
        self.hidden: dict[str, object] = {}

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.cluster = ScheduledCluster(np.full((COUNT, 2), TRAINED), method=self.method, seed=seed)
        for life in self.cluster.living:
            boundary = life.node._boundary
            boundary.state = replace(boundary.state, clock=float(FIRST_CLOCK))
        self.cluster.step_all()
        self.cluster.start[:] = UNTRAINED

    # --- What can happen ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.moves < MOST_MOVES)
    @rule(seed=st.integers(0, 2**32), moves=st.integers(1, 60), trouble=st.sampled_from([0.0, 0.1, 0.4]))
    def go_on(self, seed: int, moves: int, trouble: float) -> None:
        """Nodes make steps, and their exchanges go on message by message, some of which are lost or repeated."""
        chance = random.Random(seed)
        for _ in range(moves):
            self.moves += 1
            life = chance.choice(self.cluster.living)
            if life.transport.has_work and chance.random() < 0.8:
                fates = (Fate.IS_LOST, Fate.ARRIVES_TWICE)
                life.transport.go_on(chance.choice(fates) if chance.random() < trouble else Fate.ARRIVES)
            else:
                life.node.step(1.0)
            self.check()

    @rule(number=st.integers(1, COUNT - 1))
    def crash(self, number: int) -> None:
        if self.cluster.present[number] is not None:
            self.hidden.pop(f"w{number + 1}", None)
            self.cluster.end(number)

    @precondition(lambda self: None in self.cluster.present)
    @rule()
    def come_back(self) -> None:
        self.cluster.begin(self.cluster.present.index(None))

    @rule(number=st.integers(0, COUNT - 1))
    def out_of_reach(self, number: int) -> None:
        name = f"w{number + 1}"
        if name in self.cluster.network.transports:
            self.hidden[name] = self.cluster.network.transports.pop(name)

    @rule()
    def all_in_reach(self) -> None:
        self.cluster.network.transports.update(self.hidden)
        self.hidden.clear()

    @rule()
    def time_passes(self) -> None:
        self.cluster.network.now_s += PATIENCE_S

    # --- What must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nobody has taken a share: a model is a trained or an untrained one, and the survivor's a trained one."""
        vectors = self.cluster.vectors()
        assert (np.isclose(vectors, TRAINED, atol=1e-9) | np.isclose(vectors, UNTRAINED, atol=1e-9)).all()
        assert np.isclose(vectors[0], TRAINED, atol=1e-9).all()

    def teardown(self) -> None:
        if self.cluster is None:
            return
        try:
            self.all_in_reach()
            while None in self.cluster.present:
                self.come_back()
            for _ in range(40):
                self.cluster.run_all()
                self.cluster.step_all()
                self.cluster.network.now_s += PATIENCE_S
                self.check()
            np.testing.assert_allclose(self.cluster.vectors(), TRAINED, atol=1e-9)
        finally:
            self.cluster.close()


class RestartsOfPull(Restarts):
    method = "pull"


class RestartsOfGoSGD(Restarts):
    method = "gosgd"


def collected(machine: type[Restarts]) -> type:
    """The machine as what pytest collects."""
    machine.TestCase.settings = settings(
        max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return machine.TestCase


TestRestartsOfPull, TestRestartsOfGoSGD = collected(RestartsOfPull), collected(RestartsOfGoSGD)
