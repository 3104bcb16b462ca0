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
LONG_S = 60.0


class Alone:
    """The settling of a node, with proposals in the name of one peer."""

    def __init__(self, kind: ExchangeKind) -> None:
        self.first_round: int | None = 3
        self.proposals = Proposals("w1", b"w1's    ")
        self.joining = SimpleNamespace(is_on=False)
        self.gone: list[str] = []
        service = SimpleNamespace(tell=self._tell, serving=self)
        method = SimpleNamespace(kind=kind, round=7)
        self.settling = Settling(method, service, self.proposals, self.joining, longest_s=LONG_S)

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
        return self.settling.may_leave(now_s, is_pushing=is_pushing, is_gone=self.gone.__contains__)

    def take(self, propose: Propose) -> None:
        assert self.proposals.next_notice() is not None
        assert self.proposals.decide(propose, has_all=True) is Verdict.TAKEN
        self.proposals.handed_over()


@pytest.fixture
def alone() -> Alone:
    return Alone(ExchangeKind.PUSH)


def test_what_was_accepted_is_waited_for_until_it_has_come_and_its_proposer_has_heard_so(alone):
    propose = alone.propose()
    assert not any(alone.may_leave() for _ in range(5))
    assert alone.proposals.next_notice() is not None
    assert not any(alone.may_leave() for _ in range(5)), "it is being fetched"
    assert alone.proposals.decide(propose, has_all=True) is Verdict.TAKEN
    assert not any(alone.may_leave() for _ in range(5)), "it is on its way to the trainer"
    alone.proposals.handed_over()
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
    assert not any(alone.may_leave(now_s) for now_s in (1.0, 2.0, 19.0))
    alone.take(propose)
    times_s = (20.0, 20.0, 20.0 + 0.9 * WORD_S)
    assert not any(alone.may_leave(now_s) for now_s in times_s), "that time begins when the rest has settled"
    assert alone.may_leave(20.0 + WORD_S)


def test_a_proposer_that_is_gone_is_not_waited_for(alone):
    alone.take(alone.propose())
    alone.gone.append("w2")
    assert not alone.may_leave()
    assert alone.may_leave()


def test_what_was_given_away_is_waited_for_until_its_end_is_known_and_what_never_comes_is_not(alone):
    assert not any(alone.may_leave(now_s, is_pushing=True) for now_s in (5.0, 6.0, 5.0 + 2 * LONG_S))
    alone.settling.go_on()
    alone.propose()
    assert not any(alone.may_leave(now_s) for now_s in (500.0, 501.0, 500.0 + LONG_S))
    assert alone.may_leave(500.0 + LONG_S + WORD_S)


def test_what_has_not_been_taken_when_the_node_leaves_stays_with_its_proposer(alone):
    waiting = alone.propose(PEER + bytes(3) + b"\1" + b"unguessable.")
    alone.settling.end()
    assert alone.first_round is None
    assert alone.proposals.settle("w2", waiting.exchange_id, gives_up=False) is Verdict.ABORTED
    fetched = alone.propose(PEER + bytes(3) + b"\2" + b"unguessable.")
    assert alone.proposals.next_notice() is not None
    alone.settling.end()
    assert alone.proposals.decide(fetched, has_all=True) is Verdict.ABORTED
    assert alone.proposals.settle("w2", fetched.exchange_id, gives_up=False) is Verdict.ABORTED


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
    alone.first_round = 5
    alone.may_leave()
    alone.joining.is_on = True  # what came back has shown that a peer's model is to be taken over
    alone.settling.go_on()
    assert alone.first_round is None


def test_those_that_only_pull_refuse_nothing():
    alone = Alone(ExchangeKind.PULL)
    alone.may_leave()
    assert alone.first_round == 3
