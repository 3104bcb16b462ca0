"""The bound of a quantity by the running median of what came before."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.exchange.running_bound import LEAST, SLACK, WINDOW, RunningBound

NUMBERS = st.floats(0.0, 1e300) | st.just(math.inf) | st.just(math.nan)
HONEST = st.floats(0.5, 1.5)


@given(st.lists(NUMBERS, max_size=3 * WINDOW))
def test_nothing_passes_that_is_above_the_bound_of_its_moment(numbers):
    bound = RunningBound()
    for number in numbers:
        most = bound.bound(start=3.0, floor=0.1)
        kept = bound.take(number, start=3.0, floor=0.1)
        assert 0.0 <= kept <= most
        assert kept == number or not number <= most


def test_without_history_the_bound_is_the_one_to_begin_with():
    bound = RunningBound()
    for _ in range(LEAST):
        assert bound.bound(start=3.0, floor=0.1) == 3.0
        bound.take(1.0, start=3.0, floor=0.1)
    assert bound.bound(start=3.0, floor=0.1) == SLACK


@given(st.lists(HONEST, min_size=2 * WINDOW, max_size=4 * WINDOW), st.floats(10.0, 1e300))
def test_one_liar_among_three_peers_never_raises_the_bound_beyond_what_the_others_gave(numbers, lie):
    bound = RunningBound()
    for index, number in enumerate(numbers):
        kept = bound.take(lie if index % 3 == 2 else number, start=3.0, floor=0.1)
        assert kept <= SLACK * 1.5


@given(st.floats(1.0, 1e12))
def test_what_all_peers_show_is_cut_only_for_so_long_as_the_memory_needs_to_follow(rise):
    bound = RunningBound()
    for _ in range(WINDOW):
        bound.take(1.0, start=3.0, floor=0.1)
    cut = 0
    while bound.take(rise, start=3.0, floor=0.1) < rise:
        cut += 1
    assert cut <= (WINDOW // 2 + 1) * math.ceil(math.log(rise, SLACK)) if rise > 1.0 else cut == 0


def test_from_standing_still_it_rises_from_the_floor():
    bound = RunningBound()
    for _ in range(WINDOW):
        bound.take(0.0, start=3.0, floor=0.1)
    assert bound.take(1.0, start=3.0, floor=0.1) == pytest.approx(0.1)
    for _ in range(5 * WINDOW):
        bound.take(1.0, start=3.0, floor=0.1)
    assert bound.take(1.0, start=3.0, floor=0.1) == 1.0
