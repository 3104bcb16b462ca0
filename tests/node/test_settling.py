"""A node lets its model be, or leaves, when what was begun with it has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpwa.exchange.messages import Propose, Verdict
from dpwa.exchange.proposals import Answer, Proposals
from dpwa.methods.base import ExchangeKind
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.node.settling import WORD_S, Settling

PEER = b"peer's  "
EXCHANGE_ID = PEER + bytes(4) + b"unguessable."
LONG_S = 10.0


class Alone:
    """The settling of a node, with proposals in the name of one peer."""

    def __init__(self, kind: ExchangeKind) -> None:
        self.first_round: int | None = 3
        self.proposals = Proposals("w1", b"w1's    ")
        service = SimpleNamespace(tell=self._tell, serving=self)
        self.settling = Settling(SimpleNamespace(kind=kind, round=7), service, self.proposals)

    def _tell(self, *, first_round: int | None) -> None:
        self.first_round = first_round

    def propose(self, exchange_id: bytes = EXCHANGE_ID) -> Propose:
        propose = Propose(
            1, "run", "w2", PEER, bytes(16), exchange_id,
            is_pair=False, mass=0.1, clock=1.0, loss=None, round=0, piece=0, pieces=0,
            previous=NO_EXCHANGE, lineage=bytes(8),
        )  # fmt: skip
        assert self.proposals.consider(propose, None) is Answer.ACCEPTED
        return propose

    def may_leave(self, now_s: float = 0.0, *, is_pushing: bool = False) -> bool:
        return self.settling.may_leave(now_s, is_pushing=is_pushing, at_most_s=LONG_S)


@pytest.fixture
def alone() -> Alone:
    return Alone(ExchangeKind.PUSH)


def test_what_was_accepted_is_waited_for_until_it_has_come_and_its_proposer_has_heard_so(alone):
    propose = alone.propose()
    assert not any(alone.may_leave() for _ in range(5))
    assert alone.proposals.next_notice() is not None
    assert not any(alone.may_leave() for _ in range(5)), "it is being fetched"
    assert alone.proposals.decide(propose, has_all=True) is Verdict.TAKEN
    assert not any(alone.may_leave(0.9 * WORD_S) for _ in range(5)), "the proposer does not know"
    assert alone.proposals.settle("w2", EXCHANGE_ID, gives_up=False) is Verdict.TAKEN
    assert alone.may_leave()


def test_what_was_fetched_may_be_on_its_way_to_the_trainer_for_one_turn(alone):
    assert not alone.may_leave()
    assert alone.may_leave()
    alone.settling.go_on()
    assert not alone.may_leave()


def test_a_proposer_that_asks_no_more_is_waited_for_a_moment(alone):
    propose = alone.propose()
    alone.proposals.next_notice()
    alone.proposals.decide(propose, has_all=True)
    assert not any(alone.may_leave(now_s) for now_s in (5.0, 5.0, 5.0 + 0.9 * WORD_S))
    assert alone.may_leave(5.0 + WORD_S)


def test_a_peer_that_dies_in_the_middle_of_a_push_is_not_waited_for_for_ever(alone):
    assert not any(alone.may_leave(now_s, is_pushing=True) for now_s in (5.0, 6.0, 4.9 + LONG_S))
    assert alone.may_leave(5.0 + LONG_S, is_pushing=True)
    alone.settling.go_on()
    assert not alone.may_leave(6.0 + LONG_S, is_pushing=True), "the next end has its own time"


def test_who_is_about_to_leave_accepts_nothing_and_who_stays_does_again(alone):
    alone.may_leave()
    assert alone.first_round is None
    alone.settling.go_on()
    assert alone.first_round == 7
    alone.first_round = 8
    alone.settling.go_on()
    assert alone.first_round == 8, "nothing was refused"


def test_one_that_has_not_joined_does_not_take_part_because_it_stays(alone):
    alone.first_round = None
    alone.may_leave()
    alone.settling.go_on()
    assert alone.first_round is None


def test_those_that_only_pull_refuse_nothing():
    alone = Alone(ExchangeKind.PULL)
    alone.may_leave()
    assert alone.first_round == 3
