"""The rules about members: what holds in whatever order it is heard, and what no liar can bring about."""

from __future__ import annotations

import random
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.exchange import members as rules
from dpwa.exchange.member_table import MAX_TOLD, Member, MemberState, are_legal, fitting, latest
from dpwa.exchange.members import DEAD_S, SUSPECT_AFTER, Members
from dpwa.exchange.strangers import MAX_STRANGERS, Seeds, Strangers

ALIVE, SUSPECT, LEFT, DEAD = MemberState


def entry(name: str, number: int = 0, state: MemberState = ALIVE, port: int | None = None) -> Member:
    return Member(name, "localhost", 21000 + int(name[1:]) if port is None else port, number, state)


OWN = entry("w1")


def members(*listed: str, seeds: tuple[tuple[str, int], ...] = (), seed: int = 0) -> Members:
    return Members(OWN, map(entry, listed), seeds, random.Random(seed))


def joined(of: Members, *names: str) -> None:
    """These have joined by answering."""
    for name in names:
        of.hear("", [entry(name)], 0.0)
        assert of.strangers.next(1e6) is not None
        assert of.joined(name, entry(name), 0.0, 0.0) is not None


def fail(of: Members, name: str, times: int, now_s: float = 0.0) -> None:
    for _ in range(times):
        of.failed(name, now_s)


def known(of: Members) -> dict[str, Member]:
    return {member.name: member for member in of.known}


NAMES = st.sampled_from([f"w{number}" for number in range(1, 8)])
ENTRIES = st.builds(
    Member,
    NAMES,
    st.sampled_from(["localhost", "10.9.9.9"]),
    st.integers(21000, 21008),
    st.integers(0, 8) | st.integers(0, 2**53),
    st.sampled_from(MemberState),
)
OF_ONE = st.builds(
    Member, st.just("w2"), st.just("localhost"), st.just(21002), st.integers(0, 9), st.sampled_from(MemberState)
)
OF_ONE_ANYWHERE = ENTRIES.map(lambda member: member._replace(name="w2"))


# --- Which entry holds ----------------------------------------------------------------------------------------------


@given(OF_ONE_ANYWHERE, OF_ONE_ANYWHERE, OF_ONE_ANYWHERE)
def test_the_merge_of_entries_is_commutative_associative_and_idempotent(one, two, three):
    assert latest(one, two) == latest(two, one)
    assert latest(one, latest(two, three)) == latest(latest(one, two), three)
    assert latest(one, one) == one


@given(st.lists(OF_ONE, max_size=5), st.randoms())
def test_news_of_a_member_may_come_in_any_order_and_any_number_of_times(news, rng):
    heard = []
    for order in ([*news], sorted(news), [*news, *news], rng.sample(news, len(news))):
        of = members("w2")
        for one in order:
            of.hear("w3", [one], 0.0)
        heard.append(known(of)["w2"])
    assert len(set(heard)) == 1
    assert heard[0] == max([entry("w2"), *news], key=lambda one: (one.number, one.state))


@given(st.lists(st.tuples(st.integers(0, 900), st.sampled_from(MemberState)), max_size=20))
def test_a_refutation_always_wins(claims):
    of = members("w2")
    for number, state in claims:
        of.answer("w2", [entry("w1", number, state)], random.Random(0))
        if number <= of.own.number:
            assert latest(of.own, entry("w1", number, state)) == of.own
    worst = [number for number, state in claims if state is not ALIVE]
    assert of.own.state is ALIVE
    assert of.own.number > max(worst, default=-1)


def test_a_node_that_leaves_does_not_deny_it():
    of = members("w2")
    of.leave()
    of.answer("w2", [entry("w1", 5, LEFT)], random.Random(0))
    assert of.own == entry("w1", 5, LEFT)


@pytest.mark.parametrize("number", [2**40, 2**53])
def test_no_lie_takes_all_numbers_away_from_the_one_who_must_refute_it(number):
    of = members("w2")
    for _ in range(1000):
        of.answer("w2", [entry("w1", number, DEAD)], random.Random(0))
    assert of.own.number == 0
    assert of.ignored["number"] == 1000
    of.answer("w2", [entry("w1", 7, DEAD)], random.Random(0))
    assert of.own == entry("w1", 8)


def test_a_new_life_takes_up_the_number_of_the_former_one():
    of = members("w2")
    of.hear("w2", [entry("w1", 3, DEAD)], 0.0)
    assert of.own == entry("w1", 4)


# --- Bounds ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(NAMES, st.lists(ENTRIES, max_size=8)), max_size=30))
def test_whatever_is_heard_is_bounded_and_adds_no_member(tables):
    of = members("w2", "w3")
    for teller, table in tables:
        of.hear(teller, table, 0.0)
        of.answer(teller, table, random.Random(0))
        of.knock(0.0)
    assert set(known(of)) == {"w2", "w3"}
    assert {name: member.address for name, member in known(of).items()} == {
        name: entry(name).address for name in ("w2", "w3")
    }
    assert len(of.strangers) <= MAX_STRANGERS
    assert of.own.address == OWN.address


def test_there_are_never_more_members_than_a_file_may_have(monkeypatch):
    monkeypatch.setattr(rules, "MAX_NODES", 64)
    of = members()
    joined(of, *[f"w{number}" for number in range(2, 66)])
    assert len(of.known) == 64
    of.hear("w2", [entry("w9999")], 0.0)
    assert len(of.strangers) == 0
    assert of.ignored["full"] == 1


def test_graves_are_bounded(monkeypatch):
    monkeypatch.setattr(rules, "_MOST_GRAVES", 4)
    of = members("w2")
    for number in range(10, 30):
        name = f"w{number}"
        joined(of, name)
        of.hear("w2", [entry(name, 0, LEFT)], 0.0)
        of.failed(name, 0.0)
        of.judge(0.0)
    assert len(of._graves) == 4
    assert set(known(of)) == {"w2"}


@given(st.lists(st.integers(2, 5000), max_size=200, unique=True), st.randoms())
def test_the_entries_of_a_message_are_legal_and_fit(numbers, rng):
    table = [entry(f"w{number}", port=21000) for number in numbers]
    told = fitting((OWN,), table, rng)
    assert told[0] == OWN
    assert set(told[1:]) <= set(table)
    assert len(told) == min(MAX_TOLD, len(table) + 1)
    assert are_legal(tuple((*one[:4], int(one.state)) for one in told))
    assert set(table[: MAX_TOLD // 2]) <= set(told)  # the latest news


# --- What a liar can have this node do ------------------------------------------------------------------------------


@given(st.lists(st.tuples(NAMES, st.lists(ENTRIES, max_size=6)), max_size=40))
def test_no_liar_makes_a_member_that_answers_be_forgotten(tables):
    of = members("w2")
    joined(of, "w3", "w4")
    for second, (teller, table) in enumerate(tables):
        of.hear(teller, table, float(second))
        of.knock(float(second))
        for name in ("w2", "w3", "w4"):
            of.answered(name)
        assert [change for change in of.judge(float(second)) if change.is_gone] == []
    assert set(known(of)) == {"w2", "w3", "w4"}


@pytest.mark.parametrize("took_s", [0.01, 0.5])
@pytest.mark.parametrize("tellers", [["w2"], ["w2", "w3", "w2", "w3"]])
def test_a_liar_has_strangers_asked_once_a_second_at_most(tellers, took_s):
    of = members("w2", "w3")
    now_s, asked, spent_s, serial = 0.0, 0, 0.0, 0
    while now_s < 60.0:
        for teller in tellers:
            serial += 1
            of.hear(teller, [entry(f"w{100 + serial}", port=21000)], now_s)
        stranger = of.strangers.next(now_s)
        if stranger is not None:
            asked += 1
            spent_s += took_s
            now_s += took_s
            of.strangers.failed(stranger.member.name, now_s, took_s)
        now_s += 0.05
    assert asked <= 61
    assert spent_s <= 60.0 / 4 + took_s
    assert set(known(of)) == {"w2", "w3"}


def test_one_teller_fills_half_of_the_places_and_whoever_introduces_itself_has_one():
    of = members("w2", "w3")
    of.hear("w2", [entry(f"w{number}") for number in range(100, 120)], 0.0)
    assert len(of.strangers) == MAX_STRANGERS // 2
    of.hear("w3", [entry(f"w{number}") for number in range(200, 220)], 0.0)
    assert len(of.strangers) == MAX_STRANGERS
    assert of.ignored["no_room"] == 32
    liar = of.strangers.next(0.0)
    of.strangers.failed(liar.member.name, 0.0, 0.1)
    of.answer("w9", [entry("w9")], random.Random(0))
    of.knock(0.0)
    assert "w9" in of.strangers._waiting


def test_a_name_that_did_not_answer_is_not_asked_again_by_word_of_others():
    strangers = Strangers()
    for now_s in (0.0, 2.0):
        assert strangers.put(entry("w9"), "w2", now_s)
        assert strangers.next(now_s) is not None
        strangers.failed("w9", now_s, 0.1)
    assert strangers.put(entry("w9"), "w2", 4.0)
    assert strangers.next(4.0) is None
    assert strangers.put(entry("w9"), "w9", 4.0)  # by its own it is, soon
    assert strangers.next(4.0) is not None


def test_one_that_introduces_itself_and_cannot_be_reached_is_asked_ever_more_seldom():
    strangers, asked = Strangers(), []
    for now_s in range(600):
        assert strangers.put(entry("w9"), "w9", float(now_s))
        if strangers.next(float(now_s)) is not None:
            asked.append(now_s)
            strangers.failed("w9", float(now_s), 0.1)
    assert len(asked) < 30
    assert asked[-1] - asked[-3] >= 100


def test_another_address_of_a_known_name_changes_nothing_and_is_counted():
    of = members("w2")
    of.hear("w3", [entry("w2", 5, DEAD, port=666)], 0.0)
    assert known(of)["w2"] == entry("w2")
    assert of.ignored == {"address": 1}


def test_a_stranger_that_answers_by_another_name_is_no_member():
    of = members("w2")
    of.hear("w2", [entry("w66", port=21002)], 0.0)
    assert of.strangers.next(0.0) is not None
    assert of.joined("w66", entry("w2"), 0.0, 0.1) is None
    assert set(known(of)) == {"w2"}
    assert of.ignored == {"name": 1}


def test_what_a_question_says_of_third_ones_is_not_heard():
    of = members("w2", "w3")
    told = of.answer("w2", [entry("w2"), entry("w3", 1, DEAD), entry("w9")], random.Random(0))
    of.knock(0.0)
    assert told[0] == OWN
    assert known(of)["w3"] == entry("w3")
    assert len(of.strangers) == 0
    assert of.ignored == {"not_asked_for": 2}


def test_the_own_name_with_another_address_is_not_believed():
    of = members("w2")
    of.hear("w2", [entry("w1", 3, ALIVE, port=666)], 0.0)
    assert of.own == OWN
    assert of.ignored == {"own_name": 1}


def test_an_entry_with_the_own_address_is_nobody_to_be_asked():
    of = members("w2")
    of.hear("w2", [entry("w9", port=OWN.port)], 0.0)
    assert len(of.strangers) == 0


# --- Suspicion ------------------------------------------------------------------------------------------------------


def test_a_member_that_cannot_be_reached_is_suspected_then_forgotten():
    of = members("w2")
    joined(of, "w3")
    of.failed("w3", 0.0)
    assert of.judge(0.0) == []
    fail(of, "w3", SUSPECT_AFTER - 1)
    assert [(change.member, change.is_gone) for change in of.judge(1.0)] == [(entry("w3", 0, SUSPECT), False)]
    of.failed("w3", 2.0)
    assert of.judge(0.9 + DEAD_S) == []
    assert [(change.member, change.is_gone) for change in of.judge(1.0 + DEAD_S)] == [(entry("w3", 0, DEAD), True)]
    assert set(known(of)) == {"w2"}
    assert entry("w3", 0, DEAD) in of.table


def test_one_that_refutes_is_not_forgotten_however_long_this_node_cannot_reach_it():
    of = members("w2")
    joined(of, "w3")
    for second in range(60):
        of.failed("w3", float(second))
        of.hear("w2", [entry("w3", known(of)["w3"].number + 1)], float(second))
        assert not [change for change in of.judge(float(second)) if change.is_gone]
    assert "w3" in known(of)


def test_one_that_only_others_reach_is_forgotten_in_the_end():
    of = members("w2")
    joined(of, "w3")
    gone = []
    for second in range(400):
        of.failed("w3", float(second))
        of.hear("w2", [entry("w3", second + 1)], float(second))
        gone += [second for change in of.judge(float(second)) if change.is_gone]
    assert len(gone) == 1
    assert 299 <= gone[0] <= 301


def test_members_of_the_file_are_suspected_and_never_forgotten():
    of = members("w2", "w3")
    fail(of, "w3", 5)
    assert [change.member.state for change in of.judge(0.0)] == [SUSPECT]
    assert of.judge(1e6) == []
    assert set(known(of)) == {"w2", "w3"}


def test_a_member_of_the_file_that_is_gone_and_comes_back_elsewhere_is_met_there():
    of = members("w2", "w3")
    fail(of, "w3", 3)
    of.judge(0.0)
    moved = entry("w3", port=22003)
    told = of.answer("w3", [moved], random.Random(0))
    assert told[1] == entry("w3", 0, SUSPECT), "by this it learns what it has to refute"
    of.knock(0.0)
    assert of.has_moved("w3"), "which is no case for a warning that it answers to nobody"
    assert not of.has_moved("w2")
    assert [change.is_gone for change in of.judge(DEAD_S)] == [True]
    of.answer("w3", [moved._replace(number=1)], random.Random(0))
    of.knock(DEAD_S)
    assert of.strangers.next(DEAD_S).member.address == moved.address
    assert of.joined("w3", moved._replace(number=1), DEAD_S, 0.1).is_new
    assert known(of)["w3"] == moved._replace(number=1)


def test_a_node_whose_peers_have_all_moved_is_not_cut_off_and_meets_them_where_they_are():
    of = members("w2", "w3")
    for name in ("w2", "w3"):
        fail(of, name, 3)
    of.judge(0.0)
    assert of.is_cut_off
    of.answer("w3", [entry("w3", 1, port=22003)], random.Random(0))
    of.knock(0.0)
    assert [change.member.name for change in of.judge(DEAD_S) if change.is_gone] == ["w3"]
    of.answer("w2", [entry("w2", 1, port=22002)], random.Random(0))
    of.knock(DEAD_S)
    assert [change.member.name for change in of.judge(DEAD_S) if change.is_gone] == ["w2"]


def test_a_member_of_the_file_that_answers_at_its_address_is_not_forgotten_whoever_uses_its_name_elsewhere():
    of = members("w2", "w3")
    fail(of, "w3", 1)
    of.answer("w3", [entry("w3", 7, port=22003)], random.Random(0))
    of.knock(0.0)
    of.answered("w3")
    fail(of, "w3", 5)
    of.judge(1.0)
    assert of.judge(1e6) == []
    assert known(of)["w3"].address == entry("w3").address


def test_a_node_that_reaches_nobody_forgets_nobody():
    of = members()
    joined(of, "w2", "w3")
    fail(of, "w2", 5)
    fail(of, "w3", 5)
    of.judge(0.0)
    assert of.is_cut_off
    assert of.judge(100.0) == []
    of.answered("w2")
    assert [change.member.name for change in of.judge(200.0) if change.is_gone] == ["w3"]


def test_who_has_said_that_it_goes_is_forgotten_with_the_first_failure():
    of = members("w2")
    joined(of, "w3")
    of.hear("w2", [entry("w3", 0, LEFT)], 0.0)
    assert [change.is_gone for change in of.judge(0.0)] == [False]
    of.failed("w3", 1.0)
    assert [(change.member.state, change.is_gone) for change in of.judge(1.0)] == [(LEFT, True)]


def test_whoever_is_said_to_be_gone_is_asked_soon_and_not_often():
    of = members("w2", "w3")
    of.hear("w2", [entry("w3", 0, DEAD)], 0.0)
    assert [of.next_doubted(0.0) for _ in range(4)].count("w3") == 1
    for number in range(1, 20):
        of.hear("w2", [entry("w3", number, DEAD)], 1.0)
        assert of.next_doubted(1.0) is None
    assert "w3" in [of.next_doubted(6.0), of.next_doubted(6.0)]


def test_an_answer_of_its_own_ends_a_suspicion():
    of = members("w2", "w3")
    of.hear("w2", [entry("w3", 4, SUSPECT)], 0.0)
    assert of.claims_for("w3") == (OWN, entry("w3", 4, SUSPECT))
    of.hear("w3", [entry("w3", 5)], 0.0)
    assert known(of)["w3"] == entry("w3", 5)


def test_old_news_does_not_bring_the_dead_back_and_their_own_word_does():
    of = members("w2")
    joined(of, "w3")
    fail(of, "w3", 3)
    of.judge(0.0)
    assert [change.is_gone for change in of.judge(DEAD_S)] == [True]
    of.hear("w2", [entry("w3")], DEAD_S)
    assert len(of.strangers) == 0
    told = of.answer("w3", [entry("w3")], random.Random(0))  # a new life, which does not know yet
    assert told[1] == entry("w3", 0, DEAD)
    of.answer("w3", [entry("w3", 1)], random.Random(0))
    of.knock(DEAD_S)
    assert of.strangers.next(DEAD_S).member == entry("w3", 1)
    assert of.joined("w3", entry("w3", 1), DEAD_S, 0.1).is_new
    assert known(of)["w3"].state is ALIVE


def test_only_members_that_have_answered_are_told_of():
    of = members("w2", "w3")
    of.answered("w3")
    assert of.table == (entry("w3"),)


# --- Where to join --------------------------------------------------------------------------------------------------


def test_seeds_are_asked_with_a_growing_pause_while_nobody_answers_there():
    seeds = Seeds([("127.0.0.1", 21002)], random.Random(0))
    asked = [second / 20 for second in range(20 * 60) if seeds.next(second / 20, set())]
    pauses = [after - before for before, after in pairwise(asked)]
    assert asked[0] == 0.0
    assert pauses[0] < 0.5
    assert all(7.0 < pause < 13.0 for pause in pauses[-2:])
    assert seeds.next(1000.0, {("127.0.0.1", 21002)}) is None


def test_a_member_that_was_reached_by_its_address_is_asked_as_a_stranger_first():
    of = members(seeds=(("127.0.0.1", 21002),))
    assert of.next_seed(0.0) == ("127.0.0.1", 21002)
    of.found_seed(entry("w2"), 0.0)
    of.hear("w2", [entry("w2"), entry("w3")], 0.0)
    assert known(of) == {}
    assert of.strangers.next(0.0).member == entry("w2")
    of.joined("w2", entry("w2"), 0.0, 0.1)
    assert set(known(of)) == {"w2"}
    assert of.next_seed(20.0) is None  # it is reached


def test_what_a_former_life_knew_is_asked():
    of = members()
    of.remember([entry("w7")])
    assert of.strangers.next(0.0).member == entry("w7")


def test_all_orders_of_joining_end_alike():
    tables = [[entry("w2"), entry("w3")], [entry("w3"), entry("w4")], [entry("w4"), entry("w2")]]
    for order in permutations(tables):
        of = members()
        for table in order:
            of.hear("", table, 0.0)
        while (stranger := of.strangers.next(1e9)) is not None:
            of.joined(stranger.member.name, stranger.member, 0.0, 0.0)
        assert set(known(of)) == {"w2", "w3", "w4"}
