"""Nodes that start at any moment, and again on a port whose last owner was killed. Each test prints its figure."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.observe.process_use import state_of
from support import TESTS, Cluster, VectorModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RESTARTS = 5

STARTS = 200
AT_ONE_TIME = 8
LONGEST_STAGGER_S = 3.0
CONNECTED_WITHIN_S = 10.0


# --- Again on the same port -------------------------------------------------------------------------------------------


class _Life:
    """One process of worker_trainer.py, which has imported all that it needs and waits."""

    def __init__(self, cluster_file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "worker_trainer.py"), str(cluster_file), "w2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        assert self._said("ready") == []
        self.workers: list[int] = []

    def start(self) -> float:
        """Start its node; how long that took."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        (took_s,) = self._said("bound")
        self.workers = [int(number) for number in self._said("workers")]
        return float(took_s)

    def blended_after_s(self) -> float:
        return float(self._said("blended")[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()

    def _said(self, word: str) -> list[str]:
        line = self.process.stdout.readline().split()
        assert line[:1] == [word], line
        return line[1:]


@pytest.fixture
def w1(zeromq, tmp_path):
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    (tmp_path / "cluster.yaml").write_text(zeromq.config.to_yaml())
    return zeromq.add("w1", VectorModel([1.0]))


@pytest.fixture
def lives(w1, tmp_path):  # noqa: ARG001 - it writes the cluster file
    made: list[_Life] = []

    def prepare() -> _Life:
        made.append(_Life(tmp_path / "cluster.yaml"))
        return made[-1]

    yield prepare
    for life in made:
        if life.process.poll() is None:
            life.kill()
        for worker in life.workers:
            if state_of(worker) not in ("", "Z"):
                os.kill(worker, signal.SIGKILL)


def test_a_node_with_data_loader_workers_is_back_on_its_port_at_once(w1, lives, tell):
    stop = threading.Event()

    def train() -> None:
        while not stop.wait(0.02):
            w1.step(1.0)

    life = lives()
    life.start()
    bound_s, blended_s, met_s = [], [], []
    with ThreadPoolExecutor(1) as trainer:
        training = trainer.submit(train)
        try:
            life.blended_after_s()
            for _ in range(RESTARTS):
                following, former_workers = lives(), life.workers
                life.kill()
                bound_s.append(following.start())
                alive = [worker for worker in former_workers if state_of(worker) not in ("", "Z")]
                assert len(alive) == 2, "the killed trainer's workers live on, and hold whatever they inherited"
                before, began_s = w1.statistics().blended, time.monotonic()
                blended_s.append(following.blended_after_s())
                while w1.statistics().blended == before:
                    assert time.monotonic() < began_s + 10.0
                    time.sleep(0.005)
                met_s.append(time.monotonic() - began_s)
                life = following
        finally:
            stop.set()
        training.result()
    tell(
        f"{RESTARTS} restarts on the port of a killed trainer with two DataLoader workers: bound after "
        f"{max(bound_s):.2f} s at most, its first good exchange after {max(blended_s):.2f} s, its peer's with it after "
        f"{max(met_s):.2f} s"
    )
    assert max(bound_s) <= 0.5
    assert max(*blended_s, *met_s) <= 1.5


# --- In any order -----------------------------------------------------------------------------------------------------


def test_four_nodes_that_start_at_any_moment_connect_to_each_other_every_time(tell):
    ports = iter(free_ports(4 * STARTS))
    lots = [[next(ports) for _ in range(4)] for _ in range(STARTS)]
    with ThreadPoolExecutor(AT_ONE_TIME) as many:
        took_s = list(many.map(_start_four, range(STARTS), lots))
    connected_s = sorted(seconds for seconds in took_s if seconds is not None)
    tell(
        f"{len(connected_s)} of {STARTS} starts of four nodes, at random moments within {LONGEST_STAGGER_S:g} s, ended "
        f"with all pairs connected: {connected_s[len(connected_s) // 2]:.2f} s after the last start in the median, "
        f"{connected_s[-1]:.2f} s at most"
    )
    assert len(connected_s) == STARTS


def _start_four(seed: int, ports: list[int]) -> float | None:
    """Start four nodes; how many seconds after the last start all had met, None if that takes too long."""
    rng = random.Random(seed)
    made = Cluster("zeromq")
    made.config = ClusterConfig.for_localhost(4, ports=ports)
    now_s = time.monotonic()
    starts_s = sorted((now_s + rng.uniform(0.0, LONGEST_STAGGER_S), f"w{number}") for number in range(1, 5))
    last_s = starts_s[-1][0]
    try:
        while time.monotonic() < last_s + CONNECTED_WITHIN_S:
            while starts_s and starts_s[0][0] <= time.monotonic():
                made.add(starts_s.pop(0)[1], VectorModel(np.zeros(8)))
            made.step_all()
            if not starts_s and all(_has_met_all(node) for node in made.nodes):
                return time.monotonic() - last_s
            time.sleep(0.02)
    finally:
        made.close()
    return None


def _has_met_all(node) -> bool:
    start = node.config.flow_control.score_start
    return all(score > start for score in node.statistics().scores.values())
