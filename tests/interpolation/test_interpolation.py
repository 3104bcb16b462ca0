"""The rules, their registry, and the guards around every rule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import ConfigError
from dpwa.interpolation.interpolator import Interpolator, LossSmoother
from dpwa.interpolation.registry import find_rule, register, resolve
from dpwa.interpolation.rules import Clock, Consensus, Constant, Linear, Loss, LossDivergence, Staleness
from dpwa.snapshot.state import State

any_float = st.floats()
any_state = st.builds(State, loss=st.none() | any_float, clock=any_float)
healthy_state = st.builds(
    State,
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    clock=st.floats(min_value=0, allow_nan=False, allow_infinity=False),
)
bounds = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


class Answer:
    """A rule that answers what it was told to."""

    def __init__(self, answer):
        self.answer = answer

    def factor(self, _own, _peer):
        return self.answer


class Dividing:
    def factor(self, own, peer):
        return own.loss / peer.loss


class LogOfPeer:
    def factor(self, _own, peer):
        return math.log(peer.clock) + math.sqrt(peer.loss)


class Forgetful:
    def factor(self, own, _peer):
        return own.loss * 0.5


rules = st.sampled_from(
    [Constant(0.5), Constant(0), Constant(1), Linear(), Clock(), Loss(), LossDivergence(), Staleness()]
) | st.builds(Answer, any_float)


@pytest.mark.parametrize("value", [0, 0.25, 0.5, 1])
def test_constant_is_its_value(value):
    assert Constant(value).factor(State(1.0, 2.0), State(3.0, 4.0)) == value


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.5", True, None])
def test_constant_refuses_what_is_no_share(value):
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        Constant(value)


def test_clock_is_the_peers_part_of_both_clocks():
    assert Clock().factor(State(None, 100.0), State(None, 300.0)) == 300 / (100 + 300)


def test_loss_is_the_own_part_of_both_losses():
    assert Loss().factor(State(2.0, 0.0), State(0.5, 0.0)) == 2.0 / (2.0 + 0.5)


def test_two_zero_clocks_and_two_zero_losses_weigh_the_same():
    assert Clock().factor(State(None, 0.0), State(None, 0.0)) == 0.5
    assert Loss().factor(State(0.0, 1.0), State(0.0, 1.0)) == 0.5


def test_huge_numbers_do_not_overflow():
    assert Loss().factor(State(1e308, 1.0), State(1.7e308, 1.0)) == pytest.approx(1 / 2.7)
    assert Clock().factor(State(1.0, 1.7e308), State(1.0, 1.7e308)) == 0.5


@pytest.mark.parametrize(("own", "peer"), [(None, 1.0), (1.0, None), (None, None)])
def test_an_unknown_loss_weighs_the_same_under_the_loss_rule(own, peer):
    assert Loss().factor(State(own, 1.0), State(peer, 1.0)) == 0.5


def test_losses_below_zero_count_as_zero():
    assert Loss().factor(State(-3.0, 1.0), State(1.0, 1.0)) == 0
    assert Loss().factor(State(1.0, 1.0), State(-3.0, 1.0)) == 1


@given(rule=rules, own=any_state, peer=any_state, between=bounds, threshold=st.floats(0, 1e308))
def test_no_rule_and_no_peer_can_make_a_factor_outside_the_bounds(rule, own, peer, between, threshold):
    low, high = between
    guarded = Interpolator(rule, divergence_threshold=threshold, factor_min=low, factor_max=high)
    factor = guarded.factor(own, peer)
    assert factor == 0 or low <= factor <= high
    assert guarded.factor(own, peer) == factor, "the same states give the same factor"


@given(own=healthy_state, peer=healthy_state)
def test_healthy_states_get_the_rules_own_answer(own, peer):
    for rule in (Constant(0.3), Linear(), Clock(), Loss(), LossDivergence(), Staleness()):
        assert Interpolator(rule).factor(own, peer) == rule.factor(own, peer)


@pytest.mark.parametrize("rule", [Constant(0.5), Linear(), Clock(), Loss(), LossDivergence()])
@pytest.mark.parametrize(
    "peer",
    [
        State(math.nan, 5.0),
        State(math.inf, 5.0),
        State(-math.inf, 5.0),
        State(0.1, math.nan),
        State(0.1, math.inf),
        State(0.1, -1.0),
    ],
)
@pytest.mark.parametrize("own_loss", [None, 1.0, math.nan])
def test_a_diverged_peer_gets_nothing_even_with_a_lower_bound(rule, peer, own_loss):
    assert Interpolator(rule, factor_min=0.2).factor(State(own_loss, 5.0), peer) == 0


@pytest.mark.parametrize("rule", [Constant(0.1), Linear(), Clock(), Loss(), LossDivergence()])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_node_takes_as_much_of_a_healthy_peer_as_it_may(rule, loss):
    guarded = Interpolator(rule, factor_max=0.9, divergence_threshold=1.0)
    assert guarded.factor(State(loss, 5.0), State(0.5, 5.0)) == 0.9


def test_a_diverged_node_takes_nothing_from_a_peer_that_proves_nothing():
    assert Interpolator(Constant(0.5)).factor(State(math.nan, 5.0), State(None, 0.0)) == 0


def test_a_peer_that_has_not_started_is_harmless_to_rules_that_need_no_loss():
    assert Interpolator(Constant(0.5)).factor(State(1.0, 5.0), State(None, 0.0)) == 0.5
    assert Interpolator(Clock()).factor(State(1.0, 5.0), State(None, 0.0)) == 0


def test_a_peer_that_claims_a_loss_of_zero_gets_no_more_than_the_upper_bound():
    assert Interpolator(Loss(), factor_max=0.6).factor(State(1.0, 5.0), State(0.0, 2.0**63)) == 0.6


def test_below_the_divergence_threshold_the_factor_shrinks_with_the_loss():
    guarded = Interpolator(Constant(0.5), divergence_threshold=0.2)
    peer = State(1.0, 1.0)
    assert guarded.factor(State(0.05, 1.0), peer) == 0.5 * 0.05 / 0.2
    assert guarded.factor(State(0.2, 1.0), peer) == 0.5
    assert guarded.factor(State(3.0, 1.0), peer) == 0.5
    assert guarded.factor(State(None, 1.0), peer) == 0.5
    assert guarded.factor(State(-1.0, 1.0), peer) == 0


def test_the_threshold_comes_before_the_bounds():
    guarded = Interpolator(Constant(0.5), divergence_threshold=1.0, factor_min=0.1)
    assert guarded.factor(State(0.001, 1.0), State(1.0, 1.0)) == 0.1


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf, 1j, 10**400, "not a number"])
def test_an_answer_that_is_no_finite_number_keeps_the_own_model(answer):
    assert Interpolator(Answer(answer), factor_min=0.1).factor(State(1.0, 1.0), State(1.0, 1.0)) == 0


@pytest.mark.parametrize(("rule", "peer"), [(Dividing(), State(0.0, 1.0)), (LogOfPeer(), State(1.0, 0.0))])
def test_a_peers_numbers_cannot_stop_a_node_through_the_arithmetic_of_a_rule(rule, peer):
    assert Interpolator(rule).factor(State(1.0, 1.0), peer) == 0


def test_a_rule_that_forgot_the_unknown_loss_is_named():
    with pytest.raises(ConfigError, match=r"interpolation Forgetful of module .* also while a loss is None"):
        Interpolator(Forgetful()).factor(State(None, 1.0), State(1.0, 1.0))


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 1), (0, 1.1), (math.nan, 1)])
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(ConfigError, match="expected 0 <= factor_min <= factor_max <= 1"):
        Interpolator(Constant(), factor_min=low, factor_max=high)


@pytest.mark.parametrize("threshold", [-1, math.nan, math.inf])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ConfigError, match="divergence_threshold: expected a finite number"):
        Interpolator(Constant(), divergence_threshold=threshold)


def test_the_three_rules_resolve_by_name():
    assert resolve("constant", {"value": 0.25}).factor(State(1.0, 1.0), State(1.0, 1.0)) == 0.25
    assert isinstance(resolve("clock", {}), Clock)
    assert isinstance(resolve("loss", {}), Loss)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("constnat", {}, 'there is no interpolation "constnat", did you mean "constant"?'),
        ("zzz", {}, "known: clock, consensus, constant, loss, staleness"),
        ("constant", {"valeu": 1}, 'Constant has no option "valeu", did you mean "value"?'),
        ("clock", {"value": 1}, 'Clock has no option "value", it takes: none'),
        ("constant", {"value": 7}, "expected a number from 0 to 1, got 7"),
        ("a:b:c", {}, 'expected "module:Class"'),
        ("no_such_module_here:Rule", {}, "the module no_such_module_here cannot be imported"),
        (
            "dpwa.interpolation.rules:Los",
            {},
            'has no class Los, did you mean "dpwa.interpolation.rules:Loss"?',
        ),
        ("dpwa.interpolation.rules:Nothing", {}, "has no class Nothing"),
        ("dpwa.interpolation.rules:State", {}, "expected a class with a method factor"),
        ("tests_rule_options:Needy", {}, 'Needy needs the option "must", which has no default'),
        ("tests_rule_options:Needy", {"must": 0}, "Needy refused its options: must not be 0"),
    ],
)
@pytest.mark.usefixtures("custom_rules")
def test_a_rule_that_cannot_be_made_is_refused_with_the_reason(name, options, message, tmp_path, monkeypatch):
    (tmp_path / "tests_rule_options.py").write_text(
        "class Needy:\n"
        "    def __init__(self, must):\n"
        "        if must == 0:\n"
        "            raise ValueError('must not be 0')\n"
        "    def factor(self, own, peer):\n"
        "        return 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolve(name, options)
    assert message in str(caught.value)


def test_every_wrong_option_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        resolve("constant", {"one": 1, "two": 2})
    assert len(caught.value.problems) == 2


@pytest.mark.usefixtures("custom_rules")
def test_a_registered_rule_resolves_by_its_name():
    register("always-a-third")(Third)
    assert resolve("always-a-third", {}).factor(State(1.0, 1.0), State(1.0, 1.0)) == 1 / 3
    assert find_rule("always-a-third") is Third


@pytest.mark.usefixtures("custom_rules")
def test_the_name_of_a_rule_cannot_be_taken_by_another_class():
    register("always-a-third")(Third)
    register("always-a-third")(Third)  # the same class again is a module that was loaded twice
    with pytest.raises(ConfigError, match="the name belongs to"):
        register("always-a-third")(Forgetful)
    with pytest.raises(ConfigError, match="the name belongs to"):
        register("constant")(Forgetful)


@pytest.mark.parametrize("name", ["", "a:b"])
def test_a_name_that_looks_like_a_module_is_not_registered(name):
    with pytest.raises(ConfigError, match="a word without a colon"):
        register(name)


class Third:
    def factor(self, _own, _peer):
        return 1 / 3


@pytest.fixture
def custom_rules(monkeypatch):
    """Rules registered elsewhere are unknown in a test, and those that it registers are forgotten after it."""
    built_in = {rule.name: rule for rule in (Clock, Constant, Loss, Staleness, Consensus)}
    monkeypatch.setattr("dpwa.interpolation.registry._known", built_in)


def test_weight_zero_does_not_smooth():
    smoother = LossSmoother(0)
    assert [smoother.update(loss) for loss in (3.0, 1.0, 2.0)] == [3.0, 1.0, 2.0]


def test_the_smoothed_loss_is_a_moving_average_that_begins_with_the_first_loss():
    smoother = LossSmoother(0.9)
    assert smoother.update(2.0) == 2.0
    assert smoother.update(1.0) == pytest.approx(0.9 * 2 + 0.1 * 1)
    assert smoother.update(1.0) == pytest.approx(0.9 * 1.9 + 0.1 * 1)


def test_a_loss_that_is_not_finite_passes_and_is_not_remembered():
    smoother = LossSmoother(0.5)
    smoother.update(2.0)
    assert math.isnan(smoother.update(math.nan))
    assert smoother.update(math.inf) == math.inf
    assert smoother.update(1.0) == 1.5


@given(weight=st.floats(0, 0.999), losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_the_smoothed_loss_stays_among_the_losses(weight, losses):
    smoother = LossSmoother(weight)
    smoothed = [smoother.update(loss) for loss in losses]
    slack = 1e-9 * max(abs(loss) for loss in losses)
    assert all(min(losses) - slack <= value <= max(losses) + slack for value in smoothed)


@pytest.mark.parametrize("weight", [-0.1, 1, 2, math.nan])
def test_a_weight_outside_its_range_is_refused(weight):
    with pytest.raises(ConfigError, match="loss_smoothing"):
        LossSmoother(weight)
