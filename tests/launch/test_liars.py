"""A listed node that lies, as a process of its own, over encrypted sockets: the others train on, and say who it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpwa.launch.ports import free_ports
from support import TESTS, events_of

pytestmark = pytest.mark.heavy

HONEST = ("w1", "w2", "w3")


def launched(folder: Path, lie: str, **settings: object) -> Path:
    """A run of four nodes of which w4 lies; the run folder."""
    nodes = [{"name": f"w{number}", "port": port} for number, port in enumerate(free_ports(4), start=1)]
    flow_control = {"probe_s": 0.02, "probe_max_s": 0.2}
    # A step waits for its exchange, so that as many come to a step on a busy machine as on an idle one.
    values = {"nodes": nodes, "wait_ms": 500, "flow_control": flow_control, **settings}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(values))
    run_dir = folder / "run"
    command = [sys.executable, "-m", "dpwa", "launch", str(folder / "cluster.yaml"), "--run-dir", str(run_dir)]
    ended = subprocess.run(
        [*command, "--", sys.executable, str(TESTS / "lying_trainer.py"), lie, "200"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return run_dir


def end_of(run_dir: Path, node: str) -> float:
    lines = (run_dir / "nodes" / node / "metrics.jsonl").read_text().splitlines()
    return [line["x"] for line in map(json.loads, lines) if "x" in line][-1]


def test_a_node_whose_values_are_huge_is_refused_and_named(tmp_path):
    run_dir = launched(tmp_path, "huge")
    for node in HONEST:
        lines = events_of(run_dir, node)
        refused = [line for line in lines if line["event"] == "exchange" and line["outcome"] == "rejected"]
        assert refused, "it did lie"
        assert {line["peer"] for line in refused} == {"w4"}
        assert [line["peer"] for line in lines if line["event"] == "quarantine"] == ["w4"]
        assert end_of(run_dir, node) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(("guard", "is_held_back"), [("clip", False), ("finite", True)])
def test_a_node_that_gives_the_first_model_for_ever_holds_nobody_back(tmp_path, guard, is_held_back):
    run_dir = launched(tmp_path, "old", guard=guard)
    for node in HONEST:
        lines = events_of(run_dir, node, "exchange", peer="w4")
        assert sum(line["outcome"] == "blended" for line in lines) > 20, "it did lie"
        assert (abs(end_of(run_dir, node) - 1.5) > 0.3) is is_held_back
