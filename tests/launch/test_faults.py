"""Real processes that train together and are killed, stopped, restarted and started late in the middle."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from fault_launch import STEPS, Launch, assert_held
from fault_trainer import PACE_S
from support import events_of, wait_until

pytestmark = pytest.mark.heavy


@pytest.fixture
def nodes() -> int:
    """How many the launched cluster has."""
    return 4


@pytest.fixture
def launch(tmp_path, nodes):
    started: list[Launch] = []
    flow = {"probe_s": 0.2, "probe_max_s": 0.5}
    config = ClusterConfig.for_localhost(
        nodes,
        ports=free_ports(nodes),
        timeout_ms=500,
        connect_timeout_ms=200,
        flow_control=flow,
        journal_checksums=True,
    )
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())

    def start(*options: str, **settings: int | str) -> Launch:
        started.append(Launch(tmp_path, *options, **settings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end()


def _blends(run_dir: Path, node: str, peer: str | None = None) -> list[dict]:
    return [event for event in events_of(run_dir, node, outcome="blended") if peer in (None, event["peer"])]


NODES = ["w1", "w2", "w3", "w4"]


@pytest.mark.parametrize("victim", ["w1", *(pytest.param(node, marks=pytest.mark.slow) for node in NODES[1:])])
def test_kill_9_of_any_node_costs_the_others_less_than_one_step(launch, victim):
    running = launch()
    running.pid(victim)
    survivors = [node for node in NODES if node != victim]
    wait_until(
        lambda: all(_blends(running.run_dir, node, victim) for node in survivors), "all have blended with it", 30
    )
    running.kill(victim)
    assert running.wait() == 1
    assert_held(running.run_dir, "I1", "I2", "I3", "I5", "I9")
    assert any(victim in line and "SIGKILL" in line for line in running.lines)
    for node in survivors:
        (longest_s,) = running.find(rf"{node} \| longest ([0-9.]+)")
        assert float(longest_s) < PACE_S
        events = events_of(running.run_dir, node)
        assert events[-1]["event"] == "close"
        assert events[-1]["step"] == STEPS
        lost = [event["outcome"] for event in events if event["event"] == "exchange" and event.get("peer") == victim]
        lost = [outcome for outcome in lost if outcome != "blended"]
        assert {"unreachable", "timed_out"} & set(lost), "the fault was noticed"


def test_a_killed_node_is_restarted_takes_the_peers_model_and_is_asked_again(launch):
    running = launch("--on-failure", "restart", steps=1200)  # longer than a busy machine takes to start a node again
    running.pid("w2")
    wait_until(
        lambda: any(event["clock"] > 60 for event in _blends(running.run_dir, "w1", "w2")), "all are well trained", 30
    )
    pid = running.kill("w2")
    assert running.pid("w2", life=2) != pid
    wait_until(lambda: len(events_of(running.run_dir, "w2", "start")) == 2, "second life")
    starts = events_of(running.run_dir, "w2", "start")
    assert starts[0]["incarnation"] != starts[1]["incarnation"]

    def first_blend() -> list[dict]:
        blends = [event for event in _blends(running.run_dir, "w2") if event["t"] > starts[1]["t"]]
        return [event for event in blends if event["factor"] > 0]

    wait_until(lambda: bool(first_blend()), "the restarted node blends")
    assert first_blend()[0]["factor"] == 1.0
    assert first_blend()[0]["peer_clock"] > first_blend()[0]["clock"] + 50

    def taken_later() -> list[dict]:
        blends = [event for event in _blends(running.run_dir, "w1", "w2") if event["t"] > starts[1]["t"]]
        return [event for event in blends if event["factor"] > 0]

    wait_until(lambda: bool(taken_later()), "a survivor blends with the restarted node")
    assert min(event["peer_clock"] for event in taken_later()) > 50, "nothing untrained was spread"
    running.end()
    assert_held(running.run_dir, "I1", "I2", "I3", "I5", "I9")


@pytest.mark.slow
def test_a_node_that_is_started_late_joins_in(launch):
    first = launch("--node", "w1", "--node", "w2", steps=120)
    wait_until(lambda: _blends(first.run_dir, "w1", "w2"), "two train together", 30)
    late = launch("--node", "w3", steps=40)
    wait_until(lambda: _blends(first.run_dir, "w3"), "the late one blends", 60)
    wait_until(lambda: _blends(first.run_dir, "w1", "w3"), "an early one blends with it", 30)
    assert late.wait() == 0
    assert first.wait() == 0
    assert_held(first.run_dir, "I1", "I2", "I3", "I5")


@pytest.mark.slow
def test_a_stopped_node_is_avoided_and_found_again_when_it_continues(launch):
    running = launch(steps=140)
    wait_until(lambda: _blends(running.run_dir, "w1", "w3"), "it takes part", 30)
    go_on = running.stop("w3")
    try:
        wait_until(
            lambda: any(
                e.get("peer") == "w3" and e.get("outcome") == "timed_out" for e in events_of(running.run_dir, "w1")
            ),
            "it is missed",
        )
    finally:
        go_on()
    missed_s = [e["t"] for e in events_of(running.run_dir, "w1") if e.get("outcome") == "timed_out"][-1]
    wait_until(lambda: any(e["t"] > missed_s for e in _blends(running.run_dir, "w1", "w3")), "it is found again")
    assert running.wait() == 0
    assert_held(running.run_dir, "I1", "I2", "I3", "I5", "I9")


# ---- Churn -----------------------------------------------------------------------------------------------------------

SURVIVOR, OTHERS = "w1", ["w2", "w3", "w4", "w5", "w6"]
LEAD = 50
CHURN_S = 30.0


def _churn(running: Launch, seconds: float) -> int:
    """Kill a node every 0.5 to 2 s, but never the survivor; how many were killed."""
    chance, pause, kills = random.Random(1), threading.Event(), 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pause.wait(chance.uniform(0.5, 2.0))
        victim = chance.choice(OTHERS)
        pid = int(running.find(rf"{victim} \| pid (\d+)")[-1])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it waits to be started again
        kills += 1
    return kills


@pytest.mark.parametrize("nodes", [6])
@pytest.mark.slow
def test_a_survivor_of_constant_restarts_never_blends_an_untrained_model(launch):
    running = launch("--on-failure", "restart", "--max-restarts", "1000", steps=100_000)
    for node in OTHERS:
        running.pid(node)
    wait_until(
        lambda: any(event["clock"] > LEAD + 10 for event in _blends(running.run_dir, SURVIVOR)), "well trained", 30
    )
    kills = _churn(running, CHURN_S)

    def taken_over() -> list[dict]:
        return [event for node in OTHERS for event in _blends(running.run_dir, node) if event.get("takes_over")]

    assert kills >= CHURN_S / 4, "the faults happened"
    wait_until(lambda: bool(taken_over()), "a node that came back takes a trained model over", 30)
    assert {event["factor"] for event in taken_over()} == {1.0}
    last_s = max(event["t"] for event in taken_over())
    wait_until(lambda: any(event["t"] > last_s for event in _blends(running.run_dir, SURVIVOR)), "the survivor goes on")
    blends = _blends(running.run_dir, SURVIVOR)
    assert {event["factor"] for event in blends if event["peer_clock"] < event["clock"] - LEAD} <= {0.0}
    running.end()
    assert_held(running.run_dir, "I1", "I2", "I3", "I5")


@pytest.mark.slow
def test_the_others_end_with_one_model_when_one_is_killed_in_training_and_one_while_it_merges(launch):
    running = launch(victim="w1")
    wait_until(lambda: bool(_blends(running.run_dir, "w2", "w4")), "it has taken part", 30)
    running.kill("w4")
    assert running.wait() == 1
    assert_held(running.run_dir, "I1", "I2", "I3", "I5", "I9")
    assert running.find(r"w1 \| dies with (\d) models") == ["3"]
    assert all(any(name in line and "SIGKILL" in line for line in running.lines) for name in ("w1", "w4"))
    ends = [running.find(rf"{name} \| merged (\d \w+)") for name in ("w2", "w3")]
    assert [len(end) for end in ends] == [1, 1]
    assert ends[0] == ends[1]
    assert ends[0][0].startswith("2 ")
