"""Starts the nodes of this host as processes, watches them, and ends them with all that they have started.

Each node leads a session, and so a process group, of its own. When the leader has ended, for whatever reason, its
group gets SIGKILL at once: the workers of a data loader, or a fork server, never outlive their node and never hold its
port. A node that leaves processes behind on purpose has to give them a session of their own.

Must not know: the cluster file, the command line, how lines are shown. Runs in: the event loop's thread, all of it;
`Supervisor.stop` too, so call it from signal handlers of the loop or through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path

from dpwa.launch.guard import GRACE_S, SAVING_TIMEOUT_S, Guard, is_saving, signal_group
from dpwa.launch.output import OUTPUT_MAX_BYTES, NodeOutput, OutputPipe, prefix_chars
from dpwa.launch.terminal import QuietInput

__all__ = ["NodeCommand", "NodeEnd", "OnFailure", "Supervisor", "restart_delay_s"]

_HEALTHY_S = 60.0
"""A node that ran for this long before it failed starts the count of restarts anew."""

_FIRST_RESTART_DELAY_S = 1.0
_MAX_RESTART_DELAY_S = 30.0

_SAVING_POLL_S = 0.1

_DRAIN_S = 1.0
"""Longest wait for a pipe that a process outside the node's group still holds open."""

_SECOND_STOP_S = 0.3
"""A second stop means "at once" only this long after the first: a Ctrl-C can reach the launcher twice at the same
moment, for example from `timeout`, which signals its child and then the child's group."""

_EXIT_NOT_EXECUTABLE = 126  # the shell's codes for a command that cannot be run
_EXIT_NOT_FOUND = 127


class OnFailure(str, Enum):
    """What to do when a node fails."""

    CONTINUE = "continue"
    """The others go on without it."""
    STOP = "stop"
    """All are ended."""
    RESTART = "restart"
    """It is started again, after a pause that grows."""


@dataclass(frozen=True)
class NodeCommand:
    """What to start for one node.

    Attributes:
        name: name of the node.
        argv: program and arguments.
        environment: the complete environment of the process.
        output_path: file that gets the raw output appended; None keeps no copy.
        output_max_bytes: limit of that file and its older generation together.
        first_life: what is added to the environment, until the node is started again.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    output_path: Path | None
    output_max_bytes: int = OUTPUT_MAX_BYTES
    first_life: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeEnd:
    """How a node ended.

    Attributes:
        name: name of the node.
        exit_code: of its last life; negative for a signal.
        restarts: how often it was started again.
        was_stopped: it ended because the supervisor was told to stop.
    """

    name: str
    exit_code: int
    restarts: int
    was_stopped: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended badly, and by itself."""
        return self.exit_code != 0 and not self.was_stopped

    @property
    def reason(self) -> str:
        """The end in words."""
        return _reason(self.exit_code)


def restart_delay_s(failures: int) -> float:
    """Pause before a node is started again, in seconds: 1, 2, 4 ... 30.

    Args:
        failures: failures before this one since the node last ran well, 0 or more.
    """
    # The exponent is bounded because a float power of a large count overflows.
    return min(_FIRST_RESTART_DELAY_S * 2.0 ** min(failures, 10), _MAX_RESTART_DELAY_S)


def _always() -> bool:
    return True


def _ignore(event: str, **fields: object) -> None:
    """Nobody keeps a record."""


def _nothing(name: str) -> None:
    pass


class Supervisor:
    """Runs a set of nodes until all have ended.

    Args:
        commands: one per node.
        on_failure: what to do when a node fails.
        max_restarts: how often in a row a node is started again under `OnFailure.RESTART`.
        grace_s: time that the nodes have for a clean end after `stop`, in seconds; one that is saving has more.
        on_line: called with the name of a node and a line that it printed.
        has_room: False asks to read no more output for now.
        record: called with what happens to the nodes: `started`, `ended`, and `told` to end.
        on_end: called with the name of a node that has ended and is not started again.
    """

    def __init__(
        self,
        commands: Sequence[NodeCommand],
        *,
        on_failure: OnFailure = OnFailure.CONTINUE,
        max_restarts: int = 5,
        grace_s: float = GRACE_S,
        on_line: Callable[[str, str], None],
        has_room: Callable[[], bool] = _always,
        on_end: Callable[[str], None] = _nothing,
        record: Callable[..., None] = _ignore,
    ) -> None:
        self._on_end = on_end
        self._record = record
        self._commands = tuple(commands)
        self._on_failure = on_failure
        self._max_restarts = max_restarts
        self._grace_s = grace_s
        self._on_line = on_line
        self._has_room = has_room
        self._groups: dict[int, NodeOutput] = {}
        self._guard = Guard()
        self._stopping = asyncio.Event()
        self._stop_signal: int = signal.SIGTERM
        self._stopped_at_s = 0.0
        self._kill_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> tuple[NodeEnd, ...]:
        """Starts all nodes and waits for the last one; call it once.

        Returns:
            One end per command, in the order of the commands.

        Raises:
            OSError: no pipe, process or file can be made. All nodes have been ended by then.
        """
        self._loop = asyncio.get_running_loop()
        with self._guard:
            tasks = [asyncio.create_task(self._supervise(command)) for command in self._commands]
            try:
                return tuple(await asyncio.gather(*tasks))
            finally:
                # After an error or a cancellation some still run: their own clean-up ends the nodes.
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if self._kill_timer is not None:
                    self._kill_timer.cancel()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ends all nodes: passes the signal to each group, and SIGKILL when `grace_s` has passed.

        A node that is saving its model by then may end that.

        Called again (not in the same moment), it kills at once. Before `run` it makes `run` start nothing.

        Args:
            signal_number: the signal to begin with.
        """
        now_s = self._loop.time() if self._loop else 0.0
        if not self._stopping.is_set():
            self._stopping.set()
            self._stopped_at_s = now_s
            self._record("told", signal=signal_number)
            self._end_groups(signal_number)
            if self._loop is not None:
                self._kill_timer = self._loop.call_later(self._grace_s, self._end_late, self._loop)
        elif now_s - self._stopped_at_s >= _SECOND_STOP_S:
            self._record("told", signal=int(signal.SIGKILL))  # what ends now has not had its time
            self._end_groups(signal.SIGKILL)

    def send_signal(self, signal_number: int) -> None:
        """Passes a signal such as SIGUSR1 on to the nodes themselves.

        Not to their groups: it would kill each worker process that has no handler for it.

        Args:
            signal_number: the signal.
        """
        for leader in self._groups:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(leader, signal_number)

    def _end_groups(self, signal_number: int) -> None:
        self._stop_signal = signal_number  # a node that is being started at this moment gets it when it is known
        for group, output in self._groups.items():
            output.folds_interrupts = True
            signal_group(group, signal_number)

    def _end_late(self, loop: asyncio.AbstractEventLoop, *, has_told: bool = False) -> None:
        """The time for a clean end is over."""
        self._stop_signal = signal.SIGKILL
        may_save = loop.time() - self._stopped_at_s < SAVING_TIMEOUT_S
        saving = [group for group in self._groups if may_save and is_saving(group)]
        for group, output in self._groups.items():
            if group not in saving:
                signal_group(group, signal.SIGKILL)
            elif not has_told:
                output.say("still saving its model; another Ctrl-C ends it at once")
        if saving:
            self._kill_timer = loop.call_later(_SAVING_POLL_S, partial(self._end_late, loop, has_told=True))

    async def _supervise(self, command: NodeCommand) -> NodeEnd:
        """All lives of one node."""
        if self._stopping.is_set():
            return NodeEnd(command.name, -self._stop_signal, 0, was_stopped=True)
        output = NodeOutput(
            command.output_path,
            lambda line: self._on_line(command.name, line),
            max_bytes=command.output_max_bytes,
        )
        failures_in_a_row = restarts = 0
        try:
            while True:
                exit_code, lived_s = await self._live(command, output)
                if exit_code == 0 or self._stopping.is_set():
                    return NodeEnd(command.name, exit_code, restarts, was_stopped=self._stopping.is_set())
                if lived_s >= _HEALTHY_S:
                    failures_in_a_row = 0
                if not await self._is_to_restart(output, exit_code, failures_in_a_row):
                    return NodeEnd(command.name, exit_code, restarts)
                failures_in_a_row += 1
                restarts += 1
                command = replace(command, first_life={})
        finally:
            output.close()
            self._on_end(command.name)

    async def _is_to_restart(self, output: NodeOutput, exit_code: int, failures_in_a_row: int) -> bool:
        """Does what the policy says about a failure; True when it is time to start the node again."""
        reason = _reason(exit_code)
        if self._on_failure is OnFailure.STOP:
            output.say(f"{reason}; ending all nodes")
            self.stop()
            return False
        if self._on_failure is OnFailure.CONTINUE:
            output.say(f"{reason}; the launch goes on without this node" if len(self._commands) > 1 else reason)
            return False
        if failures_in_a_row >= self._max_restarts:
            output.say(f"{reason}; not started again, the limit of {self._max_restarts} restarts in a row is reached")
            return False
        delay_s = restart_delay_s(failures_in_a_row)
        output.say(f"{reason}; restart {failures_in_a_row + 1} of {self._max_restarts} in {delay_s:.0f} s")
        try:
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        except asyncio.TimeoutError:
            return True
        return False

    async def _live(self, command: NodeCommand, output: NodeOutput) -> tuple[int, float]:
        """One life of one node: its exit code, and how long it lived in seconds."""
        started_at_s = asyncio.get_running_loop().time()
        pipe = OutputPipe(output, self._has_room)
        quiet = QuietInput(prefix_chars([each.name for each in self._commands]))
        try:
            process = await _start(command, pipe, quiet)
        except _NotStarted as error:
            quiet.close()
            output.say(str(error))
            return error.exit_code, 0.0
        self._groups[process.pid] = output
        self._guard.watch(process.pid)
        self._record("started", node=command.name, pid=process.pid)
        try:
            if self._stopping.is_set():
                signal_group(process.pid, self._stop_signal)
            exit_code = await process.wait()
            self._record("ended", node=command.name, pid=process.pid, exit_code=exit_code)
        finally:
            # The group's number cannot be given to others while a member lives; with none left this finds nobody,
            # because the kernel counts through all other numbers before it uses one again.
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            self._groups.pop(process.pid, None)
            self._guard.forget(process.pid)
            quiet.close()
            await pipe.drain(_DRAIN_S)
        return exit_code, asyncio.get_running_loop().time() - started_at_s


class _NotStarted(Exception):
    """The operating system would not run the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


async def _start(command: NodeCommand, pipe: OutputPipe, quiet: QuietInput) -> Process:
    # A pipe of our own, and not asyncio's PIPE: with that, some versions of `Process.wait` return only when the last
    # holder of the pipe has ended, and a worker that outlives its node would be waited for instead of killed.
    read_end, write_end = os.pipe()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: pipe, os.fdopen(read_end, "rb", buffering=0))
        return await asyncio.create_subprocess_exec(
            *command.argv,
            env={**command.environment, **command.first_life},
            stdin=quiet.descriptor,
            stdout=write_end,
            stderr=STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        await pipe.drain(0.0)
        exit_code = _EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else _EXIT_NOT_EXECUTABLE
        raise _NotStarted(f"cannot start {command.argv[0]}: {error.strerror or error}", exit_code) from error
    finally:
        os.close(write_end)
        quiet.given()


def _reason(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-exit_code}"
