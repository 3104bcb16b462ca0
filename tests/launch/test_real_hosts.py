"""Hosts of their own, with keys and with cables of 100 Mbit/s and 25 ms: each is a network namespace with its launch.

Each prints its figures, for docs/reliability.md: `make hosts`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import poor_network
import pytest
import yaml
from fashion_data import fashion_folder
from poor_network import CUT_OFF, Link, PoorNetwork
from steady_cluster import METRICS_MS, SteadyCluster, sleep_until

from dpwa.observe.invariants import check_run
from dpwa.observe.run_folder import read_run
from dpwa.transport.key_folder import make_keys
from support import TESTS, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LEAST_STEPS = 80
DELAY_S = 0.025
BYTES_PER_S = 12.5e6
CABLE = Link.of_rate(BYTES_PER_S, DELAY_S)
MTU_BYTES = 30_000
"""Four cables at their full rate are then 1,700 packets a second, which leaves the processor to the nodes."""
PULLED_S = 8.0
BACK_WITHIN_S = 30.0
FLOATS_OF_45_MB = 5_600_000
MEASURED_S = 20.0
WITH_KEYS, WITHOUT = b"CURVE\0\0\0", b"NULL\0\0\0\0"
"""How the two sides of a connection of ZeroMQ begin to name the mechanism of their security."""


@pytest.fixture
def count() -> int:
    """How many hosts there are."""
    return 4


@pytest.fixture
def network(count) -> Iterator[PoorNetwork]:
    if missing := poor_network.needs():
        pytest.skip(missing)
    made = PoorNetwork(count, mtu_bytes=MTU_BYTES)
    made.link = CABLE
    made.words = {WITH_KEYS: 0, WITHOUT: 0}
    try:
        made.build()
        yield made
    finally:
        made.remove()


class Hosts:
    """A launch on each host, all with one cluster file, keys and one run folder.

    Args:
        network: of the hosts.
        folder: for the files.
        floats: see `SteadyCluster`.
        script: see `SteadyCluster`.
    """

    def __init__(self, network: PoorNetwork, folder: Path, *, floats: int = 0, script: tuple[str, ...] = ()) -> None:
        self.names = [f"w{number}" for number in range(1, len(network.hosts) + 1)]
        nodes = [
            {"name": name, "host": host, "port": 21000} for name, host in zip(self.names, network.hosts, strict=True)
        ]
        cluster = {"nodes": nodes, "keys": "keys", "metrics_interval_ms": METRICS_MS}
        (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
        make_keys(folder / "keys", self.names)
        self._launches = [
            SteadyCluster(folder, [name], "ip", "netns", "exec", place, floats=floats, script=script)
            for name, place in zip(self.names, network.places, strict=True)
        ]
        self.all = self._launches[0]
        """Knows the run folder, which all share."""

    def wait(self) -> list[int]:
        """The exit codes."""
        return [one.process.wait(600) for one in self._launches]

    def end(self) -> None:
        for one in self._launches:
            one.process.terminate()
        for one in self._launches:
            one.end()

    def steps(self) -> dict[str, int]:
        """How many each node has made."""
        return {name: lines[-1]["step"] if (lines := self.all.metrics(name)) else 0 for name in self.names}

    def ends(self, since_s: float = 0.0) -> list[dict]:
        """The exchanges that brought something after a time; `node` is who asked."""
        return [
            {"node": name, **event}
            for name in self.names
            for event in self.all.exchanges(name)
            if event["outcome"] == "blended" and event["t"] > since_s
        ]

    def failures(self, since_s: float = 0.0) -> list[str]:
        """What went wrong after a time."""
        return [
            f"{name} {event['outcome']} {event.get('peer')} {event.get('reason')}"
            for name in self.names
            for event in self.all.exchanges(name)
            if event["outcome"] not in ("blended", "cancelled") and event["t"] > since_s
        ]

    def said_by(self, name: str) -> str:
        return (self.all.run_dir / "nodes" / name / "output.log").read_text()


@pytest.fixture
def start(network, tmp_path) -> Iterator:
    """Starts what trains on the hosts."""
    started: list[Hosts] = []

    def make(**what: object) -> Hosts:
        started.append(Hosts(network, tmp_path, **what))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for one in started:
        one.end()


def soon(condition: Callable[[], bool], what: str, deadline_s: float) -> None:
    """Waits, and leaves the processor to the thread that carries the packets: journals take a while to read."""

    def looked_at() -> bool:
        found = condition()
        if not found:
            time.sleep(0.5)
        return found

    wait_until(looked_at, what, deadline_s)


def assert_the_cables_were_what_they_should_be(network: PoorNetwork, exchanges: list[dict]) -> None:
    """And that nothing came without keys."""
    assert network.queued > 0
    assert min(event["duration_s"] for event in exchanges) >= 2 * DELAY_S, "question and answer take 25 ms each"
    assert all(event["duration_s"] >= event["bytes"] / BYTES_PER_S for event in exchanges)
    assert {event["via"] for event in exchanges} == {"stream"}
    assert network.words[WITH_KEYS] >= 2 * len(network.hosts)
    assert network.words[WITHOUT] == 0


def assert_held(cluster: SteadyCluster, *names: str) -> None:
    """These invariants. How much memory grows (I7) says nothing of a training that has just begun."""
    checks = {check.invariant.name: check for check in check_run(read_run(cluster.run_dir))}
    verdicts = {name: (checks[name].verdict, checks[name].findings) for name in names}
    assert {name: found for name, found in verdicts.items() if found[0] != "held"} == {}


@pytest.mark.parametrize("count", [4, 8])
def test_hosts_learn_fashion_mnist_while_a_cable_is_pulled_and_put_back(network, start, tmp_path, tell, count):
    data_dir, is_real = fashion_folder(tmp_path / "data")
    enough = tmp_path / "enough"
    hosts = start(script=(str(TESTS / "fashion_trainer.py"), str(data_dir), str(LEAST_STEPS), str(enough)))
    cluster, host, others = hosts.all, network.hosts[2], [name for name in hosts.names if name != "w3"]

    def meets_w3(since_s: float) -> bool:
        found = hosts.ends(since_s)
        return any(event["node"] == "w3" for event in found) and any(event["peer"] == "w3" for event in found)

    soon(lambda: min(hosts.steps().values()) >= 10 and meets_w3(0.0), "all train, also with w3", 300)
    pulled_s, before, lost = time.time(), hosts.steps(), network.lost
    network.own_links[host] = CUT_OFF
    number = cluster.began("partition", groups=[["w3"], others])
    sleep_until(pulled_s + PULLED_S)
    after, lost = hosts.steps(), network.lost - lost
    del network.own_links[host]
    back_s = time.time()
    cluster.record.write("undone", fault=number)
    cluster.record.write("evidence", fault=number, evidence=f"{lost} packets were lost")
    soon(lambda: meets_w3(back_s), "w3 exchanges again, both ways", BACK_WITHIN_S)
    met_s = time.time() - back_s
    enough.touch()
    codes = hosts.wait()
    exchanges = hosts.ends()
    right = [float(re.findall(r"test accuracy of \S+: ([\d.]+)%", hosts.said_by(name))[-1]) for name in hosts.names]
    tell(
        f"{count} hosts, {'Fashion-MNIST' if is_real else 'made-up images'}, {min(hosts.steps().values())} steps: "
        f"{min(right)} to {max(right)} % right; {len(exchanges)} exchanges, {len(hosts.failures())} failed; with the "
        f"cable of w3 pulled for {PULLED_S:.0f} s {lost} packets were lost, and nodes made "
        f"{', '.join(str(after[name] - before[name]) for name in hosts.names)} steps; w3 exchanged again both ways "
        f"{met_s:.1f} s after it was back"
    )
    assert codes == [0] * count
    assert lost > 0
    assert all(after[name] > before[name] for name in hosts.names)
    assert all({event["peer"] for event in exchanges if event["node"] == name} for name in hosts.names)
    assert_the_cables_were_what_they_should_be(network, exchanges)
    assert_held(cluster, "I2", "I3", "I4", "I5", "I9")
    assert min(right) > 70


def test_a_model_of_45_mb_is_exchanged_at_100_mbit_s_and_stops_nobody(network, start, tell):
    hosts = start(floats=FLOATS_OF_45_MB)
    network.own_links = dict.fromkeys(network.hosts, CUT_OFF)
    soon(lambda: min(hosts.steps().values()) >= 20, "all train", 120)
    alone_s = time.time()
    sleep_until(alone_s + MEASURED_S / 2)
    alone = {name: hosts.all.rate(name, alone_s, alone_s + MEASURED_S / 2) for name in hosts.names}
    network.own_links = {}
    soon(lambda: len({event["node"] for event in hosts.ends()}) == len(hosts.names), "all have blended", 90)
    began_s = time.time()
    sleep_until(began_s + MEASURED_S)
    kept = {name: hosts.all.rate(name, began_s, began_s + MEASURED_S) / alone[name] for name in hosts.names}
    exchanges, failures = hosts.ends(began_s), hosts.failures(began_s)
    durations_s = sorted(event["duration_s"] for event in exchanges)
    sizes = sorted(event["bytes"] / 1e6 for event in exchanges)
    tell(
        f"45 MB at 100 Mbit/s: {len(exchanges)} exchanges in {MEASURED_S:.0f} s, of {durations_s[0]:.1f} to "
        f"{durations_s[-1]:.1f} s and {sizes[0]:.1f} to {sizes[-1]:.1f} MB, {len(failures)} failed; the slowest node "
        f"keeps {100 * min(kept.values()):.1f} % of its step rate"
    )
    assert_the_cables_were_what_they_should_be(network, exchanges)
    assert {event["node"] for event in exchanges} == set(hosts.names)
    assert [failure for failure in failures if "timed_out" in failure] == []
    assert min(kept.values()) >= 0.9, kept
    hosts.end()
    assert_held(hosts.all, "I2", "I3", "I4", "I5")
