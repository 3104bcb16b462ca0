"""Supervising processes from a terminal: the launcher's signals, and the lines of the nodes on standard output.

Must not know: the cluster, what a command is for. Runs in: the main thread, because signal handlers live there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from dpwa.launch.guard import GRACE_S
from dpwa.launch.output import LinePrinter
from dpwa.launch.processes import NodeCommand, NodeEnd, OnFailure, Supervisor

__all__ = ["end_signals", "run_shown", "supervise"]

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)

_LAST_LINES_TIMEOUT_S = 0.5
"""After a signal, how long the last lines may take to be shown; they are in the files anyway."""


async def supervise(supervisor: Supervisor) -> tuple[tuple[NodeEnd, ...], int | None]:
    """Runs the supervisor with the launcher's signals: SIGINT, SIGTERM and SIGHUP end it, SIGUSR1 and 2 are passed on.

    Returns:
        The ends of the nodes, and the first signal that asked for the end, if one did.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        # A terminal that is gone asks for an end, which nodes make of SIGTERM: SIGHUP would end them on the spot.
        supervisor.stop(signal.SIGTERM if number == signal.SIGHUP else number)

    with end_signals(end):
        for number in _PASSED_SIGNALS:
            loop.add_signal_handler(number, supervisor.send_signal, number)
        try:
            ends = await supervisor.run()
        finally:
            for number in _PASSED_SIGNALS:
                loop.remove_signal_handler(number)
    return ends, received[0] if received else None


@contextmanager
def end_signals(on_end: Callable[[int], None]) -> Iterator[None]:
    """Has the running event loop call `on_end` with the number of each SIGINT, SIGTERM and SIGHUP."""
    loop = asyncio.get_running_loop()
    # A SIGHUP that is ignored already was meant to be: `nohup dpwa launch ...`.
    numbers = [s for s in _END_SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, on_end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def run_shown(
    commands: Sequence[NodeCommand],
    on_failure: OnFailure,
    max_restarts: int,
    on_end: Callable[[str], None],
    record: Callable[..., None],
    grace_s: float = GRACE_S,
) -> tuple[tuple[NodeEnd, ...], int | None]:
    """Runs these commands with their lines on standard output; see `Supervisor` and `supervise`."""
    loop = asyncio.get_running_loop()
    gone: list[int] = []

    def reader_gone() -> None:
        gone.append(signal.SIGPIPE)
        supervisor.stop()

    def tell_loop() -> None:  # from the printer's thread; the loop may have ended by then
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(reader_gone)

    sys.stdout.flush()
    printer = LinePrinter(
        sys.stdout.fileno(),
        [command.name for command in commands],
        has_colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        on_reader_gone=tell_loop,
    )
    supervisor = Supervisor(
        commands,
        on_failure=on_failure,
        max_restarts=max_restarts,
        on_line=printer.put,
        has_room=printer.has_room,
        on_end=on_end,
        grace_s=grace_s,
        record=record,
    )
    ends, signal_number = await supervise(supervisor)
    signal_number = signal_number or next(iter(gone), None)
    printer.close(timeout_s=_LAST_LINES_TIMEOUT_S if signal_number else None)
    return ends, signal_number
