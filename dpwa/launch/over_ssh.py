"""One node of `dpwa launch --hosts`: the process that the launcher runs in its place, with ssh to the far end.

ssh gets a session of its own, so that a Ctrl-C reaches the node through this process, in order, and does not cut the
connection. When this process is killed, ssh's standard input ends, and the far end ends the node.

It imports little, because one is started for each node.

Must not know: the cluster file. Runs in: as `near_end`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dpwa.launch.far_words import Errand
from dpwa.launch.near_end import FAILED, run_near_end

__all__ = ["main"]

_READ_BYTES = 1 << 16


def main() -> NoReturn:
    """Runs the node that a file of `dpwa launch --hosts` describes; ends as the node does."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run_near_end(order, _Ssh(order))


class _Ssh:
    """One run of ssh; see `Carrier`.

    Args:
        order: for the near end, with `ssh` (its command) and `try` (a command to try).
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._ssh: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """See `Carrier`, also for the others."""
        self._ssh = subprocess.Popen(
            self._order["ssh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def adapted(self, errand: Errand) -> Errand:
        """The hosts are those of the file: nothing changes."""
        return errand

    def read(self) -> bytes:
        ssh = self._ssh
        return os.read(ssh.stdout.fileno(), _READ_BYTES) if ssh is not None and ssh.stdout is not None else b""

    def write(self, data: bytes) -> None:
        ssh = self._ssh
        if ssh is None or ssh.stdin is None or ssh.stdin.closed:
            return
        view = memoryview(data)
        with suppress(OSError):  # ssh has ended; its exit code says so
            while view:
                view = view[os.write(ssh.stdin.fileno(), view) :]

    def interrupt(self) -> None:
        if self._ssh is not None:
            self._ssh.terminate()

    def close(self) -> None:
        if self._ssh is not None:
            with suppress(OSError):
                self._ssh.stdin.close()  # type: ignore[union-attr]
            with self._ssh:  # waits for it
                pass

    def why(self, *, is_told: bool) -> str:
        told, code = self._order["told"], None if self._ssh is None else self._ssh.returncode
        if is_told:
            return f"the connection to {told} is lost; the node ends there as soon as that is noticed on its side"
        if code == FAILED:
            return f"{told} cannot be reached by ssh; try: {self._order['try']}"
        return f"dpwa does not start on {told} (exit code {code}); try: {self._order['try']}"
