"""The bound of a quantity by what all peers gave lately."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.exchange.running_bound import GROWTH, LEAST, SLACK, WINDOW, RunningBound

NUMBERS = st.floats(0.0, 1e300) | st.just(math.inf) | st.just(math.nan)
HONEST = st.floats(0.5, 1.5)
BEGIN = {"start": 3.0, "floor": 0.1}


@given(st.lists(st.tuples(st.sampled_from("abc"), NUMBERS), max_size=8 * WINDOW))
def test_whatever_comes_the_bound_is_a_number_and_grows_by_steps(given_numbers):
    bound = RunningBound()
    for peer, number in given_numbers:
        before = bound.take(peer, number, **BEGIN)
        assert before >= 0.1
        # A level is at most twice what is remembered.
        assert bound.bound(**BEGIN) <= max(3.0, 2 * SLACK * GROWTH * max(before, 1e300 if number > before else 0.0))


@given(
    st.integers(1, 6).flatmap(
        lambda liars: st.tuples(
            st.just(liars), st.lists(st.permutations(range(2 * liars + 1)), min_size=3, max_size=12)
        )
    ),
    st.floats(2.0, 1e300) | st.just(math.nan) | st.just(0.0),
    st.data(),
)
def test_peers_that_are_fewer_than_half_neither_raise_the_bound_nor_lower_it_beyond_what_the_others_give(
    order, lie, data
):
    """Each round meets every peer once, in any order; the first ones are liars, which agree."""
    liars, rounds = order
    bound = RunningBound()
    for index, met in enumerate(rounds):
        for peer in met:
            number = lie if peer < liars else data.draw(HONEST)
            most = bound.take(f"w{peer}", number, **BEGIN)
            if index >= 2:
                assert SLACK * 0.5 <= most <= SLACK * 2 * 1.5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.5, 0.75)), min_size=LEAST, max_size=100))
def test_numbers_that_vary_by_half_are_never_above_the_bound(given_numbers):
    bound = RunningBound()
    for peer, number in given_numbers:
        assert number <= bound.take(peer, number, **BEGIN)


def test_an_honest_peer_may_show_now_and_then_what_it_shows_always(rng_numbers):
    """Two nodes that have just exchanged are near each other: three of four numbers are a tenth of the fourth."""
    bound = RunningBound()
    cut = sum(number > bound.take(peer, number, **BEGIN) for peer, number in rng_numbers)
    assert cut == 0


@pytest.fixture
def rng_numbers():
    return [("abc"[index % 3], 1.0 if index % 4 == 0 else 0.1) for index in range(400)]


def test_without_history_the_bound_is_the_one_to_begin_with():
    bound = RunningBound()
    for index in range(LEAST):
        assert bound.take("ab"[index % 2], 1.0, **BEGIN) == 3.0
    assert bound.bound(**BEGIN) == pytest.approx(SLACK * (1 + 1 / 3))


def test_of_one_peer_alone_the_bound_is_never_below_that_to_begin_with_and_grows():
    bound = RunningBound()
    for _ in range(20):
        bound.take("a", 1e-6, **BEGIN)
    assert bound.bound(**BEGIN) == 3.0
    steps = 0
    while bound.take("a", 1e9, **BEGIN) < 1e9:
        steps += 1
    assert steps <= math.ceil(math.log(1e9 / 3.0, GROWTH * SLACK)) + 1


@given(st.floats(1.0, 1e12))
def test_what_all_peers_show_is_above_the_bound_for_a_few_rounds(rise):
    bound = RunningBound()
    for _ in range(WINDOW):
        for peer in "abc":
            bound.take(peer, 1.0, **BEGIN)
    rounds = 0
    while [bound.take(peer, rise, **BEGIN) for peer in "abc"][-1] < rise:
        rounds += 1
    assert rounds <= math.ceil(math.log(rise, GROWTH * SLACK)) + 1


def test_what_peers_gave_long_ago_does_not_count():
    bound = RunningBound()
    for _ in range(WINDOW):
        for peer in "abc":
            bound.take(peer, 1.0, **BEGIN)
    for _ in range(3 * WINDOW + 1):
        bound.take("a", 0.1, **BEGIN)
    assert bound.bound(**BEGIN) == 3.0, "only one peer was met for long"


def test_with_thousands_of_peers_little_is_looked_at_and_little_is_kept():
    bound = RunningBound()
    for index in range(5000):
        assert 1.0 <= bound.take(f"w{index}", 1.0, **BEGIN) <= 3.0
    assert len(bound._numbers) <= 257


def test_from_standing_still_it_rises_from_the_floor():
    bound = RunningBound()
    for _ in range(WINDOW):
        for peer in "abc":
            bound.take(peer, 0.0, **BEGIN)
    assert bound.bound(**BEGIN) == 0.1


def test_nothing_is_kept_of_a_peer_that_is_forgotten():
    bound = RunningBound()
    for index in range(3 * WINDOW):
        bound.take("abc"[index % 3], 1.0, **BEGIN)
    bound.forget("c")
    assert set(bound._numbers) == {"a", "b"}
    bound.clear()
    assert bound.bound(**BEGIN) == 3.0
