"""`dpwa launch` of fault_trainer.py, whose nodes a test kills, stops or starves."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

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
