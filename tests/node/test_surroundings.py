"""Nodes on a machine that is not as it should be: a clock that jumps, and hardly any descriptors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import TESTS, VectorModel, events_of, wait_until

DAY_S = 86_400.0
DESCRIPTORS = 64


@pytest.mark.seconds
def test_a_clock_that_jumps_by_days_changes_nothing_but_the_times_in_the_journal(zeromq, tmp_path, monkeypatch):
    rng, real_s, jumps = random.Random(1), time.time, []

    def jumping_s() -> float:
        jumps.append(rng.uniform(-DAY_S, DAY_S))
        return real_s() + jumps[-1]

    start_s = time.monotonic()
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run_dir=tmp_path, metrics_interval_ms=50)
    zeromq.step_all(20)
    monkeypatch.setattr(time, "time", jumping_s)
    before = [node.statistics() for node in nodes]
    wait_until(
        lambda: (
            zeromq.step_all()
            or all(node.statistics().blended >= was.blended + 200 for node, was in zip(nodes, before, strict=True))
        ),
        "as many exchanges as ever",
        40.0,
    )
    zeromq.close()
    lasted_s = time.monotonic() - start_s
    assert len(jumps) > 400, "each exchange has its line"
    # Deadlines that follow the wall's clock would all fail; a busy machine may miss one of the monotonic clock.
    assert sum(node.statistics().failures for node in nodes) < 5
    assert np.ptp(zeromq.vectors()) < 1e-6
    for name in ("w1", "w2"):
        folder = tmp_path / "nodes" / name
        events = events_of(tmp_path, name)
        assert max(event["t"] for event in events) - min(event["t"] for event in events) > DAY_S
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert 3 <= len(lines) <= lasted_s / 0.05 + 2, "at their interval of the monotonic clock"


@pytest.mark.heavy
def test_a_cluster_whose_processes_may_have_64_descriptors_trains_and_exchanges(tmp_path):
    config = ClusterConfig.for_localhost(4, ports=free_ports(4), metrics_interval_ms=200)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    launch = (
        f"{sys.executable} -m dpwa launch cluster.yaml --run-dir run -- {sys.executable} {TESTS}/fault_trainer.py 60"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n {DESCRIPTORS}; ulimit -n; ulimit -Hn; exec {launch}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == [str(DESCRIPTORS)] * 2, "the limit is hard"
    for number in range(1, 5):
        folder = tmp_path / "run" / "nodes" / f"w{number}"
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 60
        assert last["exchanges"] > 10
