"""The bandwidth limit: simulations of whole nodes under a virtual clock, and the closed forms of small cases."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.exchange.budget import WINDOW_S, Budget


@dataclass
class Link:
    """A node that steps, asks and receives.

    Attributes:
        step_s: seconds of a step.
        exchange_s: seconds of an exchange, longest; half of it arrives at its beginning, the rest at its end.
        codec: received bytes per byte of the model.
        failing: share of exchanges that end early.
        pause: chance of a step that is followed by a pause of up to a minute.
    """

    step_s: float
    exchange_s: float = 0.0
    codec: float = 1.0
    failing: float = 0.0
    pause: float = 0.0
    seed: int = 0

    def run(self, budget, model_bytes, duration_s):
        """The fractions that were pulled, and what arrived when: pairs of seconds and bytes, in order."""
        rng = random.Random(self.seed)
        fractions, arrived = [], []
        now_s, step = 0.0, 0
        while now_s < duration_s and step < 20_000:
            fraction = budget.next_fraction(now_s, self.step_s)
            ends_s = now_s
            if fraction is not None:
                complete = rng.random() >= self.failing
                received = int(fraction * model_bytes * self.codec * (1 if complete else rng.random()))
                ends_s = now_s + self.exchange_s * rng.random()
                fractions.append(fraction)
                arrived += [(now_s, received // 2), (ends_s, received - received // 2)]
                budget.spent(received, ends_s, complete=complete)
            step += 1
            if rng.random() < self.pause:
                ends_s += rng.uniform(0, 60)
            now_s = max(now_s + self.step_s, ends_s)
        return fractions, arrived


def windows(arrived):
    """The bytes that arrived in the 10 s from each arrival on."""
    sums, last, inside = [], 0, 0
    for begin_s, received in arrived:
        while last < len(arrived) and arrived[last][0] < begin_s + WINDOW_S:
            inside += arrived[last][1]
            last += 1
        sums.append(inside)
        inside -= received
    return sums


def log_uniform(low, high):
    return st.floats(0, 1).map(lambda share: low * (high / low) ** share)


@pytest.mark.seconds
@settings(deadline=None, max_examples=120)
@given(
    limit=log_uniform(1e3, 1e9),
    model_bytes=log_uniform(1e4, 1e9).map(int),
    step_s=log_uniform(1e-3, 10),
    exchange_s=st.sampled_from([0.0, 0.01, 0.3, 2.5]),
    codec=st.sampled_from([1.0, 0.25]),
    failing=st.sampled_from([0.0, 0.3, 0.9]),
    pause=st.sampled_from([0.0, 0.001, 0.1]),
    most_fraction=st.sampled_from([1.0, 0.3, 0.01]),
    seed=st.integers(0, 2**32),
)
def test_no_ten_seconds_exceed_the_limit_by_more_than_a_tenth(limit, model_bytes, step_s, most_fraction, **link):
    budget = Budget(limit, model_bytes=model_bytes, most_fraction=most_fraction)
    fractions, arrived = Link(step_s, **link).run(budget, model_bytes, duration_s=max(40, 30 * step_s))
    # The exception that Budget states: one least part that is larger than the window, alone in it.
    least_part = model_bytes * min(1 / 16, most_fraction)
    allowed = max(1.1 * WINDOW_S * limit, least_part)
    assert max(windows(arrived), default=0) <= allowed + 16, "16 bytes: prices are learned from whole bytes"
    assert all(min(1 / 16, most_fraction) <= fraction <= most_fraction for fraction in fractions)


@pytest.mark.parametrize("limit", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("step_s", [0.001, 0.03, 0.25, 0.7])
@pytest.mark.parametrize("codec", [1.0, 0.25])
@pytest.mark.parametrize("model_s", [0.1, 1, 10], ids=lambda seconds: f"model of {seconds} s")
def test_where_exchanges_could_use_it_all_every_ten_seconds_come_within_a_tenth(limit, step_s, codec, model_s):
    model_bytes = int(limit * max(model_s, 2 * step_s) / codec)
    budget = Budget(limit, model_bytes=model_bytes)
    link = Link(step_s, codec=codec)
    _, arrived = link.run(budget, model_bytes, duration_s=35)
    arrived = [(at_s, received) for at_s, received in arrived if at_s >= 2]  # the first price was a guess
    last_s = arrived[-1][0]
    whole = [
        used for (at_s, _), used in zip(arrived, windows(arrived), strict=True) if at_s + WINDOW_S <= last_s + 1e-6
    ]
    assert whole
    assert 0.9 * WINDOW_S * limit <= min(whole) <= max(whole) <= 1.1 * WINDOW_S * limit


@pytest.mark.parametrize("failing", [0.3, 0.9])
def test_what_failed_exchanges_did_not_receive_is_left_to_the_next(failing):
    budget = Budget(1e6, model_bytes=10**7)
    _, arrived = Link(0.05, codec=0.25, failing=failing).run(budget, 10**7, duration_s=100)
    assert sum(received for _, received in arrived) == pytest.approx(100e6, rel=0.05)


@pytest.mark.parametrize("step_s", [1.5, 2.0, 3.0, 4.0, 5.1, 6.0, 8.0, 9.9, 10.0])
def test_with_long_steps_the_window_goes_before_the_full_use(step_s):
    budget = Budget(1e6, model_bytes=10**8, least_fraction=1e-3)
    _, arrived = Link(step_s).run(budget, 10**8, duration_s=1000)
    mean = sum(received for _, received in arrived) / 1000
    assert 0.54e6 <= mean <= 1.02e6
    assert max(windows(arrived)) <= 1.1 * WINDOW_S * 1e6


@pytest.mark.parametrize("part_s", [11, 30, 1000])
def test_a_part_larger_than_the_window_comes_alone_and_the_mean_is_right(part_s):
    model_bytes = 16 * part_s * 1000
    budget = Budget(1e3, model_bytes=model_bytes)
    fractions, arrived = Link(0.5).run(budget, model_bytes, duration_s=9_900)
    assert max(windows(arrived)) == part_s * 1000
    assert fractions[0] == 1 / 16
    assert sum(received for _, received in arrived) == pytest.approx(9_900e3, rel=0.15)


def test_each_step_has_a_small_part_instead_of_some_steps_a_whole_model():
    budget = Budget(1e6, model_bytes=10**7)
    fractions, _ = Link(1.0).run(budget, 10**7, duration_s=100)
    assert len(fractions) == 100
    assert fractions[-1] == pytest.approx(0.1), "a step brings a tenth of the model"


def test_exchanges_come_less_often_where_the_least_part_is_too_much_for_each_step():
    budget = Budget(1e6, model_bytes=1_600_000, least_fraction=1 / 16)
    fractions, _ = Link(0.02).run(budget, 1_600_000, duration_s=100)
    assert len(fractions) == pytest.approx(1000, rel=0.02), "a part costs what five steps bring"
    assert max(fractions[100:]) == pytest.approx(1 / 16)


def test_a_limit_above_what_exchanges_need_changes_nothing():
    budget = Budget(1e9, model_bytes=10**6, most_fraction=0.5)
    fractions, _ = Link(0.1).run(budget, 10**6, duration_s=20)
    assert fractions == [0.5] * len(fractions)
    assert len(fractions) >= 199


def test_without_a_limit_everything_is_pulled():
    budget = Budget(None, model_bytes=10**9, most_fraction=0.7)
    budget.spent(10**12, 0.0)
    assert budget.next_fraction(0.0, 0.001) == 0.7


def test_an_idle_hour_does_not_save_up_for_a_flood():
    budget = Budget(1e6, model_bytes=10**8, least_fraction=1e-6)
    Link(0.1).run(budget, 10**8, duration_s=20)
    assert budget.next_fraction(3600.0, 0.1) == pytest.approx(0.008), "0.8 s of the limit"


def test_exchanges_that_cost_nothing_leave_the_budget_as_it_is():
    budget = Budget(1e6, model_bytes=10**6)
    first = budget.next_fraction(0.0, 0.1)
    assert budget.next_fraction(0.0, 0.1) == first
    budget.spent(0, 0.0)
    assert budget.next_fraction(0.0, 0.1) == first


def test_a_peer_that_sends_dearer_bytes_is_paid_off_before_the_next_exchange():
    budget = Budget(1e6, model_bytes=10**7, least_fraction=1e-3)
    Link(0.1, codec=0.25).run(budget, 10**7, duration_s=20)
    fraction = budget.next_fraction(20.0, 0.1)
    budget.spent(int(fraction * 10**7), 20.0)
    debt_s = fraction * 10 * 3 / 4
    assert budget.next_fraction(20.0 + 0.9 * debt_s, 0.1) is None
    following = budget.next_fraction(20.1 + debt_s, 0.1)
    assert following == pytest.approx(0.01, rel=0.2), "planned at the new price at once"


def test_one_cut_short_says_nothing_of_the_price():
    budget = Budget(1e6, model_bytes=10**6)
    assert budget.next_fraction(0.0, 0.1) == pytest.approx(0.8)
    budget.spent(1000, 0.0, complete=False)
    assert budget.next_fraction(0.0, 0.1) == pytest.approx(0.799)
    budget.spent(199_750, 0.0)
    assert budget.next_fraction(0.0, 0.1) == 1.0, "a quarter of the price was learned"


def test_a_clock_that_stands_still_or_goes_back_brings_nothing():
    budget = Budget(1e6, model_bytes=10**6)
    budget.spent(int(10**6 * budget.next_fraction(5.0, 0.1)), 5.0)
    assert budget.next_fraction(5.0, 0.1) is None
    assert budget.next_fraction(4.0, 0.1) is None


@pytest.mark.parametrize(
    ("limit", "sizes", "message"),
    [
        (0, {"model_bytes": 1}, "bandwidth limit"),
        (-1.0, {"model_bytes": 1}, "bandwidth limit"),
        (1.0, {"model_bytes": 0}, "size of the model"),
        (1.0, {"model_bytes": 1, "least_fraction": 0}, "fractions"),
        (1.0, {"model_bytes": 1, "most_fraction": 1.5}, "fractions"),
    ],
)
def test_what_cannot_be_is_refused(limit, sizes, message):
    with pytest.raises(ValueError, match=message):
        Budget(limit, **sizes)
