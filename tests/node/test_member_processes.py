"""Processes that join a cluster, hang, are killed, and are cut off from all others."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from open_clusters import Processes, until

from support import wait_until

SETTLED_S = 40.0


@pytest.fixture
def cluster(tmp_path) -> Iterator[Processes]:
    made = Processes(tmp_path, 3)
    yield made
    made.close()


def ready(cluster: Processes) -> None:
    """Its nodes have found each other."""
    wait_until(lambda: all(one.has_started for one in cluster.running.values()), "all have started", SETTLED_S)
    agree(cluster)


def agree(cluster: Processes) -> None:
    """Wait until all running nodes know each other, and no one else but nodes of the first file."""
    names = set(cluster.running)

    def is_known() -> bool:
        for name, process in cluster.running.items():
            alive = {peer for peer, state in process.members.items() if state == "alive"}
            if alive != names - {name}:
                return False
        return True

    wait_until(is_known, "all know all", SETTLED_S)


def states_seen(cluster: Processes, of: str, by: str) -> list[str]:
    """What a node has had to say of a member, in order."""
    return [event["state"] for event in cluster.events(by) if event["event"] == "member" and event["peer"] == of]


@pytest.mark.heavy
@pytest.mark.slow
def test_a_newcomer_that_is_killed_is_suspected_and_dropped_by_all(cluster):
    cluster.begin()
    ready(cluster)
    newcomer = cluster.add("w9", through="w2")
    wait_until(lambda: newcomer.has_started, "it joins", SETTLED_S)
    assert newcomer.find("value") == pytest.approx(1.0)
    assert newcomer.find("clock") > 0
    agree(cluster)
    cluster.kill("w9")
    took_s = until(
        lambda: not any("w9" in process.members for process in cluster.running.values()), "it is dropped", SETTLED_S
    )
    assert took_s > 10.0  # it had time to show that it lives
    founders = ("w1", "w2", "w3")
    wait_until(lambda: all(states_seen(cluster, "w9", by)[-1] == "forgotten" for by in founders), "it is journalled")
    assert "suspect" in [state for by in founders for state in states_seen(cluster, "w9", by)]
    last = {name: process.end() for name, process in cluster.running.items()}
    cluster.running.clear()
    assert all(words["longest_s"] < 1.0 for words in last.values()), last


@pytest.mark.slow
def test_the_first_node_is_killed_after_others_have_joined_through_it(cluster):
    cluster.begin()
    ready(cluster)
    cluster.add("w9", through="w1")
    wait_until(lambda: cluster.running["w9"].has_started, "it joins", SETTLED_S)
    agree(cluster)
    cluster.kill("w1")
    late = cluster.add("w10", through="w9")
    wait_until(lambda: late.has_started, "another joins through the newcomer", SETTLED_S)
    assert late.find("value") == pytest.approx(1.0)
    agree(cluster)
    assert cluster.running["w2"].members["w1"] in ("suspect", "dead")  # of its own file: never dropped
    wait_until(lambda: "w1" not in cluster.running["w9"].members, "those that joined drop it", SETTLED_S)


@pytest.mark.slow
def test_one_that_hangs_for_a_while_is_suspected_refutes_and_stays(cluster):
    cluster.begin()
    ready(cluster)
    newcomer = cluster.add("w9", through="w1")
    wait_until(lambda: newcomer.has_started, "it joins", SETTLED_S)
    agree(cluster)
    newcomer.send(signal.SIGSTOP)
    suspected_s = until(
        lambda: any(one.members.get("w9") == "suspect" for one in cluster.running.values()), "suspected", SETTLED_S
    )
    newcomer.send(signal.SIGCONT)
    agree(cluster)

    def refuted() -> int:
        return max(
            (
                event["number"]
                for name in ("w1", "w2", "w3")
                for event in cluster.events(name)
                if event["event"] == "member" and event["peer"] == "w9" and event["state"] == "alive"
            ),
            default=0,
        )

    wait_until(lambda: refuted() >= 1, f"it has refuted, after {suspected_s:.1f} s")
    assert not [name for name in ("w1", "w2", "w3") if "forgotten" in states_seen(cluster, "w9", name)]


@pytest.mark.slow
def test_a_node_that_was_cut_off_forgets_nobody_and_rejoins(cluster):
    cluster.begin()
    ready(cluster)
    newcomer = cluster.add("w9", through="w1")
    wait_until(lambda: newcomer.has_started, "it joins", SETTLED_S)
    agree(cluster)
    others = [cluster.running[name] for name in ("w1", "w2", "w3")]
    for process in others:
        process.send(signal.SIGSTOP)
    wait_until(lambda: set(newcomer.members.values()) == {"suspect"}, "it reaches nobody", SETTLED_S)
    end_s, pause = time.monotonic() + 11.0, threading.Event()  # longer than a suspected member has
    while time.monotonic() < end_s:
        assert set(newcomer.members) == {"w1", "w2", "w3"}
        pause.wait(0.1)
    for process in others:
        process.send(signal.SIGCONT)
    agree(cluster)
    words = newcomer.end()
    del cluster.running["w9"]
    assert words["longest_s"] < 1.0  # it trained all the time


@pytest.mark.slow
def test_nodes_come_and_go_for_a_minute_and_no_survivor_pauses(tmp_path):
    """Every 0.5 to 2 s one is killed or started, up to ten at a time; newcomers are in no file but their own."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    cluster = Processes(tmp_path, 3)
    try:
        cluster.begin()
        ready(cluster)
        end_s, number, killed, joined = time.monotonic() + 60.0, 10, 0, 0
        pause = threading.Event()
        while time.monotonic() < end_s:
            pause.wait(rng.uniform(0.5, 2.0))
            if len(cluster.running) > 4 and (len(cluster.running) >= 10 or rng.random() < 0.4):
                # Two of the first three stay to the end: they are the survivors that saw all of it.
                name = rng.choice([name for name in cluster.running if name not in ("w2", "w3")])
                cluster.kill(name)
                cluster._spare.append(cluster.ports[name])  # for another node
                killed += 1
            else:
                number += 1
                through = rng.choice([name for name, one in cluster.running.items() if one.has_started])
                cluster.add(f"w{number}", through)
                joined += 1
        wait_until(lambda: all(one.has_started for one in cluster.running.values()), "all have started", SETTLED_S)
        agree(cluster)
        survivors = {name: process.end() for name, process in list(cluster.running.items())}
        cluster.running.clear()
    finally:
        cluster.close()
    longest = {name: round(words["longest_s"], 3) for name, words in survivors.items()}
    print(f"churn, seed {seed}: {joined} joined, {killed} killed; longest pause of each survivor in s: {longest}")
    assert killed >= 5
    assert joined >= 10
    assert max(longest.values()) < 1.0
