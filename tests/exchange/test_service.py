"""What a node says to its peers."""

from __future__ import annotations

import pytest

from dpwa.exchange.fetch import Identity
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.membership import Membership
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.round_codec import RoundCodec
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.layout import Layout, Snapshot, TensorSpec
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.state import State


@pytest.fixture
def service() -> Service:
    return Service(
        run="run",
        incarnation=bytes(8),
        layout=Layout([TensorSpec("a", (3,), "float64")]),
        membership=Membership(()),
        proposals=Proposals("w1", bytes(8)),
        kind=ExchangeKind.PULL,
        standing=Standing(bytes(8)),
        leasing=Leasing(Identity("run", "w1", bytes(8)), ["w1"], lambda: 0.0),
        round_codec=RoundCodec(None),
    )


def test_a_change_leaves_the_rest_as_it_was_and_who_reads_meanwhile_sees_all_of_it_or_nothing(service):
    snapshot = Snapshot(1, 1, 0.0, State(None, 1.0), None, memoryview(b""))
    service.tell(snapshot=snapshot, step=1)
    before = service.serving
    service.tell(step=2, step_interval_s=0.5)
    assert (before.snapshot, before.step, before.step_interval_s) == (snapshot, 1, 0.0)
    assert (service.serving.snapshot, service.serving.step, service.serving.step_interval_s) == (snapshot, 2, 0.5)


def test_a_service_that_is_closed_in_the_middle_of_a_change_keeps_no_snapshot(service):
    """As by a signal's handler: the change goes on after it."""
    snapshot = Snapshot(1, 1, 0.0, State(None, 1.0), None, memoryview(b""))
    service.tell(snapshot=snapshot, last_round=snapshot)
    service.close()
    service.tell(snapshot=snapshot, last_round=snapshot, step=3)
    assert (service.serving.snapshot, service.serving.last_round, service.serving.step) == (None, None, 3)
