"""Processes of unequal pace: each outer step finds a partner, and nobody pauses for that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.observe.bounded_file import read_records
from support import ROOT

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(240)]

EVERY = 20
STEP_S = 0.05
SLOWED = 4
TRAIN_S = 20.0
END_S = 120.0
PERIODS = TRAIN_S / STEP_S / EVERY
"""Outer steps of the fastest, if each comes exactly after its H steps."""


class Nodes:
    """Four processes that train; the last one is slow."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.path = folder / "cluster.yaml"
        self.running: list[subprocess.Popen[str]] = []

    def train(self, *, by_speed: bool) -> list[dict[str, Any]]:
        """What each has done."""
        noloco = {"every": EVERY, "by_speed": by_speed}
        config = ClusterConfig.for_localhost(4, ports=free_ports(4), method="noloco", noloco=noloco)
        self.path.write_text(config.to_yaml(), encoding="utf-8")
        for name, step_s in zip(("w1", "w2", "w3", "w4"), [STEP_S] * 3 + [SLOWED * STEP_S], strict=True):
            arguments = [str(self.path), name, str(self.run_dir), str(step_s), str(TRAIN_S)]
            self.running.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "tests" / "speed_trainer.py"), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in self.running:
            assert process.stdout.readline() == "ready\n"
        for process in self.running:
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=END_S)[0] for process in self.running]
        assert [process.returncode for process in self.running] == [0] * 4
        return [json.loads(end) for end in ends]

    def partners(self) -> set[frozenset[str]]:
        events = [(path.parent.name, read_records(path)) for path in self.run_dir.glob("nodes/*/events.jsonl")]
        return {
            frozenset((node, event["peer"]))
            for node, lines in events
            for event in lines
            if event.get("kind") == "pair" and event["outcome"] == "blended"
        }

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def nodes(tmp_path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.close()


def test_a_process_that_is_four_times_slower_makes_its_outer_steps_with_the_others(nodes):
    did = nodes.train(by_speed=True)
    outer = [each["method"]["outer_steps"] for each in did]
    print(f"outer steps {outer} of {PERIODS:g}; exchanges {[each['exchanges'] for each in did]}")
    assert did[3]["method"]["local_steps"] == pytest.approx(EVERY / SLOWED, abs=1)
    assert min(outer) >= 0.8 * PERIODS
    assert max(outer) <= 1.3 * PERIODS
    assert len(nodes.partners()) == 6
    # Nobody pauses: all steps are made in the time that they take by themselves, and a step takes dpwa no time.
    assert all(each["took_s"] <= TRAIN_S + 2 * SLOWED * STEP_S for each in did)
    assert all(each["longest_s"] <= 0.02 for each in did)


def test_without_it_the_slow_one_makes_few(nodes):
    outer = [each["method"]["outer_steps"] for each in nodes.train(by_speed=False)]
    print(f"outer steps {outer} of {PERIODS:g}")
    assert outer[3] <= 0.5 * PERIODS
