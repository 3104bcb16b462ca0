"""Pushes and pairs, message by message: what would go wrong if two things happened in the worst order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scheduled_network import PATIENCE_S, Fate, Life, ScheduledCluster

from dpwa.exchange.messages import Propose, Verdict
from dpwa.exchange.proposals import Answer, Proposals
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.rounding import SentAs
from dpwa.snapshot.state import Codec, State

START = np.array([[1.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 100.0]])


@pytest.fixture
def make() -> Iterator[Callable[..., ScheduledCluster]]:
    """Makes clusters that are closed in the end, and whose nodes begin an exchange only when they are told to."""
    made: list[ScheduledCluster] = []

    def make_one(count: int, **settings: object) -> ScheduledCluster:
        made.append(ScheduledCluster(START[:count], **settings))
        made[-1].set_probability(0.0)
        for life, vector in zip(made[-1].living, START[:count], strict=True):
            life.model.vector[:] = vector  # they have met while they joined
            life.transport.pairs.clear()
        made[-1].step_all()
        return made[-1]

    yield make_one
    for cluster in made:
        cluster.close()


def begins(life: Life) -> None:
    """A node makes a step in which it begins an exchange, and will begin no other."""
    life.node.method.probability = 1.0
    life.node.step(1.0)
    life.node.method.probability = 0.0
    assert life.has_begun_to_wait()


def go_on(life: Life, messages: int, fate: Fate = Fate.ARRIVES) -> None:
    for _ in range(messages):
        life.transport.go_on(fate)


# ---- Pushes ----------------------------------------------------------------------------------------------------------


def weighted_sum(cluster: ScheduledCluster) -> np.ndarray:
    return cluster.held() @ cluster.vectors()


PROPOSED, FETCHED = 3, 5
"""Stops of a node's exchanges: until its proposal has been answered; until it has fetched one and decided on it."""


def test_a_push_that_comes_back_brings_back_the_model_that_was_given_and_not_what_has_become_of_it(make):
    cluster = make(3, method="gosgd", topology="directed_ring", guard="finite")  # the models are ten times apart
    first, _, third = cluster.living
    before, blended = weighted_sum(cluster), first.node.statistics().blended
    begins(first)
    go_on(first, PROPOSED)  # and the second never fetches it
    begins(third)
    go_on(third, PROPOSED)
    go_on(first, FETCHED)
    first.node.step(1.0)
    assert first.node.statistics().blended == blended + 1
    cluster.network.now_s += 2 * PATIENCE_S
    go_on(first, 1)
    first.node.step(1.0)
    assert first.node.statistics().exchanges["returned"] == 1
    cluster.settle()
    assert cluster.held().sum() == pytest.approx(1.0, abs=1e-12)
    assert weighted_sum(cluster) == pytest.approx(before, abs=1e-12)


def test_a_push_has_ended_when_the_peer_has_decided_and_not_when_it_has_all_bytes(make):
    """Else the next proposal could overtake the decision, which would then be of no account."""
    cluster = make(2, method="gosgd")
    first, second = cluster.living
    pushed, before = first.node.statistics().exchanges["pushed"], weighted_sum(cluster)
    begins(first)
    go_on(first, PROPOSED)
    go_on(second, FETCHED - 1)  # it has said that it has all, and is held up
    go_on(first, 5)
    first.node.step(1.0)
    assert first.node.statistics().exchanges["pushed"] == pushed
    go_on(second, 1)
    go_on(first, 3)
    first.node.step(1.0)
    assert first.node.statistics().exchanges["pushed"] == pushed + 1
    cluster.settle()
    assert weighted_sum(cluster) == pytest.approx(before, abs=1e-12)


def test_a_push_of_values_that_are_not_finite_is_refused_and_its_mass_comes_back(make):
    cluster = make(2, method="gosgd")
    first, second = cluster.living
    kept = second.model.vector.copy()
    first.model.vector[0] = np.nan
    begins(first)
    cluster.settle()
    assert cluster.held().sum() == pytest.approx(1.0, abs=1e-12)
    assert (second.model.vector == kept).all()
    assert first.node.statistics().exchanges["returned"] == 1


def test_a_push_that_is_declined_and_accepted_when_it_comes_again_has_one_end(make):
    cluster = make(2, method="gosgd")
    first, second = cluster.living
    before = weighted_sum(cluster)
    begins(first)
    second.transport.service.tell(first_round=None)
    go_on(first, 2)  # the answer that declines is on its way
    second.transport.service.tell(first_round=0)
    cluster.network.deliver_again(-1)
    go_on(second, 2)  # fetches it
    go_on(first, 1)
    cluster.settle()
    assert cluster.held().sum() == pytest.approx(1.0, abs=1e-12)
    assert weighted_sum(cluster) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("stops", range(1, FETCHED + 1))
def test_a_peer_that_crashes_while_it_fetches_takes_no_more_mass_with_it_than_is_counted(make, stops):
    cluster = make(2, method="gosgd")
    first, second = cluster.living
    begins(first)
    go_on(first, PROPOSED)
    go_on(second, stops - 1)
    held = first.node.statistics().method["mass"] + first.node.statistics().method["mass_under_way"]
    cluster.end(1)
    for _ in range(20):
        cluster.network.now_s += 2 * PATIENCE_S
        cluster.run_all()
        first.node.step(1.0)
    numbers = first.node.statistics().method
    assert numbers["mass_under_way"] == 0
    assert numbers["mass"] + numbers["mass_lost"] == pytest.approx(held, abs=1e-12)
    assert (numbers["mass_lost"] > 0) == (stops > 2)  # before, nothing had been fetched, so that nothing was taken


# ---- Pairs -----------------------------------------------------------------------------------------------------------


def test_a_node_gives_way_to_a_proposal_only_as_long_as_its_own_has_not_been_accepted(make):
    """w1 has made its half of a pair and proposes the next, while w2 has not applied the first yet."""
    cluster = make(2, method="adpsgd")
    first, second = cluster.living
    before = cluster.vectors().mean(axis=0)
    begins(second)
    cluster.run_all()
    begins(first)
    cluster.run_all()
    first.node.step(1.0)
    assert first.node.statistics().exchanges["busy"] >= 1
    cluster.settle()
    assert cluster.vectors().mean(axis=0) == pytest.approx(before, abs=1e-12)


def test_of_two_nodes_that_propose_to_each_other_the_first_by_name_has_its_way(make):
    cluster = make(2, method="adpsgd")
    first, second = cluster.living
    for life in (second, first):
        begins(life)
        go_on(life, 1)
    go_on(first, 1)  # the second gives way
    go_on(second, 2)  # and is refused
    cluster.run_all()
    pairs = [len(life.transport.pairs) for life in cluster.living]
    cluster.settle()
    assert [len(life.transport.pairs) for life in cluster.living] == [count + 1 for count in pairs]
    assert second.node.statistics().exchanges["busy"] >= 1
    assert np.ptp(cluster.vectors(), axis=0).max() < 1e-12


def test_a_node_that_gave_way_asks_nobody_else_for_a_pair(make):
    """w2 is refused by w1, to whom it has given way; w3 would say yes, and w2 would be in two pairs at once."""
    cluster = make(3, method="adpsgd", topology={"edges": [["w1", "w2"], ["w2", "w3"]]})
    first, second, third = cluster.living
    before = cluster.vectors().mean(axis=0)
    for _ in range(20):
        for life in (second, first):
            begins(life)
            go_on(life, 1)
        go_on(first, 1)
        go_on(second, 3)
        cluster.settle()
        assert cluster.vectors().mean(axis=0) == pytest.approx(before, abs=1e-12)
    assert len(third.transport.pairs) > 0
    assert all(len(life.transport.pairs) == len(set(life.transport.pairs)) for life in cluster.living)


def until_vanished(
    cluster: ScheduledCluster, stops: int, vanishes: int, fate: Fate = Fate.ARRIVES
) -> tuple[bool, bool, Life]:
    """The first asks the second for a pair, both go on in turn for so many stops, and then one of them is gone.

    What is on its way to or from the first at that moment has the fate.

    Returns:
        Whether the second had given its word, whether the other one has moved in the end, and that one.
    """
    begins(cluster.living[0])
    for index in range(stops):
        life = cluster.living[index % 2]
        if life.transport.has_work:
            go_on(life, 1)
    book = cluster.living[1].transport.service.proposals
    words = [book.verdict(sent) for _, sent in cluster.network.sent if isinstance(sent, Propose)]
    if fate is Fate.IS_LOST and cluster.living[0].transport.has_work:
        go_on(cluster.living[0], 1, fate)
    assert not cluster.living[vanishes].transport.pairs
    stays = cluster.living[1 - vanishes]
    cluster.end(vanishes)
    for _ in range(20):
        cluster.network.now_s += 2 * PATIENCE_S
        cluster.run_all()
        stays.node.step(1.0)
    assert not stays.has_begun_to_wait()
    moved = not np.allclose(stays.model.vector, START[1 - vanishes], atol=1e-12)
    assert moved == bool(stays.transport.pairs)
    return words[-1:] == [Verdict.TAKEN], moved, stays


STOPS = range(24)
"""A pair between two nodes that go on in turn is over after so many."""


@pytest.mark.seconds
def test_when_the_second_of_a_pair_vanishes_the_first_has_moved_by_its_word_or_says_that_it_does_not_know(make):
    seen = set()
    for stops, fate in itertools.product(STOPS, (Fate.ARRIVES, Fate.IS_LOST)):
        has_word, moved, stays = until_vanished(make(2, method="adpsgd"), stops, vanishes=1, fate=fate)
        is_lost = stays.node.statistics().exchanges.get("lost", 0) == 1
        assert not (moved and is_lost)
        assert (moved or is_lost) if has_word else not moved
        seen.add((has_word, moved, is_lost))
    assert {(False, False, False), (True, True, False), (True, False, True)} <= seen


@pytest.mark.seconds
def test_when_the_first_of_a_pair_vanishes_the_second_has_moved_if_it_had_given_its_word(make):
    seen = set()
    for stops in STOPS:
        has_word, moved, _ = until_vanished(make(2, method="adpsgd"), stops, vanishes=0)
        assert moved == has_word
        seen.add(moved)
    assert seen == {False, True}


# ---- The book of proposals by itself ---------------------------------------------------------------------------------


SNAPSHOT = Snapshot(1, 1, 0.0, State(None, 1.0), None, memoryview(b""))
AS_IT_IS = SentAs(Codec.RAW, 64)


def propose(
    life: int, number: int, *, is_pair: bool = False, node: str = "w1", previous: bytes = NO_EXCHANGE
) -> Propose:
    exchange = bytes([life]) * 8 + number.to_bytes(8, "big")
    return Propose(1, "run", node, bytes([life]) * 8, b"", exchange, is_pair, 0.5, 1.0, None, 0, 0, 0, previous)


def test_a_proposal_is_taken_up_once_however_often_it_comes():
    book = Proposals("w2", bytes(8))
    one = propose(1, 1)
    assert [book.consider(one, None) for _ in range(3)] == [Answer.ACCEPTED] * 3
    assert book.next_notice() is not None
    assert book.next_notice() is None
    assert book.decide(one, has_all=True) is Verdict.TAKEN
    assert book.decide(one, has_all=False) is Verdict.TAKEN
    assert book.consider(one, None) is Answer.ACCEPTED
    assert not book.has_notice


def test_an_older_proposal_of_the_same_life_comes_too_late():
    book = Proposals("w2", bytes(8))
    assert book.consider(propose(1, 2), None) is Answer.ACCEPTED
    assert book.decide(propose(1, 2), has_all=True) is Verdict.TAKEN
    assert book.consider(propose(1, 1), None) is Answer.STALE


def test_a_late_message_of_a_former_life_changes_nothing_for_the_present_one():
    book = Proposals("w2", bytes(8))
    old, new = propose(1, 7), propose(2, 1)
    assert book.consider(old, None) is Answer.ACCEPTED
    assert book.decide(old, has_all=False) is Verdict.ABORTED
    assert book.consider(new, None) is Answer.ACCEPTED
    assert book.decide(new, has_all=True) is Verdict.TAKEN
    assert book.consider(old, None) is Answer.STALE
    assert book.settle("w1", new.exchange_id, gives_up=False) is Verdict.TAKEN


def test_the_book_remembers_a_few_lives_and_a_few_failures_of_a_peer_and_no_more():
    book = Proposals("w2", bytes(8))
    for life in range(1, 100):
        for number, has_all in ((1, False), (2, True)):
            assert book.consider(propose(life, number), None) is Answer.ACCEPTED
            assert book.next_notice() is not None
            book.decide(propose(life, number), has_all=has_all)
    (memory,) = book._memories.values()
    assert len(memory.lives) <= 4
    assert len(memory.failed) <= 16
    assert len(memory.taken) <= 2


def test_proposals_that_wait_to_be_fetched_are_bounded():
    book = Proposals("w2", bytes(8))
    answers = [book.consider(propose(1, 1, node=f"n{number}"), None) for number in range(100)]
    assert 1 <= answers.count(Answer.ACCEPTED) <= 32
    assert answers[-1] is Answer.BUSY


def test_what_a_peer_has_begun_to_fetch_cannot_be_withdrawn_and_what_was_withdrawn_cannot_be_fetched():
    book = Proposals("w1", bytes(8))
    first = book.open(SNAPSHOT)
    book.address(first, "w2", is_pair=False)
    assert book.snapshot_for(first, "w3", AS_IT_IS) is None
    assert book.snapshot_for(first, "w2", AS_IT_IS) is SNAPSHOT
    assert not book.withdraw(first)
    book.close(first)
    second = book.open(SNAPSHOT)
    book.address(second, "w2", is_pair=False)
    assert book.withdraw(second)
    assert book.snapshot_for(second, "w2", AS_IT_IS) is None


def test_a_prepared_pair_is_taken_when_it_is_settled_and_aborted_when_its_proposer_gives_up():
    for gives_up, verdict in ((False, Verdict.TAKEN), (True, Verdict.ABORTED)):
        book = Proposals("w2", bytes(8))
        pair = propose(1, 1, is_pair=True)
        assert book.consider(pair, SNAPSHOT) is Answer.ACCEPTED
        assert book.settle("w1", pair.exchange_id, gives_up=False) is Verdict.PENDING
        assert book.decide(pair, has_all=True) is Verdict.PENDING
        assert book.settle("w1", pair.exchange_id, gives_up=gives_up) is verdict
        assert book.settle("w1", pair.exchange_id, gives_up=not gives_up) is verdict
        assert book.abort(pair) is verdict


# ---- What strangers say in the names of peers ------------------------------------------------------------------------


def taken(book: Proposals, proposal: Propose) -> bytes:
    """A proposal that the peer itself has given, and that was taken; its id."""
    assert book.consider(proposal, SNAPSHOT) is Answer.ACCEPTED
    notice = book.next_notice()
    assert notice is not None
    assert notice.propose is proposal
    assert book.decide(proposal, has_all=True) is not Verdict.ABORTED
    assert book.settle(proposal.node, proposal.exchange_id, gives_up=False) is Verdict.TAKEN
    return proposal.exchange_id


def denied(book: Proposals, proposal: Propose) -> None:
    """A proposal that was made up: it is looked for at the peer, which knows of no such thing."""
    assert book.consider(proposal, SNAPSHOT) is Answer.ACCEPTED
    while (notice := book.next_notice()) is not None and notice.propose is not proposal:
        book.deny(notice.propose)
    assert notice is not None
    book.deny(proposal)


def test_an_id_belongs_to_the_life_that_is_stated_and_is_not_the_one_for_the_newest_snapshot():
    book = Proposals("w2", bytes(8))
    of_another = dataclasses.replace(propose(1, 1), incarnation=bytes([2]) * 8)
    newest = dataclasses.replace(propose(0, 0), incarnation=bytes(8))
    assert newest.exchange_id == NO_EXCHANGE
    assert book.consider(of_another, None) is Answer.STALE
    assert book.consider(newest, None) is Answer.STALE
    assert not book.has_notice


def test_a_made_up_proposal_with_the_highest_number_does_not_make_true_ones_late():
    book = Proposals("w2", bytes(8))
    taken(book, propose(1, 1))
    denied(book, propose(1, 2**64 - 1))
    taken(book, propose(1, 2))


def test_made_up_lives_do_not_make_a_book_forget_what_it_has_taken():
    book = Proposals("w2", bytes(8))
    one = propose(1, 1)
    taken(book, one)
    for life in range(2, 200):
        denied(book, propose(life, 1))
    assert book.settle("w1", one.exchange_id, gives_up=True) is Verdict.TAKEN
    assert book.consider(one, None) is Answer.ACCEPTED
    assert not book.has_notice, "it is not taken a second time"


def test_lives_that_could_not_be_asked_do_not_make_a_book_forget_what_it_has_taken():
    """As long as the peer cannot be reached nobody can tell whether what is said in its name is true."""
    book = Proposals("w2", bytes(8))
    one = propose(1, 1)
    taken(book, one)
    for life in range(2, 200):
        assert book.consider(propose(life, 1), None) is Answer.ACCEPTED
        assert book.next_notice() is not None
        assert book.decide(propose(life, 1), has_all=False) is Verdict.ABORTED
    assert book.settle("w1", one.exchange_id, gives_up=True) is Verdict.TAKEN


def test_a_proposal_that_was_told_to_have_failed_is_not_taken_up_when_a_copy_of_it_comes():
    book = Proposals("w2", bytes(8))
    one = propose(1, 1)
    assert book.consider(one, None) is Answer.ACCEPTED
    assert book.next_notice() is not None
    assert book.decide(one, has_all=False) is Verdict.ABORTED
    assert book.settle("w1", one.exchange_id, gives_up=False) is Verdict.ABORTED
    assert book.consider(one, None) is Answer.STALE


def test_a_proposal_that_waits_or_is_being_fetched_is_under_way_and_can_be_given_up():
    for is_begun, gives_up in itertools.product((False, True), repeat=2):
        book = Proposals("w2", bytes(8))
        one = propose(1, 1)
        assert book.consider(one, None) is Answer.ACCEPTED
        if is_begun:
            assert book.next_notice() is not None
        assert book.settle("w3", one.exchange_id, gives_up=True) is Verdict.ABORTED, "it is not that node's"
        told = book.settle("w1", one.exchange_id, gives_up=gives_up)
        assert told is (Verdict.ABORTED if gives_up else Verdict.PENDING)
        assert book.decide(one, has_all=True) is (Verdict.ABORTED if gives_up else Verdict.TAKEN)


def test_ids_of_own_proposals_are_in_order_and_cannot_be_guessed():
    books = [Proposals("w1", bytes(range(8))) for _ in range(2)]
    ids = [[book.open(SNAPSHOT) for _ in range(100)] for book in books]
    assert all(made == sorted(made) for made in ids)
    assert not set(ids[0]) & set(ids[1]), "a stranger who knows life and number does not know the id"


def test_a_proposal_that_names_the_last_one_taken_has_a_place_however_many_strangers_wait():
    book = Proposals("w2", bytes(8))
    known = taken(book, propose(1, 1))
    answers = [book.consider(propose(life, 1, node=f"n{life}"), None) for life in range(1, 200)]
    answers += [book.consider(propose(1, number), None) for number in range(100, 200)]
    assert answers[-1] is Answer.BUSY
    assert book.consider(propose(1, 2), None) is Answer.BUSY
    true = propose(1, 2, previous=known)
    assert book.consider(true, None) is Answer.ACCEPTED
    notice = book.next_notice()
    assert notice is not None
    assert notice.propose is true, "and it is fetched first"


def test_a_peer_that_has_not_heard_of_its_last_one_may_name_the_one_before():
    book = Proposals("w2", bytes(8))
    first = taken(book, propose(1, 1))
    taken(book, propose(1, 2, previous=first))
    for number in range(10, 20):
        book.consider(propose(1, number), None)
    assert book.consider(propose(1, 3, previous=first), None) is Answer.ACCEPTED


def test_strangers_have_two_places_in_the_name_of_a_peer_and_leave_those_of_others():
    book = Proposals("w2", bytes(8))
    answers = [book.consider(propose(1, number), None) for number in range(1, 100)]
    assert answers.count(Answer.ACCEPTED) <= 2
    assert book.consider(propose(2, 1, node="w3"), None) is Answer.ACCEPTED


def test_a_proposal_that_its_proposer_has_taken_back_makes_room_for_its_next_one():
    book = Proposals("w2", bytes(8))
    known = taken(book, propose(1, 1))
    late, present = propose(1, 2, previous=known), propose(1, 3, previous=known)
    assert [book.consider(one, None) for one in (late, present)] == [Answer.ACCEPTED] * 2
    notice = book.next_notice()
    assert notice is not None
    assert notice.propose is present
    assert book.next_notice() is None
    assert book.settle("w1", late.exchange_id, gives_up=False) is Verdict.ABORTED


@pytest.mark.seconds
@pytest.mark.parametrize("cost_s", [0.001, 2.5], ids=["a peer that denies", "a hung one"])
def test_fetching_what_strangers_have_made_up_takes_at_most_a_quarter_of_the_time(cost_s):
    now_s, lost_s = 0.0, 0.0
    book = Proposals("w2", bytes(8))
    book.guard(lambda: now_s)
    known = taken(book, propose(1, 1))
    number = 1
    while now_s < 300.0:
        for life in range(1, 10):
            book.consider(propose(life, 1 + int(now_s * 1000), node=f"w{life}"), None)
        while (notice := book.next_notice()) is not None:
            now_s += cost_s
            lost_s += cost_s
            book.deny(notice.propose)
        deadline_s = book.deadline_s
        assert deadline_s is not None
        assert deadline_s > now_s, "and the thread sleeps until then"
        number += 1
        true = propose(1, number, previous=known)  # these need not wait
        assert book.consider(true, None) is Answer.ACCEPTED
        notice = book.next_notice()
        assert notice is not None
        assert notice.propose is true
        assert book.decide(true, has_all=True) is Verdict.TAKEN
        known = true.exchange_id
        now_s += 0.05
    assert 0 < lost_s < 300.0 * 0.26


def test_a_strangers_pair_does_not_keep_a_node_from_others_while_it_waits():
    now_s = 0.0
    book = Proposals("w2", bytes(8))
    book.guard(lambda: now_s)
    known = taken(book, propose(1, 1, is_pair=True))
    book.disengage(known)
    assert book.consider(propose(3, 1, is_pair=True, node="w3"), SNAPSHOT) is Answer.ACCEPTED
    notice = book.next_notice()
    assert notice is not None
    now_s += 2.5
    book.deny(notice.propose)
    book.disengage(notice.propose.exchange_id)
    assert book.consider(propose(3, 2, is_pair=True, node="w3"), SNAPSHOT) is Answer.BUSY
    assert book.consider(propose(1, 2, is_pair=True, previous=known), SNAPSHOT) is Answer.ACCEPTED
