"""What a node says to its peers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpwa.exchange.fetch import Identity
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import NEWEST_ROUND, Propose, PullRequest, Settle
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.round_codec import RoundCodec
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import NO_EXCHANGE
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


def test_what_belongs_to_an_exchange_takes_nothing_back_of_what_its_sender_said_at_the_end(service):
    """The exchange was begun while it trained, and goes on after it has finished."""
    exchange_id = bytes(range(24))
    service._membership = Membership(("w2",))
    service.tell(finished=True)
    word = Settle(1, "run", "w2", bytes(8), NO_EXCHANGE, gives_up=False, finished=True)
    propose = Propose(
        2, "run", "w2", bytes(8), service.layout.fingerprint, exchange_id,
        is_pair=False, mass=0.1, clock=1.0, loss=None, round=0, piece=0, pieces=0,
        previous=NO_EXCHANGE, lineage=bytes(8),
    )  # fmt: skip
    service.answer(propose, now_s=0.0, may_wait=False)
    assert service.asked_at_the_end == {"w2": 0.0}
    assert service.told_at_the_end == set(), "the answer to a proposal does not say so"
    service.answer(word, now_s=0.0, may_wait=False)
    assert service.told_at_the_end == {"w2"}
    pull = replace(round_of(service, "w2"), exchange_id=exchange_id, round=NEWEST_ROUND)
    for request in (propose, pull, replace(word, exchange_id=exchange_id, finished=False)):
        service.answer(request, now_s=0.0, may_wait=False)
        assert service._membership.is_said_to_have_finished("w2")
    service.answer(replace(word, finished=False), now_s=0.0, may_wait=False)
    assert not service._membership.is_said_to_have_finished("w2")


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
