"""Scores and the choice of a peer, under a clock and a random generator of the test's own."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dpwa.config.sections import FlowControlOptions
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.membership import Membership


def _flow(peers: str = "abcd", **options: float) -> FlowControl:
    return FlowControl(peers, FlowControlOptions(**options), random.Random(0))


def test_equally_good_peers_are_asked_uniformly():
    flow = _flow()
    counts = Counter(flow.choose(0.0) for _ in range(8000))
    assert set(counts) == set("abcd")
    assert all(1850 < count < 2150 for count in counts.values())


def test_scores_rise_with_success_and_fall_with_failure_within_their_bounds():
    flow = _flow("ab")
    for _ in range(100):
        flow.succeeded("a")
        flow.answered("b")
        flow.failed("b", 0.0)
    assert flow.scores() == {"a": 1000, "b": 10}


def test_an_outage_costs_the_score_one_failure_however_often_the_peer_was_asked_meanwhile():
    flow = _flow("ab")
    for now_s in range(100):
        flow.failed("a", float(now_s))
    flow.succeeded("a")
    assert flow.scores()["a"] == 500 - 100 + 10


@pytest.mark.parametrize(("successes", "expected"), [(9, 10), (10, 500), (11, 1000)])
def test_a_peer_that_fails_again_and_again_loses_its_score_unless_ten_successes_pay_for_each_failure(
    successes, expected
):
    flow = _flow("ab")
    for now_s in range(60):
        flow.failed("a", float(now_s))
        flow.failed("a", now_s + 0.5)
        for _ in range(successes):
            flow.succeeded("a")
    flow.failed("a", 60.0)
    assert flow.scores()["a"] == pytest.approx(expected, abs=100)


def test_when_one_of_those_that_failed_together_answers_the_others_get_a_chance_at_once():
    flow = _flow("abcd", probe_max_s=1000.0)
    flow.failed("d", 0.0)
    for now_s in (20.0, 30.0, 40.0, 50.0):
        for peer in "abd":
            flow.failed(peer, now_s)
    assert not any(flow.may_ask(peer, 51.0) for peer in "abd")
    flow.succeeded("a")
    assert flow.may_ask("b", 51.0)
    assert not flow.may_ask("d", 51.0), "its outage is another one"
    flow.failed("b", 51.0)
    assert not flow.may_ask("b", 51.0 + 0.75 * 16), "it was one chance, and the pause has doubled once more"


def test_a_peer_that_fails_again_and_again_brings_no_dead_peer_forward():
    """One of a set that died together comes back, and goes on failing and answering for ten minutes."""
    flow = FlowControl([*range(20), "flapping", "good"], FlowControlOptions(), random.Random(2))
    asked, now_s = Counter(), 0.0
    for dead in [*range(20), "flapping"]:
        flow.failed(dead, now_s)
    while now_s < 600.0:
        peer = flow.choose(now_s)
        is_there = peer == "good" or (peer == "flapping" and int(now_s) % 20 < 10)
        now_s += 0.05 if is_there else 0.5
        asked[peer] += 1
        flow.succeeded(peer) if is_there else flow.failed(peer, now_s)
    # 1 + 2 + 4 + 8 + 16 s, and then every 30 s, as of a peer that died alone; and one more chance.
    assert asked["flapping"] > 100
    assert all(asked[dead] <= 4 + (600 - 31) / (0.75 * 30) + 2 for dead in range(20))


@pytest.mark.seconds
@pytest.mark.parametrize("asks_per_s", [10, 20])
def test_halves_that_were_cut_off_for_half_a_minute_have_all_asked_each_other_within_ten_seconds(asks_per_s):
    """Eight nodes that ask, each with a clock of its own; whoever is asked takes it for a hint."""
    names = "abcdefgh"
    for seed in range(3):
        flows = {
            name: FlowControl(names.replace(name, ""), FlowControlOptions(), random.Random(f"{seed} {name}"))
            for name in names
        }
        free_s = {name: index / (8 * asks_per_s) for index, name in enumerate(names)}
        met: dict[tuple[str, str], float] = {}
        while (now_s := min(free_s.values())) < 70.0:
            name = min(free_s, key=lambda each: free_s[each])
            peer = flows[name].choose(now_s)
            is_cut_off = peer is not None and 10.0 <= now_s < 40.0 and (name < "e") != (peer < "e")
            free_s[name] = now_s + (0.5 if is_cut_off else 1 / asks_per_s)
            if is_cut_off:
                flows[name].failed(peer, free_s[name])
            elif peer is not None:
                flows[name].succeeded(peer)
                flows[peer].hinted(name)
                if now_s >= 40.0:
                    met.setdefault((name, peer), now_s - 40.0)
        assert len(met) == 56
        assert max(met.values()) < 10.0


@pytest.mark.seconds
def test_after_three_failures_a_peer_is_asked_rarely_but_never_forgotten():
    flow = _flow("abcdefgh")
    for _ in range(3):
        flow.failed("a", 0.0)
    asked = Counter()
    for tick in range(100_000):  # 100 exchanges a second
        now_s = tick / 100
        peer = flow.choose(now_s)
        asked[peer] += 1
        flow.failed("a", now_s) if peer == "a" else flow.succeeded(peer)
    assert 0 < asked["a"] / 100_000 <= 0.01


def test_a_failing_peer_is_tried_again_after_a_pause_that_doubles_up_to_an_end():
    flow = _flow("a", probe_s=1.0, probe_max_s=8.0)
    now_s, pauses = 0.0, []
    for _ in range(8):
        flow.failed("a", now_s)
        start_s = now_s
        while flow.choose(now_s) is None:
            now_s += 0.01
        pauses.append(now_s - start_s)
    for pause, expected in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert 0.74 * expected <= pause <= 1.27 * expected


def test_a_peer_that_answers_again_is_healthy_at_once():
    flow = _flow("ab")
    flow.failed("a", 0.0)
    assert flow.is_failing("a")
    assert all(flow.choose(0.1) == "b" for _ in range(50))
    flow.succeeded("a")
    assert not flow.is_failing("a")
    assert "a" in {flow.choose(0.1) for _ in range(50)}


def test_a_restarted_peer_starts_with_a_clean_slate_when_it_has_answered_itself():
    flow = _flow("ab")
    for _ in range(10):
        flow.failed("a", 0.0)
    flow.hinted("a")
    assert flow.scores()["a"] == 400
    flow.answered_as("a", b"a new life")
    assert flow.scores()["a"] == 500
    assert "a" in {flow.choose(0.1) for _ in range(50)}


def test_a_peer_that_fails_in_the_life_in_which_it_has_answered_is_not_forgiven_once_more():
    flow = _flow("ab")
    flow.answered_as("a", b"a new life")
    flow.failed("a", 0.0)
    flow.answered_as("a", b"a new life")
    assert flow.is_failing("a")
    assert flow.scores()["a"] == 400


def test_a_failing_peer_that_asks_is_asked_at_once_whatever_its_pause():
    flow = _flow("abc")
    for _ in range(20):
        flow.failed("a", 0.0)
    assert "a" not in {flow.choose(0.1) for _ in range(50)}
    assert not flow.may_ask("a", 0.1)
    flow.hinted("a")
    assert flow.choose(0.1, {"b": 1.0}) == "b", "it is not among those to choose from"
    assert flow.choose(0.1) == "a"
    flow.answered("a")
    assert not flow.is_failing("a")


def test_a_failing_neighbour_that_asks_may_be_asked_in_a_round():
    flow = _flow("ab")
    flow.failed("a", 0.0)
    flow.hinted("a")
    assert flow.may_ask("a", 0.1)
    flow.failed("a", 0.6)
    flow.hinted("a")
    assert not flow.may_ask("a", 0.7), "the hint has just shown to be worth nothing"


def test_a_peer_that_does_well_gains_nothing_by_a_hint():
    flow = _flow("ab")
    flow.hinted("a")
    assert {flow.choose(0.0) for _ in range(50)} == {"a", "b"}


@pytest.mark.parametrize("cost_s", [0.5, 2.5], ids=["dead", "hung"])
@pytest.mark.parametrize("down", ["a", "abc"])
def test_forged_hints_take_less_than_half_of_the_time_even_if_they_never_end(down, cost_s):
    """Peers that are gone, and somebody who says all the time in their names that they are back."""
    flow = _flow("abcd")
    now_s = lost_s = 0.0
    exchanges = 0
    while now_s < 600.0:
        for peer in down:
            flow.hinted(peer)
        peer = flow.choose(now_s)
        if peer in down:
            now_s += cost_s
            lost_s += cost_s
            flow.failed(peer, now_s)
        else:
            now_s += 0.05
            exchanges += 1
            flow.succeeded(peer)
    assert lost_s < 0.4 * 600.0
    assert exchanges > 0.6 * 600.0 / 0.05


def test_hints_about_a_peer_that_never_answers_count_ever_more_seldom():
    flow = _flow("ab", probe_max_s=30.0)
    asked_s = []
    now_s = 0.0
    flow.failed("a", now_s)
    while now_s < 300.0:
        flow._standings["a"].due_s = 1e9  # what its pause alone would do is tested above
        flow.hinted("a")
        if flow.choose(now_s) == "a":
            asked_s.append(now_s)
            flow.failed("a", now_s)
        now_s += 0.1
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(asked_s)]
    assert asked_s[0] == 0.0
    assert pauses_s[:3] == pytest.approx([5.0, 10.0, 20.0], abs=0.2)
    assert max(pauses_s) == pytest.approx(30.0, abs=0.2)


def test_choice_among_some_peers_follows_their_weights():
    flow = _flow("abcd")
    chosen = Counter(flow.choose(0.0, {"a": 0.75, "b": 0.25}) for _ in range(4000))
    assert set(chosen) == {"a", "b"}
    assert chosen["a"] / 4000 == pytest.approx(0.75, abs=0.05)
    assert flow.choose(0.0, {"a": 0.75, "b": 0.25}, without=["a"]) == "b"
    assert flow.choose(0.0, {"a": 1.0}, without=["a"]) is None


def test_hundreds_of_dead_peers_leave_nine_of_ten_exchanges_to_the_living():
    flow = FlowControl([*range(300), "alive"], FlowControlOptions(), random.Random(1))
    for dead in range(300):
        flow.failed(dead, 0.0)
    chosen = Counter(flow.choose(1e6) == "alive" for _ in range(2000))
    assert chosen[True] > 1700


def test_no_peer_at_all_is_no_choice():
    assert _flow("").choose(0.0) is None


class FlowControlMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: a choice is legal, and no peer waits longer than the longest pause."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = _flow("abc", probe_max_s=30.0)
        self.now_s = 0.0

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(peer=st.sampled_from("abc"))
    def success(self, peer: str) -> None:
        self.flow.succeeded(peer)

    @rule(peer=st.sampled_from("abc"))
    def failure(self, peer: str) -> None:
        self.flow.failed(peer, self.now_s)

    @rule(peer=st.sampled_from("abc"), life=st.binary(min_size=8, max_size=8))
    def restart(self, peer: str, life: bytes) -> None:
        self.flow.answered_as(peer, life)

    @rule(peer=st.sampled_from("abc"))
    def hint(self, peer: str) -> None:
        self.flow.hinted(peer)

    @invariant()
    def scores_stay_in_bounds(self) -> None:
        assert all(10 <= score <= 1000 for score in self.flow.scores().values())

    @invariant()
    def somebody_is_asked_when_somebody_can_be(self) -> None:
        peer = self.flow.choose(self.now_s)
        assert peer is not None or all(self.flow.is_failing(name) for name in "abc")

    @invariant()
    def nobody_is_forgotten(self) -> None:
        later_s = self.now_s + 30.0 * 1.25
        assert {self.flow.choose(later_s) for _ in range(400)} >= {
            name for name in "abc" if not self.flow.is_failing(name)
        }
        assert self.flow.choose(later_s) is not None


TestFlowControlMachine = FlowControlMachine.TestCase
TestFlowControlMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_membership_notes_peers_and_no_strangers():
    membership = Membership(["a", "b"])
    assert membership["a"].incarnation is None
    assert membership.heard("a", b"12345678", finished=True)
    assert membership["a"].finished
    assert not membership.heard("stranger", b"12345678", finished=False)
    assert not membership.hint("stranger", finished=True)
    assert list(membership.take_hints()) == []
    with pytest.raises(KeyError):
        membership["stranger"]


def test_what_a_peer_says_of_its_steps_never_goes_back_within_a_life_and_begins_anew_with_the_next():
    membership = Membership(["a"])
    membership.heard("a", b"12345678", finished=False, step=7, loss=0.5, origin=b"orig")
    membership.heard("a", b"12345678", finished=False, step=9)
    assert (membership["a"].step, membership["a"].loss, membership["a"].origin) == (9, (7, 0.5), b"orig")
    membership.heard("a", b"12345678", finished=False, step=8, loss=0.4)  # a snapshot that was set aside
    assert (membership["a"].step, membership["a"].loss) == (9, (8, 0.4))
    membership.heard("a", b"87654321", finished=False, step=1)
    assert (membership["a"].step, membership["a"].loss, membership["a"].origin) == (1, None, bytes(4))


def test_a_node_that_finishes_gives_every_failing_peer_its_next_chance_at_once():
    control = FlowControl(["a", "b"], FlowControlOptions(), random.Random(1))
    for peer in ("a", "b"):
        control.failed(peer, 0.0)
    assert control.choose(0.1) is None
    control.retry(0.1)
    assert control.choose(0.1) in ("a", "b")


def test_what_a_request_says_is_a_hint_and_no_fact():
    membership = Membership(["a", "b"])
    assert membership.hint("a", finished=True)
    assert membership.hint("a", finished=True)
    assert not membership["a"].finished
    assert membership["a"].incarnation is None
    assert membership.may_have_left("a")
    assert not membership.may_have_left("b")
    assert list(membership.take_hints()) == ["a"]
    assert list(membership.take_hints()) == []
    membership.hint("a", finished=False)
    assert not membership.may_have_left("a")


def test_when_all_peers_fail_this_node_is_the_suspect_and_their_failures_are_forgotten():
    flow = FlowControl(["a", "b", "c"], FlowControlOptions(), random.Random(0))
    flow.succeeded("a")
    before = flow.scores()
    for now_s in range(1, 6):
        for peer in ("a", "b", "c"):
            flow.failed(peer, float(now_s))
    assert all(score < before[peer] for peer, score in flow.scores().items()), "meanwhile each is left alone"
    flow.answered("b")
    assert flow.scores() == before
    assert not any(flow.is_failing(peer) for peer in ("a", "b", "c"))


def test_a_peer_that_had_failed_before_all_others_did_is_still_failing():
    flow = FlowControl(["a", "b", "c"], FlowControlOptions(), random.Random(0))
    flow.failed("c", 1.0)
    flow.answered("a")
    alone = flow.scores()["c"]
    for peer in ("a", "b", "c"):
        flow.failed(peer, 2.0)
    flow.answered("a")
    assert flow.is_failing("c")
    assert flow.scores()["c"] == alone
    assert not flow.is_failing("b")


def test_while_anybody_answers_the_others_failures_are_their_own():
    flow = FlowControl(["a", "b", "c"], FlowControlOptions(), random.Random(0))
    for peer in ("b", "c"):
        flow.failed(peer, 1.0)
    flow.answered("a")
    assert flow.is_failing("b")
    assert flow.is_failing("c")


def test_of_a_single_peer_nobody_can_say_whose_fault_it_was():
    flow = FlowControl(["a"], FlowControlOptions(), random.Random(0))
    before = flow.scores()["a"]
    flow.failed("a", 1.0)
    flow.answered("a")
    assert flow.scores()["a"] < before
