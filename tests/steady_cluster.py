"""A launch of nodes that make a step every 50 ms (steady_trainer.py), for tests that measure what faults cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from steady_trainer import LOCK_HELD_S

from dpwa.launch.victims import Victim, running_node
from dpwa.observe.bounded_file import read_records
from dpwa.observe.invariants import check_run
from dpwa.observe.lives import Run
from dpwa.observe.process_use import state_of
from dpwa.observe.run_record import CHAOS_FILE, RunRecord
from support import TESTS, events_of, wait_until

TRAINER = TESTS / "steady_trainer.py"
PACE_MS = 50
METRICS_MS = 200


class SteadyCluster:
    """A launch of nodes, as its run folder shows it.

    Args:
        folder: holds cluster.yaml; the run folder is made in it.
        names: of the nodes.
        prefix: before the command.
        options: of `dpwa launch`.
        floats: makes the model larger by so many float64.
        script: trains in place of steady_trainer.py; with its arguments.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        *prefix: str,
        options: tuple[str, ...] = (),
        floats: int = 0,
        script: tuple[str, ...] = (),
    ) -> None:
        self.names = names
        self.run_dir = folder / "run"
        words = ["launch", str(folder / "cluster.yaml"), "--run-dir", str(self.run_dir), *options]
        script = script or (str(TRAINER), "100000", str(PACE_MS), str(floats))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "dpwa", *words, "--", sys.executable, *script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        self.record = RunRecord(self.run_dir, CHAOS_FILE)
        self._faults = 0

    def metrics(self, node: str) -> list[dict[str, Any]]:
        return list(read_records(self.run_dir / "nodes" / node / "metrics.jsonl"))

    def exchanges(self, node: str, peer: str | None = None) -> list[dict[str, Any]]:
        """Those of a node, with a peer or with all."""
        events = events_of(self.run_dir, node, "exchange")
        return [event for event in events if peer in (None, event.get("peer"))]

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


def assert_all_held(run: Run, *must_be_seen: str) -> None:
    checks = {check.invariant.name: check for check in check_run(run)}
    found = {name: [finding.text for finding in check.findings] for name, check in checks.items() if check.findings}
    assert found == {}
    assert [name for name in must_be_seen if checks[name].verdict != "held"] == []
