"""The rules linear and loss_divergence of the 2017 dpwa's first version: formulas, limits, and files that name them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.errors import ConfigError
from dpwa.interpolation.interpolator import Interpolator
from dpwa.interpolation.rules import Constant, Linear, LossDivergence
from dpwa.schedule import LinearSchedule
from dpwa.snapshot.state import State

PEER = State(1.0, 100.0)
shares = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)

ITEMS = [
    "- nodes:\n  - {name: w1, host: localhost, port: 45000}\n  - {name: w2, host: localhost, port: 45001}\n",
    "- pull_probability: 1\n",
    "- timeout_ms: 2500\n",
    "- interpolation: loss_divergence\n",
    "- constant: { value: 0.5 }\n",
    "- linear: { start: 0.5, end: 0.05, target: 5000 }\n",
    "- clock: 0\n",
    "- loss: 0\n",
    "- loss_divergence: { target_divergence_loss: 0.2 }\n",
]
"""A file of the first version, item by item."""


# ---- linear ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "factor"), [(0, 0.5), (1000, 0.41), (2500, 0.275), (4999, 0.05009), (5000, 0.05), (9e9, 0.05)]
)
def test_linear_goes_from_start_to_end_with_this_nodes_clock_and_stays(clock, factor):
    rule = Linear(start=0.5, end=0.05, target=5000)
    for peer_clock in (0.0, 100.0, 1e9):
        assert rule.factor(State(None, float(clock)), State(None, peer_clock)) == pytest.approx(factor, abs=1e-12)


@given(start=shares, end=shares, target=positive, clock=st.floats())
def test_linear_stays_between_start_and_end_whatever_the_clock(start, end, target, clock):
    factor = Linear(start=start, end=end, target=target).factor(State(None, clock), PEER)
    assert min(start, end) <= factor <= max(start, end)
    constant = Constant(LinearSchedule(start=start, end=end, over=target))
    assert constant.factor(State(None, clock), PEER) == factor


def test_linear_names_every_option_that_is_out_of_its_limits():
    with pytest.raises(ConfigError) as caught:
        Linear(start=1.5, end=math.nan, target=0)
    assert [problem.split(" of ")[0] for problem in caught.value.problems] == ["start", "end", "target"]


# ---- loss_divergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "peer", "factor"),
    [
        (3.0, 1.0, 0.9),  # the peer is better: take most of it
        (1.0, 3.0, 0.1),
        (0.2, 0.2, 0.5),
        (0.1, 0.1, 0.25),  # half of the target: half of the factor
        (0.05, 0.1, 0.2 * 0.25),
        (1.0, 0.0, 1.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
        (-1.0, 1.0, 0.0),
        (1.0, -1.0, 1.0),
        (1e200, 1e200, 0.5),  # whose squares overflow
        (1e-200, 1e-200, 0.5 * 1e-200 / 0.2),  # and whose squares are zero
    ],
)
def test_loss_divergence_weighs_squares_and_shrinks_below_its_target(own, peer, factor):
    rule = LossDivergence(target_divergence_loss=0.2)
    assert rule.factor(State(own, 1.0), State(peer, 1.0)) == pytest.approx(factor, rel=1e-12)


@given(own=finite, peer=finite)
def test_loss_divergence_is_the_first_versions_formula(own, peer):
    own, peer = abs(own) % 1e6 + 1e-6, abs(peer) % 1e6 + 1e-6
    expected = own**2 / (own**2 + peer**2) * min(own / 0.2, 1.0)
    assert LossDivergence(0.2).factor(State(own, 0.0), State(peer, 0.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("own", "peer", "factor"), [(None, 1.0, 0.5), (None, None, 0.5), (1.0, None, 0.5), (0.1, None, 0.25)]
)
def test_an_unknown_loss_weighs_the_same_under_loss_divergence(own, peer, factor):
    assert LossDivergence(0.2).factor(State(own, 1.0), State(peer, 1.0)) == factor


@given(own=st.none() | finite, peer=st.none() | finite, target=positive)
def test_loss_divergence_is_a_share_whatever_the_losses(own, peer, target):
    assert 0 <= LossDivergence(target).factor(State(own, 1.0), State(peer, 1.0)) <= 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_divergence_takes_nothing_from_a_diverged_peer_and_what_it_may_from_a_healthy_one(loss):
    guarded = Interpolator(LossDivergence(), factor_max=0.9)
    assert guarded.factor(State(1.0, 1.0), State(loss, 1.0)) == 0
    assert guarded.factor(State(loss, 1.0), State(1.0, 1.0)) == 0.9


@pytest.mark.parametrize("target", [0, -1, math.nan, math.inf, "1"])
def test_loss_divergence_refuses_a_target_that_is_none(target):
    with pytest.raises(ConfigError, match="target_divergence_loss of interpolation loss_divergence: expected"):
        LossDivergence(target)


# ---- In the cluster file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(len(ITEMS)))
def test_a_file_of_the_first_version_loads_in_any_order(tmp_path, turn):
    path = tmp_path / "config.yaml"
    path.write_text("---\n" + "\n".join(itertools.chain(ITEMS[turn:], ITEMS[:turn])))
    config = ClusterConfig.load(path)
    rule = config.interpolator().rule
    assert isinstance(rule, LossDivergence)
    assert rule.target_divergence_loss == 0.2
    assert (config.linear.start, config.linear.end, config.linear.target) == (0.5, 0.05, 5000)
    assert (config.constant.value, config.pull_probability, config.timeout_ms) == (0.5, 1, 2500)
    assert ClusterConfig.from_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear", "The factor: 0.5, falling in a straight line to 0.05 at update 5,000."),
        ("loss_divergence", "shrinks while this node's loss is below 0.2."),
    ],
)
def test_check_says_what_the_rules_of_the_first_version_do(name, words):
    text = "".join(ITEMS).replace("interpolation: loss_divergence", f"interpolation: {name}")
    assert words in describe(ClusterConfig.from_text(text), ["w1"])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("target: 5000", "target: 0", "8:44: linear.target: expected a number above 0, got 0"),
        ("target: 5000", "goal: 5000", "8:36: linear.goal: unknown key, known here: start, end, target"),
        ("loss: 0.2", "loss: x", '11:46: loss_divergence.target_divergence_loss: expected a number above 0, got "x"'),
        ("{ target_divergence_loss", "{ divergence_loss", 'did you mean "target_divergence_loss"?'),
        ("clock: 0", "clock: {power: 2}", "9:11: clock.power: unknown key, expected no keys here"),
        ("interpolation: loss_divergence", "interpolation: lineer", 'did you mean "linear"?'),
    ],
)
def test_what_is_wrong_inside_a_file_of_the_first_version_is_told_with_its_line(tmp_path, old, new, problem):
    path = tmp_path / "c.yaml"
    path.write_text("".join(ITEMS).replace(old, new))
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.load(path)
    (only,) = caught.value.problems
    assert problem in only


def test_a_linear_factor_that_is_always_zero_is_warned_of():
    config = ClusterConfig.for_localhost(2, interpolation="linear", linear={"start": 0, "end": 0})
    assert "the factor is always 0" in describe(config, ["w1"])
