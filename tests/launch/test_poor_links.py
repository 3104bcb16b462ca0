"""What poor links cost: the trainer nothing, and only what is exchanged becomes older.

Each prints its number, for docs/reliability.md: `make reliability`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import poor_network
import pytest
from method_support import METHODS
from poor_network import CUT_OFF, Link, PoorNetwork
from steady_cluster import METRICS_MS, PACE_MS, SteadyCluster, assert_all_held, sleep_until

from dpwa.config.cluster import ClusterConfig
from dpwa.observe.run_folder import read_run
from support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = 4
FLOATS = 12_500  # 100 kB: 20 of them per second are more than 10 Mbit/s
FLOATS_OF_A_SECOND = 125_000  # 1 MB
MEASURED_S = 12.0
HOME = Link(delay_s=0.02, bytes_per_s=2.5e6)
"""20 Mbit/s into each node, and 20 ms each way."""

EACH_SECOND = {
    "dpsgd": {"topology": "ring", "dpsgd": {"every": 20, "deadline_ms": 2000}},
    "noloco": {"noloco": {"every": 20}},
}
"""Methods that exchange now and then: after 20 steps of 50 ms."""

LINKS = {
    "50 ms each way": Link(delay_s=0.05),
    "200 ms each way": Link(delay_s=0.2),
    "50 ms with a jitter of 30 ms": Link(delay_s=0.05, jitter_s=0.03),
    "1 % of the packets lost": Link(delay_s=0.005, loss=0.01),
    "5 % of the packets lost": Link(delay_s=0.005, loss=0.05),
    "10 Mbit/s": Link(delay_s=0.005, bytes_per_s=1.25e6),
}


@pytest.fixture
def floats() -> int:
    """How large the model is."""
    return FLOATS


@pytest.fixture
def method() -> str:
    """By which the nodes average."""
    return "pull"


@pytest.fixture
def network() -> Iterator[PoorNetwork]:
    if missing := poor_network.needs():
        pytest.skip(missing)
    made = PoorNetwork(NODES)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@pytest.fixture
def clusters(network, tmp_path, floats, method) -> Iterator[list[SteadyCluster]]:
    """Each node's own launch, in its own namespace."""
    nodes = [
        {"name": f"w{number}", "host": host, "port": 21000 + number}
        for number, host in enumerate(network.hosts, start=1)
    ]
    config = ClusterConfig.from_mapping(
        {
            "nodes": nodes,
            "insecure": True,
            "metrics_interval_ms": METRICS_MS,
            "journal_checksums": True,
            **METHODS[method],
            **EACH_SECOND.get(method, {}),
        }
    )
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    started = [
        SteadyCluster(
            tmp_path, [node["name"]], "ip", "netns", "exec", place, options=(f"--node={node['name']}",), floats=floats
        )
        for node, place in zip(nodes, network.places, strict=True)
    ]
    try:
        for one in started:
            one.wait_for_training()
        yield started
    finally:
        for one in started:
            one.end()


def test_poor_links_cost_the_trainer_nothing(network, clusters, tell):
    names = [f"w{number}" for number in range(1, NODES + 1)]
    record = clusters[0]

    def meet(since_s: float) -> bool:
        return all(_blends(record, name, since_s) for name in names)

    clean_s = time.time()
    sleep_until(clean_s + MEASURED_S)
    clean = {name: record.rate(name, clean_s, clean_s + MEASURED_S) for name in names}
    told = [_line("clean", record, names, clean_s, clean)]
    kept = {}
    for what, link in LINKS.items():
        # New connections have to be made over the poor link.
        network.link = CUT_OFF
        sleep_until(time.time() + 3.0)
        network.link, began_s = link, time.time()
        wait_until(lambda began_s=began_s: meet(began_s), f"all exchange again: {what}", 30)
        met_s, lost, carried, queued = time.time(), network.lost, network.carried, network.queued
        sleep_until(met_s + MEASURED_S)
        told.append(_line(what, record, names, met_s, clean))
        lost, carried = network.lost - lost, network.carried - carried
        told[-1] += f"; all again after {met_s - began_s:.1f} s; {lost} of {lost + carried} packets lost"
        kept[what] = min(record.rate(name, met_s, met_s + MEASURED_S) / clean[name] for name in names)
        assert (lost > 0) == (link.loss > 0), what
        assert (network.queued > queued) == (link.bytes_per_s < 1e9), what
    tell("\n    ".join(told))
    for one in clusters:
        one.end()
    assert_all_held(read_run(record.run_dir), "I1", "I2", "I3", "I5")
    assert min(kept.values()) >= 0.95, kept


@pytest.mark.parametrize("floats", [FLOATS_OF_A_SECOND])
def test_a_peer_behind_a_slow_link_costs_the_others_nothing(network, clusters, tell):
    names, others = [f"w{number}" for number in range(1, NODES + 1)], ["w1", "w2", "w3"]
    record, slow = clusters[0], Link(bytes_per_s=1e6)
    clean_s = time.time()
    sleep_until(clean_s + MEASURED_S)
    clean = {name: record.rate(name, clean_s, clean_s + MEASURED_S) for name in names}
    before, queued = _line("all links fast", record, others, clean_s, clean), network.queued
    network.own_links[network.hosts[3]] = slow
    sleep_until(time.time() + 3.0)  # what was measured on the fast link is forgotten meanwhile
    slow_s = time.time()
    sleep_until(slow_s + 2 * MEASURED_S)
    kept = {name: record.rate(name, slow_s, slow_s + 2 * MEASURED_S) / clean[name] for name in others}
    after = _line("w4 at 1 MB/s", record, others, slow_s, clean)
    from_slow = [event for name in others for event in _blends(record, name, slow_s) if event["peer"] == "w4"]
    tell(f"of the three others: {before}\n    {after}; {len(from_slow)} blends with w4 in {2 * MEASURED_S:.0f} s")
    for one in clusters:
        one.end()
    assert network.queued > queued
    assert_all_held(read_run(record.run_dir), "I2", "I3", "I5")
    assert from_slow
    assert min(kept.values()) >= 0.97, kept


@pytest.mark.parametrize("floats", [FLOATS_OF_A_SECOND])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_over_20_mbit_per_second_and_20_ms(network, clusters, method, tell):
    names, record = [f"w{number}" for number in range(1, NODES + 1)], clusters[0]
    clean_s = time.time()
    sleep_until(clean_s + MEASURED_S)
    clean = {name: record.rate(name, clean_s, clean_s + MEASURED_S) for name in names}
    network.link, queued = HOME, network.queued
    sleep_until(time.time() + 3.0)  # what was measured on the fast link is forgotten meanwhile
    slow_s = time.time()
    sleep_until(slow_s + MEASURED_S)
    kept = {name: record.rate(name, slow_s, slow_s + MEASURED_S) / clean[name] for name in names}
    ended = [event for name in names for event in record.exchanges(name) if event["t"] > slow_s]
    blends = {name: len(_blends(record, name, slow_s)) for name in names}
    codecs = Counter(event["codec"] for event in ended if event["outcome"] == "blended")
    failed = Counter(event["outcome"] for event in ended if event["outcome"] in ("timed_out", "unreachable", "lost"))
    rounds = [event.get("merged", 0) for event in ended if event.get("kind") == "gather"]
    whole = sum(merged == 2 for merged in rounds)
    told = f"; {whole} of {len(rounds)} rounds with both neighbours" if rounds else ""
    tell(
        f"{method}: steps {100 * sum(kept.values()) / len(kept):.1f} % of clean, the slowest "
        f"{100 * min(kept.values()):.1f} %; {sum(blends.values()) / len(names) / MEASURED_S:.2f} blends/s per node; "
        f"codecs {dict(codecs)}; failed {dict(failed)}" + told
    )
    for one in clusters:
        one.end()
    assert network.queued > queued
    assert min(blends.values()) >= 3, blends
    assert codecs["fp16"] + codecs["int8"] + 4 * (method == "sparta") >= 3, codecs  # a slice of 5 kB fits as it is
    assert sum(failed.values()) <= 2, failed
    assert whole >= len(rounds) / 2
    # Rounds are the one kind of exchange that a step waits for: here up to 2 s for 20 steps of 50 ms.
    assert min(kept.values()) >= (0.33 if method == "dpsgd" else 0.95), kept


def _blends(cluster: SteadyCluster, name: str, since_s: float) -> list[dict]:
    return [event for event in cluster.exchanges(name) if event["outcome"] == "blended" and event["t"] > since_s]


def _line(what: str, cluster: SteadyCluster, names: list[str], since_s: float, clean: dict[str, float]) -> str:
    """The figures of a measurement: the step rate, and how old what is blended is."""
    rates = [cluster.rate(name, since_s, since_s + MEASURED_S) / clean[name] for name in names]
    blends = [
        event for name in names for event in _blends(cluster, name, since_s) if event["t"] <= since_s + MEASURED_S
    ]
    ages_s = sorted(event["late_steps"] * PACE_MS / 1000 for event in blends)
    assert len(ages_s) >= 20, what
    failed = [
        event["outcome"]
        for name in names
        for event in cluster.exchanges(name)
        if event["outcome"] in ("timed_out", "unreachable") and since_s < event["t"] <= since_s + MEASURED_S
    ]
    return (
        f"{what}: steps {100 * sum(rates) / len(rates):.1f} % of clean, the slowest {100 * min(rates):.1f} %; "
        f"{len(ages_s) / len(names) / MEASURED_S:.1f} exchanges/s per node, {len(failed)} failed; "
        f"blended values are {ages_s[len(ages_s) // 2]:.2f} s old in the median, "
        f"{ages_s[int(0.95 * len(ages_s))]:.2f} s at the 95th percentile"
    )
