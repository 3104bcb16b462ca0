"""`dpwa launch` in the background: its lines as they come, its end, and what it leaves running."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


class BackgroundLaunch:
    """One launch.

    Args:
        words: after `dpwa launch`.
        folder: in which it runs.
        environment: all of it.
        patience_s: whatever is waited for takes no longer.
        stdout: where its lines go; they are read from a pipe only.
        stderr: where its own lines go.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        environment: Mapping[str, str],
        patience_s: float,
        *,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.STDOUT,
    ) -> None:
        self.patience_s = patience_s
        self.begin_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dpwa", "launch", *words],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._incoming: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._incoming.put(line.decode().rstrip("\n"))
        self._incoming.put(None)

    def wait_for(self, holds: Callable[[], Any]) -> Any:
        """Takes lines until something holds; returns that."""
        deadline_s = time.monotonic() + self.patience_s
        while not (found := holds()):
            line = self._incoming.get(timeout=max(0.0, deadline_s - time.monotonic()))
            assert line is not None, self.text
            self.lines.append(line)
        return found

    def wait_lines(self, pattern: str, count: int = 1) -> list[str]:
        """Waits until so many lines match."""
        return self.wait_for(lambda: (found := self.matching(pattern)) and len(found) >= count and found)

    def matching(self, pattern: str) -> list[str]:
        return [line for line in self.lines if re.search(pattern, line)]

    def end(self, within_s: float | None = None) -> int:
        """Waits for the end, and has all lines."""
        code = self.process.wait(within_s or self.patience_s)
        while (line := self._incoming.get(timeout=self.patience_s)) is not None:
            self.lines.append(line)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(self.patience_s)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def remains(folder: Path) -> list[psutil.Process]:
    """Processes that know a folder, as nodes, both their ends and what carries between them do."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and knows(process, folder)]


def knows(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return any(str(folder) in word for word in [*process.cmdline(), process.cwd()])
    return False
