"""`dpwa launch` of fault_trainer.py, whose nodes a test kills, stops or starves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dpwa.observe.invariants import check_run
from dpwa.observe.process_use import state_of
from dpwa.observe.run_folder import read_run
from dpwa.observe.run_record import CHAOS_FILE, RunRecord
from support import TESTS, wait_until

TRAINER = TESTS / "fault_trainer.py"
STEPS = 60  # three seconds of training


class Launch:
    """`dpwa launch` in a process of its own, with its output collected as it comes."""

    def __init__(self, folder: Path, *options: str, steps: int = STEPS, victim: str | None = None) -> None:
        self.run_dir = folder / "run"
        command = [sys.executable, "-m", "dpwa", "launch", str(folder / "cluster.yaml"), "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            [*command, *options, "--", sys.executable, str(TRAINER), str(steps), *([] if victim is None else [victim])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._record = RunRecord(self.run_dir, CHAOS_FILE)
        self._faults = 0
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self._reader.start()

    def find(self, pattern: str) -> list[str]:
        """What the pattern's group matched in each line so far."""
        return [found[1] for line in list(self.lines) if (found := re.search(pattern, line))]

    def pid(self, node: str, life: int = 1) -> int:
        """The process id of a node's n-th life."""
        wait_until(lambda: len(self.find(rf"{node} \| pid (\d+)")) >= life, f"{node} starts", 30)
        return int(self.find(rf"{node} \| pid (\d+)")[life - 1])

    def kill(self, node: str) -> int:
        """Kill a node that is in its first life, and write that down; its process id."""
        pid = self.pid(node)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: state_of(pid) in ("", "Z"), "it is dead")
        self._broke("kill", node, pid, "gone")
        return pid

    def stop(self, node: str) -> Callable[[], None]:
        """Stop a node, and write that down; what lets it go on."""
        pid = self.pid(node)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", "it stands still")
        fault = self._broke("stop", node, pid, "state T")

        def go_on() -> None:
            os.kill(pid, signal.SIGCONT)
            self._record.write("undone", fault=fault)

        return go_on

    def _broke(self, kind: str, node: str, pid: int, evidence: str) -> int:
        self._faults += 1
        self._record.write("fault", fault=self._faults, kind=kind, node=node, pid=pid, evidence=evidence)
        return self._faults

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(60)
        self.end()
        return code

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._reader.join(20)
        self.process.stdout.close()


def assert_held(run_dir: Path, *names: str) -> None:
    """These invariants held, and no other was violated; I4 is about speed, which a busy machine does not have."""
    checks = {check.invariant.name: check for check in check_run(read_run(run_dir))}
    found = {name: [finding.text for finding in check.findings] for name, check in checks.items() if name != "I4"}
    assert {name: texts for name, texts in found.items() if texts} == {}
    assert [name for name in names if checks[name].verdict != "held"] == []
