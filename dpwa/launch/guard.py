"""Ends the nodes when the launcher itself is killed and can no longer do so, and removes what killed nodes leave.

A launcher that gets SIGKILL runs no clean-up, and its nodes live in sessions of their own, so nothing would end
them. The guard is one small process per launcher that knows the process groups of the living nodes. It learns of the
launcher's end from the kernel: the write end of its standard input is held by the launcher alone, so end-of-file
means that the launcher is gone, however that came about. Then it sends SIGTERM to each group, and SIGKILL to what is
left when the group's leader has ended, or after `GRACE_S`. At its start and at its end it removes this user's segments
of shared memory whose owners have ended.

Why not PR_SET_PDEATHSIG: it reaches a node but not the workers it has forked, it exists on Linux only, and it needs
Python code between fork and exec.

Limits: a launcher killed within the millisecond between starting a node and announcing it leaves that node alone;
and if somebody kills the guard, the run goes on without one.

This file is both sides: `Guard` is used by the launcher's thread; `main` runs in the guard process, started by the
file's path and without site-packages, so it may import the standard library only and nothing of dpwa. It loads
`leftovers.py`, which keeps to the same rule, by its path, too.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO

__all__ = ["GRACE_S", "SAVING_TIMEOUT_S", "Guard", "is_saving", "main", "signal_group"]

GRACE_S = 5.0
"""How long nodes may take for a clean end after SIGTERM, in seconds: for the rest of a step, and to close."""

SAVING_TIMEOUT_S = 120.0
"""How long in all if that is because they are saving their models: gigabytes on a slow disk take a minute."""

_POLL_S = 0.05
_EXIT_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 2.0
_LEFTOVERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "transport", "leftovers.py")


def signal_group(group: int, signal_number: int) -> bool:
    """Sends a signal to a process group.

    Args:
        group: id of the process group.
        signal_number: the signal; 0 only asks whether the group exists.

    Returns:
        False if the group is gone (or, on macOS, holds nothing but ended processes).
    """
    try:
        os.killpg(group, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def is_saving(pid: int) -> bool:
    """Whether a process is writing a file that gets its final name when it is complete, as a model does.

    Only Linux tells.
    """
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(folder):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(f"{folder}/{descriptor}").endswith(".partial"):
                    return True
    return False


class Guard:
    """The launcher's handle on its guard process; a context manager."""

    def __enter__(self) -> Guard:
        # A session of its own keeps the terminal's Ctrl-C away from it; "/" as folder keeps no disk busy.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            bufsize=0,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    def watch(self, group: int) -> None:
        """From now on this process group ends when the launcher dies."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group has ended; its number may soon belong to somebody else."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        # A guard that was killed must not take a healthy run with it.
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode("ascii"))


def main(orders: BinaryIO) -> None:
    """The guard process: follows the orders until end-of-file, then ends the groups that are left.

    Args:
        orders: lines `+GROUP` (watch) and `-GROUP` (forget).
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remove_unowned = runpy.run_path(_LEFTOVERS)["remove_unowned"]  # now: it may not be there any more at the end
    remove_unowned()
    groups: set[int] = set()
    for line in orders:
        if not line.endswith(b"\n"):
            break  # the launcher died while it wrote: half a number would name somebody else's group
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    _end_groups(groups)
    remove_unowned()


def _end_groups(groups: set[int]) -> None:
    for group in groups:
        signal_group(group, signal.SIGTERM)
    # The leader is the node. What it has started does not outlive it, as under a launcher that lives.
    _wait_while(groups, _is_leader_alive, GRACE_S)
    _wait_while(groups, is_saving, SAVING_TIMEOUT_S - GRACE_S)
    for group in groups:
        signal_group(group, signal.SIGKILL)
    _wait_while(groups, lambda group: signal_group(group, 0), _KILL_TIMEOUT_S)


def _wait_while(groups: set[int], holds: Callable[[int], bool], timeout_s: float) -> None:
    """Wait while something holds for any of the groups."""
    deadline_s = time.monotonic() + timeout_s
    while any(holds(group) for group in groups) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _is_leader_alive(group: int) -> bool:
    try:
        os.kill(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin.buffer)
