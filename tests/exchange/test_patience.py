"""How long the first word of an answer is waited for."""

from __future__ import annotations

from dpwa.exchange.patience import Patience


def test_a_peer_that_was_silent_is_waited_for_a_fifth_of_the_timeout_until_it_answers_again():
    patience = Patience(2.5)
    assert patience.first_word_s("w2") == 2.5
    patience.answered("w2", 0.01)
    assert patience.first_word_s("w2") == 2.5
    patience.was_silent("w2")
    assert patience.first_word_s("w2") == 0.5
    assert patience.first_word_s("w3") == 2.5
    patience.answered("w2", 0.01)
    assert patience.first_word_s("w2") == 2.5


def test_a_peer_whose_answers_take_long_is_waited_for_longer_but_never_beyond_the_timeout():
    patience = Patience(2.5)
    patience.answered("slow", 0.3)
    patience.answered("slower", 1.2)
    patience.answered("slow", 0.01)  # one fast answer does not make it a fast peer
    for peer in ("slow", "slower", "unknown"):
        patience.was_silent(peer)
    assert 1.0 < patience.first_word_s("slow") < 1.2
    assert patience.first_word_s("slower") == 2.5
    assert patience.first_word_s("unknown") == 2.5  # it may be as slow as the slowest


def test_a_peer_that_never_answered_is_taken_to_be_like_the_others():
    patience = Patience(2.5)
    patience.was_silent("w2")
    assert patience.first_word_s("w2") == 2.5, "nobody has answered yet"
    patience.answered("w3", 0.02)
    assert patience.first_word_s("w2") == 0.5
