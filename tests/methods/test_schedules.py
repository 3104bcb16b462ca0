"""Numbers that follow the clock: closed forms, what a cluster makes of them, and how often each method exchanges."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_support import METHODS

from dpwa.config.cluster import ClusterConfig, json_schema
from dpwa.errors import ConfigError
from dpwa.interpolation.rules import Constant
from dpwa.methods.base import ExchangeKind
from dpwa.methods.noloco import NoLoCo
from dpwa.methods.pull import Pull
from dpwa.methods.registry import make_method
from dpwa.schedule import CosineSchedule, LateSchedule, LinearSchedule, Schedule, highest, in_words, value_at
from dpwa.snapshot.state import State
from dpwa.topology.neighbourhood import Neighbourhood
from support import VectorModel

shares = st.floats(0, 1)
updates = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
schedules = (
    st.builds(LinearSchedule, start=shares, end=shares, over=updates)
    | st.builds(CosineSchedule, start=shares, end=shares, over=updates)
    | st.builds(LateSchedule, before=shares, begin=updates, value=shares)
)
SIGMAS = 4.5
"""How far from its mean a number of tries may be: a right program fails once in 150,000 seeds, and these are fixed."""


# ---- The functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (LinearSchedule(start=1, end=0.2, over=100), {0: 1, 25: 0.8, 50: 0.6, 75: 0.4, 100: 0.2, 1e9: 0.2}),
        (LinearSchedule(start=0.2, end=1, over=100), {0: 0.2, 50: 0.6, 100: 1, math.inf: 1}),
        (
            CosineSchedule(start=1, end=0.2, over=100),
            {0: 1, 25: 0.6 + 0.4 * math.sqrt(0.5), 50: 0.6, 75: 0.6 - 0.4 * math.sqrt(0.5), 100: 0.2, 1e9: 0.2},
        ),
        (CosineSchedule(start=0, end=1, over=300), {0: 0, 100: 0.25, 150: 0.5, 200: 0.75, 300: 1}),
        (LateSchedule(begin=100, value=1), {0: 0, 50: 0, 99.9: 0, 100: 1, 150: 1, math.inf: 1}),
        (LateSchedule(before=0.1, begin=100, value=0.7), {0: 0.1, 99: 0.1, 100: 0.7, 1e9: 0.7}),
    ],
)
def test_a_schedule_is_its_formula(schedule, values):
    assert {clock: schedule.at(float(clock)) for clock in values} == pytest.approx(values, abs=1e-15)
    assert schedule.at(math.nan) == schedule.at(-5.0) == schedule.at(0.0)
    assert schedule.highest == max(values.values())


@given(schedule=schedules, clocks=st.lists(st.floats(), min_size=2, max_size=8))
def test_no_clock_leads_out_of_a_schedules_bounds_and_none_back(schedule, clocks):
    first, last = schedule.at(0.0), schedule.at(math.inf)
    values = [schedule.at(clock) for clock in sorted(clock for clock in clocks if clock == clock)]  # noqa: PLR0124 - NaN
    assert all(min(first, last) <= value <= max(first, last) == schedule.highest for value in values)
    # Half a cosine is computed to the last digit, and is level at its ends.
    rising = [value if last >= first else -value for value in values]
    assert all(earlier <= later + 1e-15 for earlier, later in pairwise(rising))


def test_a_plain_number_is_the_same_at_every_clock():
    assert [value_at(0.3, clock) for clock in (0.0, 1e9, math.nan)] == [0.3] * 3
    assert highest(0.3) == 0.3
    assert in_words(0.3) == "0.3"


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (CosineSchedule(start=1, end=0.1, over=10000), "1, falling along half a cosine to 0.1 at update 10,000"),
        (LinearSchedule(start=0, end=0.5, over=2500.5), "0, rising in a straight line to 0.5 at update 2,500.5"),
        (LateSchedule(before=0.1, begin=5000, value=1), "0.1, and 1 from update 5,000 on"),
    ],
)
def test_a_schedule_says_what_it_does(schedule, words):
    assert in_words(schedule) == schedule.words == words


# ---- In a method -----------------------------------------------------------------------------------------------------

SCHEDULES: list[Schedule] = [
    LinearSchedule(start=0.9, end=0.1, over=900),
    CosineSchedule(start=0.1, end=0.8, over=900),
    LateSchedule(before=0.05, begin=450, value=0.6),
]
WITH_PROBABILITY = [name for name in METHODS if name not in ("dpsgd", "noloco")]


def _method(name, **settings):
    config = ClusterConfig.for_localhost(4, **{**METHODS[name], **settings})
    return config.method_for("w1")


def _ask(method, rng):
    """A plan of the next step, and its end, with nothing in the way."""
    method.advance()
    plan = method.plan(rng)
    if plan is not None and plan.kind is ExchangeKind.PUSH:
        method.gave(plan.mass)
        method.took_back(plan.mass)
    if plan is not None and isinstance(method, NoLoCo):
        method.joined(State(None, 0.0), takes_over=False)  # as after an outer step, its count of steps begins anew
    return plan


def _assert_likely(count, probabilities):
    mean = sum(probabilities)
    deviation = math.sqrt(sum(p * (1 - p) for p in probabilities))
    assert abs(count - mean) <= SIGMAS * deviation + 1e-9 * mean


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.schedule)
@pytest.mark.parametrize("name", WITH_PROBABILITY)
def test_every_method_with_a_probability_follows_its_schedule(name, schedule):
    method, rng = _method(name, pull_probability=schedule.model_dump()), random.Random(5)
    for window in range(3):
        probabilities, count = [], 0
        for clock in range(window * 400, window * 400 + 400):
            method.clock = float(clock)
            assert method.exchanges_per_step == method.probability == schedule.at(clock)
            probabilities.append(method.probability)
            count += _ask(method, rng) is not None
        _assert_likely(count, probabilities)


def test_a_round_in_which_a_node_has_no_neighbour_asks_for_no_exchange():
    pair, alone = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    topology = {"schedule": "periodic", "matrices": [pair, alone]}
    method = ClusterConfig.for_localhost(3, method="dpsgd", topology=topology).method_for("w1")
    asked = []
    for _ in range(4):
        method.advance()
        asked.append(method.exchanges_per_step)
    assert sorted(asked) == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_every_method_says_how_many_exchanges_a_step_it_asks_for(name, probability):
    every = {"dpsgd": {"every": 7}} if name == "dpsgd" else {"noloco": {"every": 12}} if name == "noloco" else {}
    method, rng = _method(name, pull_probability=probability, **every), random.Random(8)
    steps = 12 * 7 * 20
    count = sum(_ask(method, rng) is not None for _ in range(steps))
    if method.uses_probability:
        assert method.exchanges_per_step == probability
        _assert_likely(count, [probability] * steps)
    elif name == "dpsgd":
        assert count == steps * method.exchanges_per_step == steps / 7
    else:  # nobody else begins a pair here, so that this node begins them all
        assert count == steps * 2 * method.exchanges_per_step == steps / 12


@pytest.mark.parametrize("name", WITH_PROBABILITY)
def test_a_plain_probability_draws_the_same_numbers_as_ever(name):
    method, rng, twin = _method(name, pull_probability=0.4), random.Random(3), random.Random(3)
    drawn = [_ask(method, rng) is not None for _ in range(200)]
    assert drawn == [twin.random() < 0.4 for _ in range(200)]


def test_a_constructor_gets_the_first_value_of_a_schedule_as_a_number():
    seen = []

    class Curious(Pull):
        def __init__(self, links, count, probability):
            seen.append(probability)
            super().__init__(links, count, probability)

    schedule = LinearSchedule(start=0.25, end=1, over=10)
    config = ClusterConfig.for_localhost(2)
    links = Neighbourhood(config.topology_of_nodes, ["w1", "w2"], 0)
    method = make_method(Curious, {}, links=links, count=2, probability=schedule, fraction=1.0)
    assert seen == [0.25]
    method.clock = 10.0
    assert method.probability == 1


# ---- In a cluster ----------------------------------------------------------------------------------------------------


def _asked(cluster):
    """How many exchanges the nodes have begun."""
    ended = sum(sum(node.statistics().exchanges.values()) for node in cluster.nodes)
    return ended + sum(node._boundary.in_flight for node in cluster.nodes)


@pytest.mark.seconds
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.schedule)
def test_a_clusters_rate_in_each_window_is_what_the_schedule_says(in_memory, schedule):
    in_memory.start([VectorModel([float(number)]) for number in range(4)], pull_probability=schedule.model_dump())
    in_memory.step_all(3)  # all have joined, which takes one pull of each
    for _ in range(4):
        probabilities, before = [], _asked(in_memory)
        for _ in range(250):
            for node in in_memory.nodes:
                node.step(1.0)
                assert node.method.clock == node.statistics().clock
                probabilities.append(schedule.at(node.method.clock))
        _assert_likely(_asked(in_memory) - before, probabilities)
    rate = in_memory.nodes[0].method.exchanges_per_step
    assert rate == pytest.approx(schedule.at(math.inf), abs=0.01), "after about 1000 updates all are at their end"


def test_a_slow_node_follows_the_schedule_of_the_others(in_memory):
    """The clock is blended like the model: what a node has of the others' updates counts, and not its own steps."""
    fast, slow = in_memory.start(
        [VectorModel([0.0]), VectorModel([1.0])],
        pull_probability={"schedule": "late", "before": 0.5, "begin": 100, "value": 1},
    )
    for step in range(300):
        fast.step(1.0)
        if step % 6 == 0:
            slow.step(1.0)
    assert slow.statistics().step == 50
    assert fast.method.clock == pytest.approx((300 + 50) / 2, rel=0.3), "about the mean of what all have done"
    assert slow.method.clock == pytest.approx(fast.method.clock, abs=20)
    assert slow.method.probability == fast.method.probability == 1


def test_a_node_that_goes_on_from_a_checkpoint_goes_on_in_its_schedule(in_memory):
    schedule = {"schedule": "linear", "start": 1, "end": 0, "over": 100}
    nodes = in_memory.start([VectorModel([0.0]), VectorModel([1.0])], pull_probability=schedule)
    saved = {**nodes[0].state_dict(), "clock": 74.0}
    nodes[0].load_state_dict(saved)
    nodes[0].step(1.0)
    assert nodes[0].method.probability == pytest.approx(0.25)


def test_a_factor_follows_its_schedule_by_this_nodes_clock(in_memory):
    factor = {"value": {"schedule": "late", "begin": 20, "value": 0.5}}
    in_memory.start([VectorModel([0.0]), VectorModel([1.0])], constant=factor)
    in_memory.step_all(19)
    assert in_memory.vectors().ravel().tolist() == [0.0, 1.0]
    in_memory.step_all(5)
    assert abs(in_memory.vectors()[0] - in_memory.vectors()[1]) < 0.1


@given(schedule=schedules, clock=st.floats(min_value=0))
def test_a_constant_with_a_schedule_is_the_schedule_at_the_own_clock(schedule, clock):
    assert Constant(schedule).factor(State(None, clock), State(None, 7.0)) == schedule.at(clock)


# ---- In the cluster file ---------------------------------------------------------------------------------------------

NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}]\n"


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        (
            "pull_probability: {schedule: cosin, start: 1, end: 0, over: 9}",
            ['2:30: pull_probability.schedule: expected one of linear, cosine, late, got "cosin"; did you mean'],
        ),
        (
            "pull_probability: {schedule: 3}",
            ["2:30: pull_probability.schedule: expected one of linear, cosine, late, got 3; for example {schedule"],
        ),
        (
            "pull_probability: {schedule: constant, value: 0.5}",
            ["2:30: pull_probability.schedule: a constant is no schedule: write the number by itself"],
        ),
        (
            "pull_probability: {start: 1}",
            ["2:19: pull_probability: expected a number from 0 to 1 or a schedule, such as {schedule: linear, start"],
        ),
        (
            "pull_probability: {schedule: late, begin: 10}",
            ["2:19: pull_probability.value: missing; schedule late needs it: expected a number from 0 to 1"],
        ),
        (
            "pull_probability: {schedule: linear, start: 2, end: -1, over: 0}",
            [
                "2:45: pull_probability.start: expected a number from 0 to 1, got 2",
                "2:53: pull_probability.end: expected a number from 0 to 1, got -1",
                "2:63: pull_probability.over: expected a number of updates above 0, got 0",
            ],
        ),
        (
            "pull_probability: {schedule: linear, start: 1, end: 0.5, ovr: 7}",
            [
                "2:19: pull_probability.over: missing; schedule linear needs it: expected a number of updates above 0",
                '2:58: pull_probability.ovr: unknown key, did you mean "over"?',
            ],
        ),
        (
            "constant: {value: {schedule: late, begin: 5, value: 0.5, width: 7}}",
            ["2:58: constant.value.width: unknown key, schedule late takes before, begin, value"],
        ),
        ("constant: {value: [1]}", ["2:19: constant.value: expected a number from 0 to 1, got a list of 1"]),
        ('constant: {value: "1"}', ['expected a number from 0 to 1, got "1"; write the number without quotes']),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told_at_its_place(line, problems):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(NODES + line, "c.yaml")
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert expected in found


def test_a_file_with_schedules_reads_back_as_it_was_written():
    text = (
        "pull_probability: {schedule: cosine, start: 1, end: 0.1, over: 10000}\n"
        "constant: {value: {schedule: late, begin: 5000, value: 0.5}}\n"
    )
    config = ClusterConfig.from_text(NODES + text)
    assert config.pull_probability == CosineSchedule(start=1, end=0.1, over=10000)
    assert config.interpolator().rule.value == LateSchedule(begin=5000, value=0.5)
    assert ClusterConfig.from_text(config.to_yaml()) == config
    assert ClusterConfig.from_mapping(config.model_dump()) == config


@pytest.mark.parametrize(
    "place", [("properties", "pull_probability"), ("$defs", "ConstantOptions", "properties", "value")]
)
def test_the_schema_for_editors_has_a_number_and_each_schedule_with_its_keys(place):
    schema = json_schema()
    for part in place:
        schema = schema[part]
    number, *others = schema["anyOf"]
    assert number == {"type": "number", "minimum": 0, "maximum": 1}
    assert schema["default"] in (1.0, 0.5)
    assert schema["description"].endswith("or a schedule of it.")
    keys = {one["properties"]["schedule"]["const"]: one["required"] for one in others}
    assert keys == {
        "linear": ["schedule", "start", "end", "over"],
        "cosine": ["schedule", "start", "end", "over"],
        "late": ["schedule", "begin", "value"],
    }
    assert not any(one["additionalProperties"] for one in others)
