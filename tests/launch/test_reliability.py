"""The figures of docs/reliability.md: what survivors keep when others are killed, hang or are cut off.

Each prints its number. They take minutes and want a machine of their own: `make reliability`.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steady_trainer import LOCK_HELD_S

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.launch.victims import Victim, running_node
from dpwa.observe.bounded_file import read_records
from dpwa.observe.invariants import check_run
from dpwa.observe.lives import Run
from dpwa.observe.process_use import state_of
from dpwa.observe.run_folder import read_run
from dpwa.observe.run_record import CHAOS_FILE, RunRecord
from support import TESTS, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAINER = TESTS / "steady_trainer.py"
PACE_MS = 50
METRICS_MS = 200


class Cluster:
    """A launch of nodes that make a step every 50 ms, as its run folder shows it."""

    def __init__(self, folder: Path, names: list[str], *prefix: str, options: tuple[str, ...] = ()) -> None:
        self.names = names
        self.run_dir = folder / "run"
        words = ["launch", str(folder / "cluster.yaml"), "--run-dir", str(self.run_dir), *options]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "dpwa", *words, "--", sys.executable, str(TRAINER), "100000", str(PACE_MS)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        self.record = RunRecord(self.run_dir, CHAOS_FILE)
        self._faults = 0

    def metrics(self, node: str) -> list[dict[str, Any]]:
        return list(read_records(self.run_dir / "nodes" / node / "metrics.jsonl"))

    def exchanges(self, node: str, peer: str) -> list[dict[str, Any]]:
        events = read_records(self.run_dir / "nodes" / node / "events.jsonl")
        return [event for event in events if event["event"] == "exchange" and event.get("peer") == peer]

    def wait_for_training(self, seconds: float = 3.0) -> None:
        """Until every node has trained with the others for so long."""
        steps = seconds * 1000 / PACE_MS

        def all_train() -> bool:
            return all((lines := self.metrics(name)) and lines[-1]["step"] >= steps for name in self.names)

        wait_until(all_train, "all train", 60)

    def node(self, name: str) -> Victim:
        found = running_node(self.run_dir, name)
        assert found is not None
        return found

    def rate(self, node: str, first_s: float, last_s: float) -> float:
        """Steps per second between two times, from the lines of metrics that are within."""
        lines = [line for line in self.metrics(node) if first_s <= line["t"] <= last_s]
        return (lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["t"] - lines[0]["t"])

    def began(self, kind: str, **about: object) -> int:
        self._faults += 1
        self.record.write("fault", fault=self._faults, kind=kind, **about)
        return self._faults

    def kill(self, name: str) -> None:
        victim = self.node(name)
        assert victim.send(signal.SIGKILL)
        self.began("kill", node=name, pid=victim.pid, evidence=victim.wait_for_state("", "Z"))

    def stop(self, name: str, seconds: float) -> tuple[float, float]:
        """Stop a node for so long; the times of the beginning and the end."""
        victim, began_s = self.node(name), time.time()
        assert victim.send(signal.SIGSTOP)
        number = self.began("stop", node=name, pid=victim.pid, evidence=victim.wait_for_state("T"))
        sleep_until(began_s + seconds)
        assert victim.send(signal.SIGCONT)
        self.record.write("undone", fault=number)
        return began_s, time.time()

    def hold_the_lock(self, name: str) -> tuple[float, float]:
        """Have a node hold its interpreter's lock in C; the times of the beginning and the end.

        Nothing of Python runs meanwhile, as in a process that is stopped, which is why it is written down as one.
        """
        victim = self.node(name)
        began_s = time.time()
        assert victim.send(signal.SIGUSR1)
        sleep_until(began_s + 1.0)
        assert time.time() - self.metrics(name)[-1]["t"] > 2 * METRICS_MS / 1000, "no thread of it writes"
        assert state_of(victim.pid) == "S", "it is not stopped"
        number = self.began("stop", node=name, pid=victim.pid, evidence="asleep in C, and nothing is written")
        sleep_until(began_s + LOCK_HELD_S)
        self.record.write("undone", fault=number)
        wait_until(lambda: self.metrics(name)[-1]["t"] > began_s + LOCK_HELD_S - 0.5, "it goes on")
        return began_s, began_s + LOCK_HELD_S

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


def sleep_until(moment_s: float) -> None:
    """Wait for a time: what is measured here is what happens until then."""
    time.sleep(max(0.0, moment_s - time.time()))


@pytest.fixture
def launch(tmp_path) -> Any:
    started: list[Cluster] = []

    def start(count: int) -> Cluster:
        config = ClusterConfig.for_localhost(
            count, ports=free_ports(count), metrics_interval_ms=METRICS_MS, journal_checksums=True
        )
        (tmp_path / "cluster.yaml").write_text(config.to_yaml())
        started.append(Cluster(tmp_path, [node.name for node in config.nodes]))
        started[-1].wait_for_training()
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def tell(capsys) -> Callable[[str], None]:
    """Prints a figure."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", flush=True)

    return show


def assert_all_held(run: Run, *must_be_seen: str) -> None:
    checks = {check.invariant.name: check for check in check_run(run)}
    found = {name: [finding.text for finding in check.findings] for name, check in checks.items() if check.findings}
    assert found == {}
    assert [name for name in must_be_seen if checks[name].verdict != "held"] == []


@pytest.mark.parametrize(
    "victims",
    [["w5"], ["w1"], ["w1", "w3", "w5", "w8"], ["w1", "w2", "w3", "w4", "w5", "w6", "w7"]],
    ids=["one", "the-first", "four", "seven"],
)
def test_survivors_of_k_of_8_keep_their_step_rate(launch, tell, victims):
    cluster = launch(8)
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
def test_a_hung_peer_is_avoided_and_used_again(launch, tell, how):
    cluster = launch(4)
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


def test_a_node_that_was_stopped_itself_blames_nobody(launch, tell):
    cluster = launch(4)
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


def _ip(*words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words], check=True, capture_output=True)


class Switch:
    """Two network namespaces with a bridge between them, in a third one, from which a cable can be pulled."""

    def __init__(self) -> None:
        stem = f"dpwa{os.getpid()}"
        self.sides, self._place = [f"{stem}a", f"{stem}b"], f"{stem}s"
        self._made: list[str] = []

    def build(self) -> None:
        for name in (self._place, *self.sides):
            _ip("netns", "add", name)
            self._made.append(name)
        # Without IPv6 the bridge says nothing by itself, and whatever crosses it was sent by a node.
        _ip("netns", "exec", self._place, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        _ip("-n", self._place, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._place, "link", "set", "bridge", "up")
        for number, side in enumerate(self.sides, start=1):
            cable = ["type", "veth", "peer", "name", "eth0", "netns", side]
            _ip("link", "add", f"port{number}", "netns", self._place, *cable)
            _ip("-n", side, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for place, link in ((side, "eth0"), (side, "lo"), (self._place, f"port{number}")):
                _ip("-n", place, "link", "set", link, "up")
            self.plug(number)

    def plug(self, number: int) -> None:
        _ip("-n", self._place, "link", "set", f"port{number}", "master", "bridge")

    def pull(self, number: int) -> None:
        """No carrier is lost: what is sent is dropped without a word."""
        _ip("-n", self._place, "link", "set", f"port{number}", "nomaster")

    def packets(self) -> tuple[int, int]:
        """How many came into the first port from its side, and how many went out of the second one."""
        words = ["netns", "exec", self._place, "cat", "/proc/net/dev"]
        shown = subprocess.run([shutil.which("ip") or "ip", *words], check=True, capture_output=True, encoding="utf-8")
        counts = {line.split(":")[0].strip(): line.split(":")[1].split() for line in shown.stdout.splitlines()[2:]}
        return int(counts["port1"][1]), int(counts["port2"][9])

    def remove(self) -> None:
        for name in self._made:
            _ip("netns", "delete", name)


@pytest.fixture
def switch():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the program ip, for network namespaces")
    made = Switch()
    try:
        made.build()
        yield made
    finally:
        made.remove()


def test_halves_of_a_cluster_train_apart_and_find_each_other_again(switch, tmp_path, tell):
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
        Cluster(tmp_path, half, "ip", "netns", "exec", network, options=tuple(f"--node={name}" for name in half))
        for half, network in zip(halves, switch.sides, strict=True)
    ]
    try:
        for cluster in clusters:
            cluster.wait_for_training(6.0)
        _measure_the_parted(clusters[0], names, halves, switch, tell)
    finally:
        for cluster in clusters:
            cluster.end()


def _measure_the_parted(cluster: Cluster, names: list[str], halves: list[list[str]], switch: Switch, tell: Any) -> None:
    def spread(first_s: float, last_s: float) -> float:
        """How far apart the nodes' parameters are, in the mean over a time."""
        per_node = [[line["x"] for line in cluster.metrics(name) if first_s <= line["t"] <= last_s] for name in names]
        return statistics.mean(statistics.pstdev(values) for values in zip(*per_node, strict=False))

    together_s = time.time()
    sleep_until(together_s + 4)
    parted_s = time.time()
    switch.pull(1)
    sent_before, _ = switch.packets()
    number = cluster.began("partition", groups=halves)
    sleep_until(parted_s + 1)
    _, crossed_before = switch.packets()
    sleep_until(parted_s + PARTED_S)
    sent, crossed = switch.packets()
    packets, crossed = sent - sent_before, crossed - crossed_before
    switch.plug(1)
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
