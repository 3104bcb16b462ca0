"""What a node says to its peers."""

from __future__ import annotations

import pytest

from dpwa.exchange.fetch import Identity
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import PullRequest
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.round_codec import RoundCodec
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.layout import Layout, Snapshot, TensorSpec
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.state import Codec, State


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


@pytest.mark.parametrize("is_open", [False, True])
def test_what_strangers_wish_for_rounds_is_not_remembered(service, is_open):
    membership = Membership(("w2",), is_open=is_open)
    service._membership = membership
    for number in range(3, 100):
        service.answer(round_of(service, f"w{number}"), now_s=0.0, may_wait=False)
    assert service.round_codec.of_round(7) is Codec.RAW
    assert not service.round_codec._wishes
    service.answer(round_of(service, "w2"), now_s=0.0, may_wait=False)
    assert service.round_codec.of_round(7) is Codec.INT8


def round_of(service: Service, node: str) -> PullRequest:
    """Somebody wants the snapshot of a round, as small as can be."""
    return PullRequest(
        nonce=1,
        run="run",
        node=node,
        incarnation=bytes(8),
        fingerprint=service.layout.fingerprint,
        have_incarnation=bytes(8),
        have_version=0,
        codec=Codec.INT8,
        chunk_bytes=1024,
        first=0,
        count=8,
        shared=False,
        finished=False,
        round=7,
    )


def test_a_service_that_is_closed_in_the_middle_of_a_change_keeps_no_snapshot(service):
    """As by a signal's handler: the change goes on after it."""
    snapshot = Snapshot(1, 1, 0.0, State(None, 1.0), None, memoryview(b""))
    service.tell(snapshot=snapshot, last_round=snapshot)
    service.close()
    service.tell(snapshot=snapshot, last_round=snapshot, step=3)
    assert (service.serving.snapshot, service.serving.last_round, service.serving.step) == (None, None, 3)
