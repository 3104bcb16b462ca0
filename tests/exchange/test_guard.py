"""What of a listed peer that lies is believed, between nodes that exchange."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.config.sections import FlowControlOptions
from dpwa.errors import ConfigError
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.guard import Guard
from dpwa.snapshot.distance import Apart
from dpwa.snapshot.layout import Role
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import State
from support import Cluster, VectorModel, events_of, wait_until

FLOW = {"flow_control": {"probe_s": 0.01, "probe_max_s": 0.05}}
TARGET = np.linspace(1.0, 2.0, 8)
START = np.linspace(-1.0, 1.0, 8)


def old_model() -> np.ndarray:
    return START


def huge() -> np.ndarray:
    return np.full(8, 1e30)


def not_a_number() -> np.ndarray:
    return np.full(8, math.nan)


def train(cluster: Cluster, steps: int, lie=None, words=None, **settings: object) -> np.ndarray:
    """Four nodes go to their targets, which differ a little; the last one gives and says what it likes. The honest."""
    nodes = cluster.start([VectorModel(START) for _ in range(4)], **FLOW, **settings)
    for _ in range(steps):
        for index, (node, model) in enumerate(zip(nodes, cluster.models, strict=True)):
            if index == 3 and lie is not None:
                model.vector[:] = lie()
            else:
                model.vector += 0.1 * (TARGET + 0.02 * index - model.vector)
            if index == 3 and words is not None:
                node._boundary.state = replace(node._boundary.state, **words(nodes[0]))
            node.step(1.0 if index < 3 or words is None else words(nodes[0]).get("loss", 1.0))
    return cluster.vectors()[:3]


@pytest.mark.parametrize("lie", [huge, not_a_number])
@pytest.mark.parametrize("method", ["pull", "gosgd", "adpsgd", "dpsgd"])
def test_a_model_that_no_honest_node_can_have_moves_nobody_and_puts_its_node_into_quarantine(
    cluster, lie, method, tmp_path
):
    # One whose model has never been finite serves no round, and is waited for at each probe.
    honest = train(cluster, 60, lie=lie, method=method, run_dir=tmp_path, dpsgd={"deadline_ms": 50})
    cluster.close()
    assert np.abs(honest - TARGET).max() < 0.2
    # A node whose own model is not finite begins no pair and serves no round.
    assert quarantined(tmp_path) == ({"w4"} if lie is huge or method in ("pull", "gosgd") else set())


def test_an_old_model_that_is_replayed_moves_the_others_by_a_few_usual_steps(cluster):
    guarded = train(cluster, 150, lie=old_model, pull_probability=0.5)
    assert np.abs(guarded - TARGET).max() < 0.2


def test_an_old_model_that_is_replayed_would_move_them_far_without_the_guard(in_memory):
    """The fault is real."""
    moved = train(in_memory, 150, lie=old_model, guard="finite", pull_probability=0.5)
    assert np.abs(moved - TARGET).max() > 0.5


def test_the_clock_of_a_liar_does_not_become_everybodys(cluster):
    """It is always as far ahead as the message format lets it be believed."""
    train(cluster, 80, words=lambda first: {"clock": 0.9e9, "lineage": first._boundary.state.lineage})
    assert max(node.statistics().clock for node in cluster.nodes[:3]) < 200


def test_who_says_alone_that_it_is_the_elder_replaces_nobody(in_memory):
    nodes = in_memory.start([VectorModel(START) for _ in range(4)], **FLOW)
    in_memory.step_all(100)
    liar = nodes[3]
    for _ in range(60):
        for node in nodes[:3]:
            node.step(1.0)
        in_memory.models[3].vector[:] = 5.0
        liar._boundary.state = replace(liar._boundary.state, clock=1e6, lineage=b"elder!!!")
        liar.step(1.0)
    assert np.abs(in_memory.vectors()[:3] - START).max() < 1e-9
    assert max(node.statistics().clock for node in nodes[:3]) < 1000


def test_a_loss_of_nothing_pins_no_factor():
    guard, own = Guard("clip"), State(1.0, 10.0)
    for peer, loss in zip("abcabc", (0.8, 1.2, 0.9, 1.1, 0.9, 1.1), strict=True):
        assert guard.believed(peer, State(loss, 10.0), own).loss == loss
    assert guard.believed("d", State(0.0, 10.0), own).loss == 1.0
    assert guard.believed("d", State(1e30, 10.0), own).loss == pytest.approx(1.0, abs=0.01)
    assert guard.believed("d", State(0.1, 10.0), own).loss == 0.1, "batches differ widely"


@pytest.mark.parametrize("apart", [1e-3, 1.0, 50.0])
def test_between_two_nodes_nobody_can_say_who_is_right_and_nothing_is_cut(in_memory, apart, tmp_path):
    """However far apart they are, each pull goes half of the way."""
    in_memory.start([VectorModel(np.ones(8)) for _ in range(2)], run_dir=tmp_path, pull_probability=0.1)

    def update(index, model):
        model.vector += 0.02 * ((1.0 + apart * index) - model.vector)

    in_memory.step_all(400, update=update)
    in_memory.close()
    factors = [line["factor"] for line in blends(tmp_path, "w1") + blends(tmp_path, "w2")]
    assert len(factors) > 30
    assert set(factors) == {0.5}


def noisy(seed: int, apart: float):
    """Training of nodes whose targets differ, with noisy steps."""
    rng = np.random.default_rng(seed)
    targets = TARGET + apart * rng.standard_normal((8, 8))

    def update(index, model):
        model.vector += 0.05 * (targets[index] - model.vector + rng.standard_normal(8))

    return update


@pytest.mark.seconds
@pytest.mark.parametrize("apart", [0.0, 1.0])
@pytest.mark.parametrize(
    ("count", "settings"),
    [(4, {}), (4, {"pull_probability": 0.1}), (8, {"topology": "ring"}), (8, {"pull_probability": 0.1})],
)
def test_honest_nodes_are_hardly_ever_cut(in_memory, tmp_path, count, settings, apart):
    in_memory.start([VectorModel(START) for _ in range(count)], run_dir=tmp_path, **FLOW, **settings)
    in_memory.step_all(600 if "pull_probability" in settings else 200, update=noisy(1, apart))
    in_memory.close()
    lines = [line for number in range(1, count + 1) for line in blends(tmp_path, f"w{number}")]
    assert len(lines) > 100
    assert sum("clipped" in line for line in lines) <= 0.05 * len(lines)
    assert sum(1.0 - line.get("clipped", 1.0) for line in lines) <= 0.02 * len(lines)


@pytest.mark.seconds
def test_who_joins_late_is_hardly_ever_cut(in_memory, tmp_path):
    in_memory.start([VectorModel(START) for _ in range(4)], run_dir=tmp_path, **FLOW)
    in_memory.nodes.pop().close()
    in_memory.models.pop()
    update = noisy(2, 1.0)
    in_memory.step_all(100, update=update)
    in_memory.add("w4", VectorModel(START), run_dir=tmp_path)
    in_memory.step_all(100, update=update)
    in_memory.close()
    late = blends(tmp_path, "w4")
    assert sum(line.get("takes_over", False) for line in late) == 1
    others = [line for number in (1, 2, 3) for line in blends(tmp_path, f"w{number}") if line["peer"] == "w4"]
    assert len(others) > 30
    lines = late + others  # as many as probes by the clock leave
    assert sum("clipped" in line for line in lines) <= 0.05 * len(lines)
    assert sum(1.0 - line.get("clipped", 1.0) for line in lines) <= 0.02 * len(lines)


@pytest.mark.seconds
@pytest.mark.parametrize(("guard", "least", "most"), [("clip", 0.0, 0.25), ("finite", 0.5, 9.0)])
def test_an_old_model_that_two_of_eight_nodes_replay_moves_the_others_only_without_the_guard(
    in_memory, guard, least, most
):
    """They give what all began with, from the beginning on: the honest ones must get away from it."""
    lies = [{"node": name, "model": "replay"} for name in ("w7", "w8")]
    in_memory.start([VectorModel(START) for _ in range(8)], faults={"lies": lies}, guard=guard, **FLOW)
    rng = np.random.default_rng(3)

    def update(index, model):  # noqa: ARG001 - all go to one target
        model.vector += 0.05 * (TARGET - model.vector + 0.3 * rng.standard_normal(8))

    in_memory.step_all(300, update=update)
    assert in_memory.nodes[0].statistics().faults["lies"] > 50
    assert least <= np.abs(in_memory.vectors()[:6] - TARGET).mean() <= most


COUNTERS = st.floats(0.0, 1e18)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), COUNTERS, st.integers(0, 2**53), st.floats(allow_nan=False) | st.none()),
        max_size=12,
    ),
    COUNTERS,
    st.floats(1e-9, 1e9),
)
def test_whatever_is_said_what_is_believed_is_legal_and_lies_between_the_two(words, clock, loss):
    guard, own = Guard("clip"), State(loss, clock, round=7)
    for peer, said_clock, said_round, said_loss in words:
        said = State(said_loss, said_clock, round=said_round)
        believed = guard.believed(peer, said, own)
        nearest, farthest = sorted((clock, said_clock))
        assert nearest * (1 - 1e-9) <= believed.clock <= farthest * (1 + 1e-9)
        assert min(7, said_round) <= believed.round <= max(7, said_round)
        if said_loss is not None and said_loss > 0.0 and math.isfinite(said_loss):
            assert min(loss, said_loss) * (1 - 1e-6) <= believed.loss <= max(loss, said_loss) * (1 + 1e-6)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.0, 99.0)), min_size=1, max_size=100))
def test_a_step_is_never_longer_than_the_bound(given_distances):
    guard = Guard("clip")
    for peer, distance in given_distances:
        bound = guard._bounds[Role.PARAMETER].bound(start=3.0, floor=1e-3)
        verdict = guard.judge(peer, {Role.PARAMETER: Apart(distance**2, 1.0, 1)}, is_whole=False)
        assert verdict.reason == ""
        assert verdict.share * distance <= bound * (1 + 1e-9)
        assert verdict.share == 1.0 or distance > bound * (1 - 1e-9)


# --- The median of three ----------------------------------------------------------------------------------------------


def test_a_pull_goes_half_of_the_way_to_the_coordinatewise_median_of_three(cluster):
    first, *others = cluster.start([VectorModel(np.zeros(3)) for _ in range(4)], guard="median", **FLOW)
    cluster.step_all(4)
    planners = [node._boundary._planner for node in cluster.nodes]
    plan = planners[0].next_plan
    for planner in planners:
        planner.next_plan = lambda *_, **__: None  # they serve, and ask nobody
    wait_until(lambda: first.step(1.0) or not first._boundary.in_flight, "the last pull has ended")
    vectors = [[1.0, 5.0, 2.0], [2.0, 1.0, 9.0], [3.0, 4.0, 1.0]]
    for node, model, vector in zip(others, cluster.models[1:], vectors, strict=True):
        node.step(1.0)
        model.vector[:] = vector
        node._boundary._service.wanted = True
        node.step(1.0)
    planners[0].next_plan = plan
    first.step(1.0)
    planners[0].next_plan = planners[1].next_plan
    wait_until(lambda: first.step(1.0) or not first._boundary.in_flight, "one pull has ended")
    np.testing.assert_array_equal(cluster.vectors()[0], 0.5 * np.array([2.0, 4.0, 2.0]))


def test_the_median_needs_no_history_to_outvote_a_liar():
    """In the first exchanges clip knows no distances, and goes half of the way to what is within three own sizes."""
    moved = {}
    for guard in ("clip", "median"):
        made = Cluster("in_memory")
        made.start([VectorModel(np.ones(4)) for _ in range(8)], guard=guard, pull_probability=1.0)

        for _ in range(8):
            made.models[7].vector[:] = 3.5
            made.step_all()
        moved[guard] = np.abs(made.vectors()[:7] - 1.0).max()
        made.close()
    assert moved["clip"] > 0.5
    assert moved["median"] < 0.1 * moved["clip"], moved


@pytest.mark.parametrize("count", [2, 3])
def test_with_fewer_than_three_peers_the_median_does_what_clip_does(count):
    ends = []
    for guard in ("clip", "median"):
        made = Cluster("in_memory")
        made.start([VectorModel(np.full(4, float(index))) for index in range(count)], guard=guard, **FLOW)
        made.step_all(6)
        ends.append(made.vectors())
        made.close()
    np.testing.assert_array_equal(*ends)
    assert np.ptp(ends[0], axis=0).max() < count - 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "gosgd"}, "breaks the sum that method gosgd conserves"),
        ({"method": "adpsgd"}, "breaks the sum that method adpsgd conserves"),
        ({"pull_fraction": 0.5}, "bring parts"),
        ({"method": "sparta"}, "bring parts"),
    ],
)
def test_a_median_is_refused_where_it_would_break_what_a_method_promises(settings, problem):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.for_localhost(4, guard="median", **settings)
    (line,) = caught.value.problems
    assert problem in line


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=3, max_size=3))
def test_the_median_of_stagings_is_numpys(values):
    layout = VectorModel(np.zeros(5)).layout
    stagings = [Staging(layout, absolute=True) for _ in values]
    for staging, numbers in zip(stagings, values, strict=True):
        staging.values[0].array[:] = numbers
    stagings[0].take_median(*stagings[1:])
    np.testing.assert_array_equal(stagings[0].values[0].array, np.median(np.array(values), axis=0))


# --- What is kept, and quarantine -------------------------------------------------------------------------------------


def test_nothing_is_kept_of_a_member_that_is_forgotten(in_memory):
    in_memory.start([VectorModel(START) for _ in range(4)], **FLOW)
    in_memory.step_all(30)
    context = in_memory.nodes[0]._parts.context
    guard = context.guard
    guard.confirms("w2", State(1.0, 10.0, lineage=b"another!"), ["w2", "w3"], has_much_to_lose=True)
    context.forget("w2")
    assert guard._claims == {}
    for bound in guard._all_bounds():
        assert "w2" not in bound._numbers
    assert any("w3" in bound._numbers for bound in guard._all_bounds())


def test_two_halves_that_were_apart_meet_again(in_memory):
    """Neither half is a minority: the bound follows what most peers show."""
    apart = np.where(np.arange(8) < 4, 0.0, 2.0)
    halves = {"groups": [["w1", "w2"], ["w3", "w4"]], "from_step": 0, "to_step": 100}
    in_memory.start([VectorModel(START) for _ in range(4)], faults={"partition": [halves]}, **FLOW)

    def update(index, model):
        model.vector += 0.1 * (TARGET + (apart if index >= 2 else 0.0) - model.vector)

    in_memory.step_all(100, update=update)
    assert np.abs(in_memory.vectors()[0] - in_memory.vectors()[3]).max() > 1.5
    in_memory.step_all(200)
    assert np.ptp(in_memory.vectors(), axis=0).max() < 1e-2


def test_distances_are_refused_from_a_hundred_times_the_own_size():
    guard = Guard("clip")
    assert guard.impossible("w2", {Role.PARAMETER: Apart(99.0**2, 1.0, 1)}) == ""
    assert "at most 100 is believed" in guard.impossible("w2", {Role.PARAMETER: Apart(101.0**2, 1.0, 1)})
    assert guard.impossible("w2", {Role.PARAMETER: Apart(math.inf, 1.0, 1)})


def test_a_peer_in_quarantine_is_not_asked_because_it_asks_and_one_model_that_is_taken_ends_it(make_flow):
    flow: FlowControl = make_flow()
    assert [flow.rejected("w2", 0.0) for _ in range(4)] == [None, None, 3, None]
    flow.answered("w2")  # it had nothing to give
    flow.hinted("w2")
    assert not flow.may_ask("w2", 1.0)
    assert flow.may_ask("w2", 100.0)
    flow.succeeded("w2")
    assert flow.may_ask("w2", 100.0)


def test_a_new_life_of_a_peer_in_quarantine_has_one_chance(make_flow):
    flow: FlowControl = make_flow()
    for _ in range(3):
        flow.rejected("w2", 0.0)
    flow.answered_as("w2", b"another!")
    assert flow.may_ask("w2", 0.0)
    assert flow.rejected("w2", 0.0) == 3


@pytest.fixture
def make_flow():
    return lambda: FlowControl(["w2"], FlowControlOptions(), random.Random(1))


def quarantined(run_dir) -> set[str]:
    return {event["peer"] for name in ("w1", "w2", "w3") for event in events_of(run_dir, name, "quarantine")}


def blends(run_dir, node: str) -> list[dict]:
    return [event for event in events_of(run_dir, node, "exchange", outcome="blended") if event["factor"] > 0]
