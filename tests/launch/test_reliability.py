"""The figures of docs/reliability.md: what survivors keep when others are killed, hang or are cut off.

Each prints its number. They take minutes and want a machine of their own: `make reliability`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from steady_cluster import METRICS_MS, SteadyCluster, assert_all_held, sleep_until
from steady_trainer import LOCK_HELD_S
from switch import Switch

from dpwa.config.cluster import ClusterConfig
from dpwa.observe.run_folder import read_run
from support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "victims",
    [["w5"], ["w1"], ["w1", "w3", "w5", "w8"], ["w1", "w2", "w3", "w4", "w5", "w6", "w7"]],
    ids=["one", "the-first", "four", "seven"],
)
def test_survivors_of_k_of_8_keep_their_step_rate(steady, tell, victims):
    cluster = steady(8)
    survivors = [name for name in cluster.names if name not in victims]
    first_s = time.time()
    sleep_until(first_s + 8)
    killed_s = time.time()
    for name in victims:
        cluster.kill(name)
    sleep_until(killed_s + 12)
    kept = {
        name: cluster.rate(name, killed_s, killed_s + 12) / cluster.rate(name, first_s, killed_s) for name in survivors
    }
    mean = statistics.mean(kept.values())
    tell(
        f"{len(victims)} of 8 killed ({victims[0]} ...): survivors keep {100 * mean:.1f} % of their step rate, "
        f"the slowest {100 * min(kept.values()):.1f} %"
    )
    cluster.end()
    run = read_run(cluster.run_dir)
    assert_all_held(run, "I1", "I2", "I3", "I4", "I5", "I8", "I9")
    assert all(run.lives[name][-1].is_closed for name in survivors)
    assert mean >= 0.98


@pytest.mark.parametrize("how", ["stopped", "lock-held"])
def test_a_hung_peer_is_avoided_and_used_again(steady, tell, how):
    cluster = steady(4)
    others = ["w1", "w2", "w4"]
    if how == "stopped":
        began_s, ended_s = cluster.stop("w3", float(LOCK_HELD_S))
    else:
        began_s, ended_s = cluster.hold_the_lock("w3")

    def again() -> bool:
        return all(used_again_s(name) is not None for name in others)

    def used_again_s(name: str) -> float | None:
        blends = [event for event in cluster.exchanges(name, "w3") if event["outcome"] == "blended"]
        return next((event["t"] - ended_s for event in blends if event["t"] > ended_s), None)

    wait_until(again, "it is used again", 60)
    failed = {
        name: [
            event
            for event in cluster.exchanges(name, "w3")
            if event["outcome"] != "blended" and began_s < event["t"] < ended_s
        ]
        for name in others
    }
    assert all(failed.values()), "each has met it while it hung"
    if how == "lock-held":
        assert {event["outcome"] for events in failed.values() for event in events} == {"timed_out"}
    first_s = max(events[0]["duration_s"] for events in failed.values())
    all_know_s = max(events[0]["t"] for events in failed.values()) - began_s
    back_s = max(used_again_s(name) or 0.0 for name in others)
    tell(
        f"a hung peer ({how}): given up {first_s:.2f} s after the ask at most, by all {all_know_s:.2f} s after "
        f"it hung; "
        f"used again by all after {back_s:.2f} s"
    )
    cluster.end()
    assert_all_held(read_run(cluster.run_dir), "I2", "I4", "I9")
    assert first_s <= 1.5
    assert back_s <= 5.0


def test_a_node_that_was_stopped_itself_blames_nobody(steady, tell):
    cluster = steady(4)
    before = cluster.metrics("w2")[-1]["scores"]
    _, ended_s = cluster.stop("w2", 5.0)
    sleep_until(ended_s + 3.0)
    after = [line["scores"] for line in cluster.metrics("w2") if line["t"] > ended_s]
    lowest = min(min(scores[peer] - before[peer] for peer in before) for scores in after)
    tell(f"a node that was stopped for 5 s: the score that fell most changed by {lowest:+.0f}")
    cluster.end()
    assert_all_held(read_run(cluster.run_dir), "I2", "I9")
    assert lowest >= 0


# --- A network that parts ---------------------------------------------------------------------------------------------

PARTED_S = 30.0


def test_halves_of_a_cluster_train_apart_and_find_each_other_again(two_hosts, tmp_path, tell):
    names = [f"w{number}" for number in range(1, 9)]
    halves = [names[:4], names[4:]]
    nodes = [
        {"name": name, "host": f"10.77.0.{side}", "port": 21000 + names.index(name)}
        for side, half in enumerate(halves, start=1)
        for name in half
    ]
    config = ClusterConfig.from_mapping(
        {"nodes": nodes, "insecure": True, "metrics_interval_ms": METRICS_MS, "shared_memory": "off"}
    )
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    clusters = [
        SteadyCluster(tmp_path, half, "ip", "netns", "exec", network, options=tuple(f"--node={name}" for name in half))
        for half, network in zip(halves, two_hosts.sides, strict=True)
    ]
    try:
        for cluster in clusters:
            cluster.wait_for_training(6.0)
        _measure_the_parted(clusters[0], names, halves, two_hosts, tell)
    finally:
        for cluster in clusters:
            cluster.end()


def _measure_the_parted(
    cluster: SteadyCluster, names: list[str], halves: list[list[str]], two_hosts: Switch, tell: Any
) -> None:
    def spread(first_s: float, last_s: float) -> float:
        """How far apart the nodes' parameters are, in the mean over a time."""
        per_node = [[line["x"] for line in cluster.metrics(name) if first_s <= line["t"] <= last_s] for name in names]
        return statistics.mean(statistics.pstdev(values) for values in zip(*per_node, strict=False))

    together_s = time.time()
    sleep_until(together_s + 4)
    parted_s = time.time()
    two_hosts.pull(1)
    sent_before, _ = two_hosts.packets()
    number = cluster.began("partition", groups=halves)
    sleep_until(parted_s + 1)
    _, crossed_before = two_hosts.packets()
    sleep_until(parted_s + PARTED_S)
    sent, crossed = two_hosts.packets()
    packets, crossed = sent - sent_before, crossed - crossed_before
    two_hosts.plug(1)
    cluster.record.write("undone", fault=number)
    cluster.record.write("evidence", fault=number, evidence=f"{packets} packets were dropped, {crossed} crossed")
    healed_s = time.time()
    sleep_until(healed_s + 25)
    before, apart, after = (
        spread(together_s, parted_s),
        spread(healed_s - 5, healed_s),
        spread(healed_s + 20, healed_s + 25),
    )
    rates = [cluster.rate(name, parted_s, healed_s) / cluster.rate(name, together_s, parted_s) for name in names]
    met_s = [
        next(
            (e["t"] - healed_s for e in cluster.exchanges(a, b) if e["outcome"] == "blended" and e["t"] > healed_s), 99
        )
        for a in names
        for b in names
        if (a in halves[0]) != (b in halves[0])
    ]
    tell(
        f"4|4 for {PARTED_S:.0f} s, {packets} packets dropped, {crossed} crossed: "
        f"nodes keep {100 * statistics.mean(rates):.1f} % of their rate; "
        f"the first pair exchanges after {min(met_s):.1f} s, the last after {max(met_s):.1f} s; "
        f"spread {before:.2f} together, {apart:.2f} apart, {after:.2f} after 20 s"
    )
    assert packets > 0
    assert crossed == 0
    assert_all_held(read_run(cluster.run_dir), "I2", "I3", "I4", "I5", "I9")
    assert statistics.mean(rates) >= 0.98
    assert max(met_s) <= 10.0
    assert apart > 3.0 * before
    assert after < apart / 3.0
