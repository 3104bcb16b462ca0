"""How long an answer is waited for: its first word, and the rest of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.exchange.patience import Patience


def answering(*times_s: float, peer: str = "w2") -> Patience:
    patience = Patience(2.5, 60.0)
    for time_s in times_s:
        patience.answered(peer, time_s)
    return patience


def test_a_peer_of_which_nothing_is_known_is_waited_for_in_full():
    assert answering().first_word_s("w2") == 2.5


def test_a_peer_that_answers_fast_is_given_up_early_and_after_a_silence_earlier_still():
    patience = answering(0.01, 0.02, 0.01)
    assert patience.first_word_s("w2") == 1.0
    patience.was_silent("w2")
    assert patience.first_word_s("w2") == 0.5
    assert patience.first_word_s("w3") == 2.5
    patience.answered("w2", 0.01)
    assert patience.first_word_s("w2") == 1.0


def test_the_first_word_is_waited_for_the_median_and_six_deviations():
    assert answering(1.0, 1.2, 1.3).first_word_s("w2") == pytest.approx(1.2 + 6 * 0.1)
    assert answering(1.0, 1.6, 2.2).first_word_s("w2") == 2.5, "never beyond the timeout"
    assert answering(1.2, 1.2, 1.2, 9.9).first_word_s("w2") == pytest.approx(1.2), "one slow answer changes nothing"


def test_what_was_long_ago_counts_no_more():
    assert answering(*[2.0] * 16, *[0.01] * 16).first_word_s("w2") == 1.0


def test_a_silent_peer_that_never_answered_is_taken_to_be_like_the_slowest_of_the_others():
    patience = Patience(2.5, 60.0)
    patience.was_silent("w2")
    assert patience.first_word_s("w2") == 2.5, "nobody has answered yet"
    patience.answered("w3", 0.02)
    patience.answered("w4", 1.5)
    assert patience.first_word_s("w2") == pytest.approx(1.5)


def test_a_large_model_over_a_slow_link_is_given_the_time_that_it_needs():
    """45 MB over 100 Mbit/s take 3.6 s."""
    patience = Patience(2.5, 60.0)
    assert patience.rest_s("w2", 45e6) == 60.0, "of a new link nothing is known"
    assert patience.rest_s("w2", 5e6) == pytest.approx(20.0)
    patience.received("w2", 45_000_000, 3.6)
    assert patience.rest_s("w2", 45e6) == pytest.approx(7.2)
    assert patience.rest_s("w2", 1e6) == 2.5
    assert patience.rest_s("w3", 45e6) == pytest.approx(7.2), "like the slowest that is known"


def test_a_transfer_that_was_given_up_says_how_slow_the_link_is():
    patience = Patience(2.5, 60.0)
    for _ in range(3):
        patience.received("w2", 45_000_000, 1.0)
    for _ in range(4):
        patience.received("w2", 10_000_000, 2.5)
    assert patience.rest_s("w2", 45e6) > 11.25


def test_a_short_answer_says_nothing_about_the_speed():
    patience = Patience(2.5, 60.0)
    patience.received("w2", 100, 0.05)
    assert patience.rest_s("w2", 5e6) == pytest.approx(20.0)


@given(
    words=st.lists(st.floats(0, 1e6), max_size=40),
    rests=st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1e6)), max_size=40),
    silent=st.booleans(),
    wanted=st.floats(0, 1e15),
)
def test_whatever_was_measured_both_waits_keep_within_their_bounds(words, rests, silent, wanted):
    patience = answering(*words)
    for size, time_s in rests:
        patience.received("w2", size, time_s)
    if silent:
        patience.was_silent("w2")
    assert 0.5 <= patience.first_word_s("w2") <= 2.5
    assert 2.5 <= patience.rest_s("w2", wanted) <= 60.0
