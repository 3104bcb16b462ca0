"""The rules staleness and consensus: formulas, limits, and a small cluster that the controller has to keep together."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.errors import ConfigError, number_problems
from dpwa.interpolation.consensus import ConsensusControl
from dpwa.interpolation.interpolator import Interpolator
from dpwa.interpolation.registry import find_rule, resolve
from dpwa.interpolation.rules import Consensus, Constant, Staleness
from dpwa.snapshot.state import State
from support import VectorModel

NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}]\n"
HERE = State(1.0, 100.0)
clocks = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


# ---- Numbers within limits -------------------------------------------------------------------------------------------


def test_a_number_within_its_limits_is_no_problem():
    assert number_problems("x", 0, least=0, most=1) == []
    assert number_problems("x", 1.0, above=0, most=1) == []
    assert number_problems("x", -5) == []


@pytest.mark.parametrize(
    ("value", "limits", "text"),
    [
        (0, {"above": 0}, "x: expected a finite number above 0, got 0"),
        (-1, {"least": 0, "most": 1}, "x: expected a finite number of at least 0 and up to 1, got -1"),
        (1, {"least": 0, "below": 1}, "x: expected a finite number of at least 0 and below 1, got 1"),
        (math.nan, {}, "x: expected a finite number, got nan"),
        (math.inf, {"least": 0}, "x: expected a finite number of at least 0, got inf"),
        (10**400, {"most": 1}, f"x: expected a finite number up to 1, got {10**400}"),
        (True, {"least": 0}, "x: expected a finite number of at least 0, got True"),
        ("1", {"least": 0}, "x: expected a finite number of at least 0, got '1'"),
        (None, {"most": 2}, "x: expected a finite number up to 2, got None"),
    ],
)
def test_a_number_out_of_its_limits_is_named_with_what_was_expected(value, limits, text):
    assert number_problems("x", value, **limits) == [text]


# ---- staleness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behind", "share"), [(0, 1), (10, 0.5), (20, 0.25), (5, 2**-0.5), (-30, 1)])
def test_staleness_halves_the_factor_for_each_half_life_that_the_peer_is_behind(behind, share):
    rule = Staleness(value=0.4, half_life=10)
    assert rule.factor(State(None, 100.0), State(None, 100.0 - behind)) == pytest.approx(0.4 * share)


@given(own=clocks, peer=clocks, half_life=st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_staleness_stays_within_its_value_whatever_the_clocks(own, peer, half_life):
    factor = Interpolator(Staleness(value=0.7, half_life=half_life)).factor(State(None, own), State(None, peer))
    assert 0 <= factor <= 0.7
    assert factor == 0.7 or own > peer


def test_staleness_names_every_option_that_is_out_of_its_limits():
    with pytest.raises(ConfigError) as caught:
        Staleness(value=1.5, half_life=0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "value of interpolation staleness",
        "half_life of interpolation staleness",
    ]


# ---- consensus: the controller by itself -----------------------------------------------------------------------------


def test_the_factor_begins_at_its_value_and_stays_there_while_nothing_is_measured():
    rule = Consensus(value=0.3)
    assert rule.factor(HERE, HERE) == 0.3
    assert rule.factor(HERE, HERE, None) == 0.3


@pytest.mark.parametrize("distance", [math.nan, math.inf, -math.inf, -0.1])
def test_what_is_no_distance_leaves_the_factor_as_it_is(distance):
    control = ConsensusControl(target=0.1)
    for _ in range(20):
        control.update(0.05, 0.0)
    before = control.factor
    assert 0.005 < before < 0.5
    assert control.update(distance, 0.0) == before
    twin = ConsensusControl(target=0.1)
    for _ in range(20):
        twin.update(0.05, 0.0)
    assert control.update(0.08, 0.0) == twin.update(0.08, 0.0), "it has left no trace"


def test_equal_models_lower_the_factor_to_a_hundredth_and_no_further():
    control = ConsensusControl(target=0.1, value=0.5)
    factors = [control.update(0.0, 0.0) for _ in range(2000)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.005)


def test_too_large_a_distance_raises_the_factor_and_too_small_a_one_lowers_it():
    control = ConsensusControl(target=0.1)
    lowered = [control.update(0.05, 0.0) for _ in range(30)]
    raised = [control.update(0.2, 0.0) for _ in range(30)]
    assert lowered[-1] < lowered[0]
    assert raised[-1] > lowered[-1]


@pytest.mark.parametrize(("stuck", "freed"), [(100.0, 0.05), (0.001, 0.4)])
def test_an_unreachable_target_winds_nothing_up(stuck, freed):
    control = ConsensusControl(target=0.1)
    for _ in range(100_000):
        control.update(stuck, 0.0)
    bound = control.factor
    turned = [control.update(freed, 0.0) for _ in range(3)]
    assert abs(math.log(turned[-1] / bound)) > 0.1, "it turns back within three exchanges"


@given(
    distances=st.lists(st.none() | st.floats(), max_size=60),
    clock=st.floats(),
    target=st.floats(1e-300, 1e300),
    late=st.none() | st.tuples(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300)),
    gain=st.floats(0, 1, exclude_min=True),
    value=st.floats(1e-3, 1),
)
def test_no_distance_and_no_clock_can_move_the_factor_out_of_its_range(distances, clock, target, late, gain, value):
    late_target, late_clock = late or (None, None)
    control = ConsensusControl(target=target, late_target=late_target, late_clock=late_clock, gain=gain, value=value)
    for distance in distances:
        assert 0.01 * value * (1 - 1e-9) <= control.update(distance, clock) <= value


def test_the_late_target_is_reached_in_a_straight_line_from_its_clock_to_twice_that():
    control = ConsensusControl(target=0.02, late_target=0.06, late_clock=1000)
    clocks_and_targets = {0: 0.02, 1000: 0.02, 1250: 0.03, 1500: 0.04, 2000: 0.06, 9e9: 0.06, math.inf: 0.06}
    assert {clock: pytest.approx(control.target_at(clock)) for clock in clocks_and_targets} == clocks_and_targets
    assert control.target_at(math.nan) == 0.02


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": 0}, "target: expected a finite number above 0, got 0"),
        ({"gain": 1.5}, "gain: expected a finite number above 0 and up to 1, got 1.5"),
        ({"value": 0}, "value: expected a finite number above 0 and up to 1, got 0"),
        ({"late_target": 0.1}, "expected both or neither"),
        ({"late_clock": 10.0}, "expected both or neither"),
        ({"late_target": -1, "late_clock": 5}, "late_target: expected a finite number above 0, got -1"),
        ({"late_target": 1, "late_clock": math.inf}, "late_clock: expected a finite number above 0, got inf"),
    ],
)
def test_consensus_refuses_options_out_of_their_limits(options, text):
    with pytest.raises(ConfigError, match=text):
        Consensus(**options)


# ---- consensus: a cluster --------------------------------------------------------------------------------------------


class Nodes:
    """Eight nodes that take noisy steps on a common quadratic and pull from random peers, in rounds."""

    def __init__(self, rules, *, scatter=0.0):
        self.random = np.random.default_rng(7)
        self.guarded = [Interpolator(rule) for rule in rules]
        self.optimum = self.random.normal(size=50)
        self.optimum *= 10 / np.linalg.norm(self.optimum)
        self.models = self.optimum + scatter * self.random.normal(size=(len(rules), 50))
        self.clock = 0

    def run(self, rounds):
        """Mean distance and mean factor of all pulls in these rounds."""
        distances, factors = [], []
        count = len(self.models)
        for _ in range(rounds):
            self.models += 0.002 * (self.optimum - self.models)
            self.models += 0.02 * self.random.normal(size=self.models.shape)
            self.clock += 1
            state = State(1.0, float(self.clock))
            for own in range(count):
                peer = (own + self.random.integers(1, count)) % count
                difference = self.models[peer] - self.models[own]
                distance = float(np.linalg.norm(difference) / np.linalg.norm(self.models[own]))
                factor = self.guarded[own].factor(state, state, distance)
                self.models[own] += factor * difference
                distances.append(distance)
                factors.append(factor)
        return float(np.mean(distances)), float(np.mean(factors))


@pytest.fixture(scope="module")
def reachable():
    """A target in the middle of what constant factors of 0.4 and 0.04 lead to."""
    ends = []
    for factor in (0.4, 0.04):
        nodes = Nodes([Constant(factor)] * 8)
        nodes.run(150)
        ends.append(nodes.run(150)[0])
    assert ends[1] > 2 * ends[0], "the distance depends on the factor"
    return math.sqrt(ends[0] * ends[1])


@pytest.mark.parametrize("gain", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("scatter", [0.0, 2.0], ids=["from equal models", "from models far apart"])
def test_a_cluster_settles_at_a_reachable_target_from_both_sides(reachable, scatter, gain):
    nodes = Nodes([Consensus(target=reachable, gain=gain) for _ in range(8)], scatter=scatter)
    nodes.run(300 if gain >= 0.5 else 500)
    distance, factor = nodes.run(200)
    assert distance == pytest.approx(reachable, rel=0.25)
    assert 0.04 < factor < 0.4


def test_a_cluster_follows_a_target_that_rises_late(reachable):
    options = {"target": reachable, "late_target": 1.8 * reachable, "late_clock": 500}
    nodes = Nodes([Consensus(**options) for _ in range(8)])
    nodes.run(300)
    early_distance, early_factor = nodes.run(200)
    nodes.run(700)
    late_distance, late_factor = nodes.run(200)
    assert early_distance == pytest.approx(reachable, rel=0.25)
    assert late_distance == pytest.approx(1.8 * reachable, rel=0.25)
    assert late_factor < early_factor


def test_a_cluster_with_an_unreachable_target_stays_at_the_end_of_the_range(reachable):
    nodes = Nodes([Consensus(target=reachable / 100) for _ in range(8)])
    assert nodes.run(150)[1] == pytest.approx(0.5, rel=0.02)
    nodes = Nodes([Consensus(target=reachable * 100) for _ in range(8)])
    nodes.run(300)
    assert nodes.run(20)[1] == pytest.approx(0.005, rel=0.02)


def test_a_target_out_of_reach_is_a_constant_factor_that_measures(in_memory, tmp_path):
    """How to find a target: the page tells to look at the distances of such a run."""
    rule = {"interpolation": "consensus", "consensus": {"target": 1e-9, "value": 0.5}, "pull_probability": 0.5}
    in_memory.start([VectorModel([3.0, 4.0]), VectorModel([6.0, 8.0])], run_dir=tmp_path, **rule)

    def train(index, model):
        model.vector += 0.1 + 0.1 * index

    in_memory.step_all(30, update=train)
    in_memory.close()
    lines = [json.loads(line) for path in tmp_path.rglob("events.jsonl") for line in path.read_text().splitlines()]
    pulls = [line for line in lines if line["event"] == "exchange" and line.get("factor")]
    assert len(pulls) > 10
    assert {line["factor"] for line in pulls} == {0.5}
    assert all(line["distance"] > 0 for line in pulls)


def test_a_newcomer_from_far_away_does_not_upset_a_settled_cluster(reachable):
    nodes = Nodes([Consensus(target=reachable) for _ in range(8)])
    nodes.run(400)
    nodes.models[0] += 3.0
    nodes.run(300)
    assert nodes.run(200)[0] == pytest.approx(reachable, rel=0.25)


# ---- The distance on its way to a rule -------------------------------------------------------------------------------


class Telling:
    """A custom rule that notes what it was told."""

    uses_distance = True

    def __init__(self):
        self.told = []

    def factor(self, _own, _peer, distance=None):
        self.told.append(distance)
        return 0.5


def test_a_rule_that_uses_distances_is_told_them_or_none():
    rule = Telling()
    guarded = Interpolator(rule)
    assert guarded.uses_distance
    for distance in (0.25, 0.0, None, math.nan, math.inf, -1.0):
        assert guarded.factor(HERE, HERE, distance) == 0.5
    guarded.factor(HERE, HERE)
    assert rule.told == [0.25, 0.0, None, None, None, None, None]


def test_a_rule_that_does_not_use_distances_is_called_with_two_states():
    class Plain:
        def factor(self, *states):
            return 0.25 if len(states) == 2 else 0.75

    guarded = Interpolator(Plain())
    assert not guarded.uses_distance
    assert guarded.factor(HERE, HERE, 0.1) == 0.25


def test_a_diverged_peers_distance_does_not_reach_the_controller():
    rule = Consensus(target=0.1)
    assert Interpolator(rule).factor(HERE, State(math.nan, 5.0), 0.0) == 0
    assert rule.control.factor == 0.5


# ---- In the cluster file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rule"), [("staleness", Staleness), ("consensus", Consensus)])
def test_the_rules_are_known_by_name(name, rule):
    assert find_rule(name) is rule
    assert isinstance(resolve(name, {}), rule)


def test_the_file_configures_staleness():
    config = ClusterConfig.from_text(NODES + "interpolation: staleness\nstaleness: {value: 0.8, half_life: 2}")
    assert config.interpolator().factor(State(None, 10.0), State(None, 6.0)) == pytest.approx(0.2)
    assert "The factor: 0.8, halved for each 2 updates that the peer is behind." in describe(config, ["w1"])


def test_the_file_configures_consensus_and_every_node_has_its_own_controller():
    text = "interpolation: consensus\nconsensus: {target: 0.02, late_target: 0.1, late_clock: 500, value: 0.25}"
    config = ClusterConfig.from_text(NODES + text)
    one, other = config.interpolator(), config.interpolator()
    assert one.uses_distance
    assert one.factor(HERE, HERE, 0.0) < other.factor(HERE, HERE) == 0.25
    assert one.rule.control.target_at(1000) == 0.1
    described = describe(config, ["w1"])
    assert "up to 0.25, controlled to keep models at a distance of 0.02 of their norm, and of 0.1 from" in described
    assert ClusterConfig.from_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("staleness: {value: 2}", "2:20: staleness.value: expected a number from 0 to 1, got 2"),
        ("staleness: {half_life: 0}", "2:24: staleness.half_life: expected a number above 0, got 0"),
        ("consensus: {target: -1}", "2:21: consensus.target: expected a number above 0, got -1"),
        ("consensus: {gain: 2}", "2:19: consensus.gain: expected a number above 0 and up to 1, got 2"),
        ("consensus: {value: 0}", "2:20: consensus.value: expected a number above 0 and up to 1, got 0"),
        (
            "consensus: {late_target: 0.1, late_clock: x}",
            '2:43: consensus.late_clock: expected a number above 0 or null, got "x"',
        ),
        ("consensus: {late_target: 0.1}", "2:26: consensus.late_target: expected late_clock with it; write both"),
        ("consensus: {late_clock: 10}", "2:25: consensus.late_clock: expected late_target with it; write both"),
        ("{interpolation: consensus, blend: absolute}", "interpolation: consensus measures differences, which blend"),
        ("consensus: {traget: 1}", '2:13: consensus.traget: unknown key, did you mean "target"?'),
    ],
)
def test_the_file_is_refused_with_the_place_of_each_mistake(line, problem):
    text = NODES + line
    if line.startswith("{"):
        text = NODES + line.strip("{}").replace(", ", "\n")
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(text)
    (found,) = caught.value.problems
    assert problem in found


def test_check_warns_of_a_staleness_that_blends_nothing():
    config = ClusterConfig.for_localhost(2, interpolation="staleness", staleness={"value": 0})
    assert "warning: the factor is always 0" in describe(config, ["w1"])
