"""The processes of a run's nodes on this machine, and signals that reach nobody else.

A number of a process is given again to others when it has ended. So a node's process is known by its number and its
start, and by the run folder in its environment; and it is held by a descriptor while it is looked at and signalled.

Must not know: which fault is due. Runs in: the main thread. Linux only.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpwa.observe.journal import node_folder
from dpwa.observe.process_use import environment_of, read_process, started_ticks, state_of

__all__ = ["Victim", "running_node"]

_SETTLE_S = 2.0
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Victim:
    """The process of a node.

    Attributes:
        node: its name.
        pid: its number.
        started: when it started, in clock ticks since the machine did.
        restarts: whoever has started it will do so again when it fails.
    """

    node: str
    pid: int
    started: int
    restarts: bool

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return started_ticks(self.pid) == self.started and state_of(self.pid) not in ("", "Z", "X")

    def send(self, number: int) -> bool:
        """Send a signal to this process and no other; False if it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.is_alive:  # looked at while it is held: its number cannot go to another one now
                return False
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait_for_state(self, *states: str) -> str:
        """What shows that it came into one of these states (see `state_of`); empty if it did not within 2 s."""
        end_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < end_s:
            state = state_of(self.pid) if started_ticks(self.pid) == self.started else ""
            if state in states:
                return f"state {state}" if state else "gone"
            time.sleep(_PAUSE_S)
        return ""


def running_node(run_dir: Path, node: str) -> Victim | None:
    """The process that is this node of this run now; None if there is none here."""
    found = read_process(node_folder(run_dir, node))
    if found is None:
        return None
    pid, started = found
    environment = environment_of(pid)
    theirs = environment.get("DPWA_RUN_DIR")
    is_of_run = False
    with suppress(OSError):
        is_of_run = theirs is not None and os.path.samefile(theirs, run_dir)
    if not is_of_run or environment.get("DPWA_NODE") != node:
        return None
    victim = Victim(node, pid, started, environment.get("DPWA_ON_FAILURE") == "restart")
    return victim if started and victim.is_alive else None
