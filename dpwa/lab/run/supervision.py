"""Programs of a run: each to its end, to its deadline, or until the user ends the run.

The supervisor of `dpwa launch` starts and ends them, so nothing of a program's process group outlives it.

Runs in: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpwa.launch.processes import NodeCommand, Supervisor

__all__ = ["Ended", "EndedBySignal", "Programs"]

_POLL_S = 0.25
_GRACE_S = 10.0  # `dpwa launch` needs about half of it to end its nodes


class EndedBySignal(Exception):
    """The user has ended the run.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        exit_code: negative for a signal.
        wall_s: how long it ran.
        reason: the end in words.
        is_late: its deadline came first.
    """

    exit_code: int
    wall_s: float
    reason: str = ""
    is_late: bool = False


class Programs:
    """Runs programs, several at a time if it is asked to.

    Args:
        grace_s: how long a clean end may take after SIGTERM, in seconds.
    """

    def __init__(self, grace_s: float = _GRACE_S) -> None:
        self._grace_s = grace_s
        self._signal: int | None = None
        self._at_work: list[Supervisor] = []

    def end(self, signal_number: int) -> None:
        """Ends the programs at work, and every later `run`. A second call, a moment later, kills at once."""
        self._signal = self._signal or signal_number
        for supervisor in self._at_work:
            supervisor.stop()

    async def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        is_over: Callable[[float], bool] = lambda _elapsed_s: False,
        on_line: Callable[[str, str], None] = lambda _name, _line: None,
    ) -> Ended:
        """Starts a program and waits for its end.

        Args:
            argv: program and arguments.
            environment: the complete environment.
            log: file that gets its output appended; None keeps no copy.
            is_over: asked several times a second, with the seconds since the start, whether it is to be ended.
            on_line: called with "" and a line that it printed.

        Raises:
            EndedBySignal: `end` was called.
        """
        self._check_signal()
        started_s = time.monotonic()
        is_late = False
        command = NodeCommand("", tuple(argv), environment, log)
        supervisor = Supervisor([command], grace_s=self._grace_s, on_line=on_line)
        self._at_work.append(supervisor)
        running = asyncio.create_task(supervisor.run())
        try:
            while not (await asyncio.wait({running}, timeout=_POLL_S))[0]:
                if is_over(time.monotonic() - started_s) and not is_late:
                    is_late = True
                    supervisor.stop()
        finally:
            self._at_work.remove(supervisor)
        self._check_signal()
        (end,) = running.result()
        return Ended(end.exit_code, time.monotonic() - started_s, end.reason, is_late)

    def _check_signal(self) -> None:
        if self._signal is not None:
            raise EndedBySignal(self._signal)
