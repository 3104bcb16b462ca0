"""Strangers at the port of a node that trains with others: they cost little, and stop nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_peers import pull_of

from dpwa.transport import wire
from support import wait_until

SIZE = 200_000  # float64: 1.6 MB, more than a connection that is not read takes
PACE_S = 0.03
STRANGERS = Path(__file__).with_name("strangers.py")


class Training:
    """Nodes of one process that train at a steady pace in a thread of their own."""

    def __init__(self, cluster, nodes: int, **settings) -> None:
        self.nodes = cluster.start(_models(nodes), shared_memory="off", wait_ms=0, **settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train)
        self.error: BaseException | None = None
        self._thread.start()
        wait_until(lambda: all(node.statistics().blended >= 3 for node in self.nodes), "all exchange")

    def _train(self) -> None:
        next_s = time.monotonic()
        try:
            while not self._stop.is_set():
                for node in self.nodes:
                    node.step(1.0)
                next_s = max(next_s + PACE_S, time.monotonic())
                self._stop.wait(next_s - time.monotonic())
        except BaseException as error:
            self.error = error

    def rates(self, seconds: float) -> tuple[float, float, float, float]:
        """Exchanges per second of the first node and of all others, steps, and cores that the first one's Rx thread uses."""
        before, start_s = self._counts(), time.monotonic()
        threading.Event().wait(seconds)  # what is measured is a rate over this time
        after, took_s = self._counts(), time.monotonic() - start_s
        return tuple((late - early) / took_s for early, late in zip(before, after, strict=True))

    def _counts(self) -> tuple[float, ...]:
        first, *others = [node.statistics() for node in self.nodes]
        thread = self.nodes[0]._transport._rx._thread.native_id
        times = next(one for one in psutil.Process().threads() if one.id == thread)
        return first.blended, sum(each.blended for each in others), first.step, times.user_time + times.system_time

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def _models(nodes: int):
    from support import VectorModel

    return [VectorModel(np.full(SIZE, float(number))) for number in range(nodes)]


@pytest.fixture
def training(zeromq):
    made = []

    def start(nodes: int, **settings) -> Training:
        made.append(Training(zeromq, nodes, **settings))
        return made[-1]

    yield start
    for each in made:
        each.end()


def _attacked(training: Training, kind: str, seconds: float):
    """Rates before, during and after; the most memory that it took, and what the strangers did."""
    node = training.nodes[0]
    before = training.rates(min(seconds, 2.0))
    process = psutil.Process()
    rss = process.memory_info().rss
    pull = wire.encode(pull_of(node, count=1 if kind == "holders" else 2))
    port = node.config.nodes[0].port
    attack = subprocess.Popen(
        [sys.executable, STRANGERS, kind, str(port), str(seconds), pull.hex()], stdout=subprocess.PIPE, text=True
    )
    assert attack.stdout.readline() == "begun\n"
    peak, done = [rss], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    during = training.rates(seconds)
    output, _ = attack.communicate()
    done.set()
    watcher.join()
    assert attack.returncode == 0
    return before, during, (max(peak) - rss) / 2**20, json.loads(output)


_KINDS = ("silent", "multipart", "incomplete", "slow", "flood", "holders")


@pytest.mark.parametrize("kind", _KINDS)
def test_strangers_cost_little_and_stop_nothing(training, kind, caplog):
    trains = training(3)
    with caplog.at_level(logging.WARNING, "dpwa"):
        before, during, grown_mb, did = _attacked(trains, kind, 2.0)
    print(
        kind,
        "before",
        before,
        "during",
        during,
        "grown MB",
        grown_mb,
        did,
        trains.nodes[0]._transport.counters.guarded,
        trains.nodes[0].statistics().publish_skipped,
    )
    assert trains.error is None
