"""A process with everything that it starts: to its end, to its deadline, or to the end of this program.

Must not know: what it does. Runs in: the main thread, because signal handlers live there.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dpwa.launch.guard import Guard, signal_group

__all__ = ["Ended", "EndedBySignal", "run_to_end", "signals_as_exceptions"]

_POLL_S = 0.25
_GRACE_S = 10.0
"""How long it may take for a clean end after SIGTERM; `dpwa launch` ends its nodes in this time."""

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedBySignal(Exception):
    """This program was asked to end.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: minus the signal's number if a signal ended it.
        wall_s: how long it took.
        is_late: its deadline came first.
    """

    exit_code: int
    wall_s: float
    is_late: bool = False


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """The first of SIGINT, SIGTERM and SIGHUP raises EndedBySignal; later ones cannot disturb the clean-up."""
    before = {number: signal.getsignal(number) for number in _END_SIGNALS}

    def end(number: int, _frame: FrameType | None) -> None:
        for one in _END_SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise EndedBySignal(number)

    # A SIGHUP that is ignored already was meant to be: `nohup dpwa lab run ...`.
    for number in _END_SIGNALS:
        if number != signal.SIGHUP or before[number] != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_to_end(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    deadline_s: float,
    on_wait: Callable[[float], None] | None = None,
) -> Ended:
    """Start a process and wait for it. Nothing of its group is left when this returns or raises.

    Args:
        argv: command and arguments.
        environment: all of it.
        log: gets what it prints, after what is there.
        deadline_s: seconds until it is ended.
        on_wait: called several times a second with the seconds since the start.

    Raises:
        EndedBySignal: this program was asked to end, inside of `signals_as_exceptions`.
        OSError: it cannot be started.
    """
    started_s = time.monotonic()
    with Guard() as guard, log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            guard.watch(process.pid)
            while process.poll() is None:
                elapsed_s = time.monotonic() - started_s
                if elapsed_s > deadline_s:
                    return Ended(_end(process), elapsed_s, is_late=True)
                if on_wait is not None:
                    on_wait(elapsed_s)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
            return Ended(process.returncode, time.monotonic() - started_s)
        finally:
            _end(process)
            guard.forget(process.pid)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends the group of a process: politely at first."""
    if process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    signal_group(process.pid, signal.SIGKILL)
    return process.wait()
