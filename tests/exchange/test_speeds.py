"""How fast a node is beside its peers, from counts of steps: the policy, closed forms, and what a liar can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.exchange.speeds import LEAST_SPEED, Speeds, settled
from dpwa.snapshot.state import MAX_COUNTER

LIFE, NEXT_LIFE = bytes(8), bytes([1] * 8)


def met(speeds: Speeds, own: int, **peers: float) -> None:
    """Each peer, which makes so many steps for one of this node's, is heard after so many of them."""
    for peer, ratio in peers.items():
        speeds.heard(peer, LIFE, own, int(ratio * own))
    speeds.look(own, peers)


def followed(speeds: Speeds, steps: int, every: int = 1, **peers: float) -> None:
    for own in range(0, steps, every):
        met(speeds, own, **peers)


# --- The speed to use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "seen", "after"),
    [
        (1.0, 1.0, 1.0),
        (1.0, 0.85, 1.0),  # not clearly slower
        (1.0, 0.8, 0.8),
        (0.8, 0.85, 0.8),  # not clearly another one
        (0.8, 0.92, 1.0),  # as fast as the fastest
        (0.8, 5.0, 1.0),
        (0.5, 0.25, 0.25),
        (0.25, 0.27, 0.25),
        (0.25, 0.28, 0.28),
        (0.25, 0.5, 0.5),
        (0.25, 0.001, LEAST_SPEED),
    ],
)
def test_a_speed_changes_when_it_is_clearly_another(before, seen, after):
    assert settled(before, seen) == after


@given(before=st.floats(LEAST_SPEED, 1), seen=st.floats(1e-9, 1e9))
def test_a_speed_is_bounded_and_settles_at_once(before, seen):
    speed = settled(before, seen)
    assert LEAST_SPEED <= speed <= 1.0
    assert settled(speed, seen) == speed


@given(seen=st.lists(st.floats(0.93, 1.07), min_size=1, max_size=50))
def test_noise_between_equal_nodes_changes_nothing(seen):
    speed = 1.0
    for one in seen:
        speed = settled(speed, one)
    assert speed == 1.0


# --- Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0, 9.0])
def test_the_speed_is_one_over_the_ratio_of_the_steps(ratio):
    speeds = Speeds(50)
    followed(speeds, 400, w1=ratio, w2=1.0, w3=0.5)
    assert speeds.speed == pytest.approx(1 / ratio, rel=0.2)  # the first one that is known well enough is kept
    assert speeds.fastest == "w1"


def test_the_fastest_and_its_equals_keep_theirs():
    speeds = Speeds(50)
    followed(speeds, 400, w1=1.0, w2=0.25, w3=0.9)
    assert (speeds.speed, speeds.fastest) == (1.0, None)


def test_a_slow_node_knows_before_it_has_made_its_share_of_the_steps():
    """Four times slower, and asking by itself alone: with H = 50 its share is 12 or 13 steps."""
    speeds, peers = Speeds(50), ["w1", "w2", "w3"]
    for own in range(1, 13):
        asked = speeds.question(own, peers) if own >= speeds.next_question else None
        if asked is not None:
            speeds.heard(asked, LIFE, own, 4 * own)
        speeds.look(own, peers)
    assert speeds.speed == pytest.approx(0.25, rel=0.1)


def test_too_few_steps_say_nothing():
    speeds = Speeds(50)
    speeds.heard("w1", LIFE, 0, 0)
    for own, theirs in [(3, 100), (7, 16)]:
        speeds.heard("w1", LIFE, own, theirs)
        speeds.look(own, ["w1"])
        assert speeds.speed == 1.0


def test_a_speed_that_changes_is_followed():
    speeds, theirs = Speeds(50), 0.0
    for own in range(1000):
        theirs += 4.0 if own < 500 else 1.0
        speeds.heard("w1", LIFE, own, int(theirs))
        speeds.look(own, ["w1"])
        if own == 499:
            assert speeds.speed == pytest.approx(0.25, rel=0.2)
    assert speeds.speed == 1.0


def test_a_new_life_counts_from_its_own_beginning():
    speeds = Speeds(50)
    followed(speeds, 200, w1=1.0)
    speeds.heard("w1", NEXT_LIFE, 200, 0)
    speeds.look(200, ["w1"])
    assert speeds.speed == 1.0
    for own in range(201, 260):
        speeds.heard("w1", NEXT_LIFE, own, 2 * (own - 200))
        speeds.look(own, ["w1"])
    assert speeds.speed == pytest.approx(0.5, rel=0.2)


def test_the_fastest_that_is_gone_or_has_finished_no_longer_counts():
    speeds = Speeds(50)
    followed(speeds, 200, w1=4.0, w2=1.0)
    assert speeds.speed < 0.3
    assert speeds.look(200, ["w2"])
    assert speeds.speed == 1.0


def test_the_fastest_that_has_fallen_silent_is_forgotten_after_a_while():
    speeds = Speeds(50)
    followed(speeds, 200, w1=4.0, w2=1.0)
    for own in range(200, 300):
        speeds.heard("w2", LIFE, own, own)
        speeds.look(own, ["w1", "w2"])
        assert own > 250 or speeds.speed < 0.3
    assert speeds.speed == 1.0


@given(
    words=st.lists(
        st.tuples(
            st.sampled_from(["w1", "w2"]),
            st.sampled_from([LIFE, NEXT_LIFE]),
            st.integers(0, 200),
            st.integers(0, MAX_COUNTER),
        ),
        max_size=60,
    ),
    every=st.integers(1, 1_000_000),
)
def test_whatever_peers_say_the_speed_stays_in_its_bounds(words, every):
    speeds, own = Speeds(every), 0
    for peer, life, more, theirs in words:
        own += more
        speeds.heard(peer, life, own, theirs)
        speeds.look(own, ["w1", "w2"])
        assert LEAST_SPEED <= speeds.speed <= 1.0


def test_a_peer_that_has_lied_once_is_believed_again_when_it_has_made_as_many_steps_and_counts_for_nothing_before():
    speeds = Speeds(50)
    followed(speeds, 200, w1=1.0, w2=1.0)
    speeds.heard("w1", LIFE, 200, MAX_COUNTER)
    speeds.look(200, ["w1", "w2"])
    assert speeds.speed == LEAST_SPEED
    for own in range(201, 300):
        met(speeds, own, w1=1.0, w2=1.0)
    assert speeds.speed == 1.0


# --- Questions --------------------------------------------------------------------------------------------------------


def questions(speeds: Speeds, steps: int, peers: list[str]) -> list[tuple[int, str]]:
    asked = []
    for own in range(1, steps + 1):
        if own >= speeds.next_question:
            peer = speeds.question(own, peers)
            if peer is not None:
                asked.append((own, peer))
    return asked


def test_peers_are_asked_in_turn_sixteen_times_between_two_outer_steps():
    asked = questions(Speeds(160), 160, ["w1", "w2", "w3"])
    assert asked == [(1 + 10 * turn, f"w{1 + turn % 3}") for turn in range(16)]


def test_whoever_was_heard_a_moment_ago_is_not_asked():
    speeds, asked = Speeds(160), []
    for own in range(1, 161):
        speeds.heard("w1", LIFE, own, own)
        if own >= speeds.next_question and (peer := speeds.question(own, ["w1", "w2"])) is not None:
            asked.append(peer)
    assert asked == ["w2"] * 16


def test_nobody_is_asked_where_nobody_is():
    assert questions(Speeds(16), 50, []) == []
