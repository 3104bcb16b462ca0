"""The supervisor: real processes, what they print, how they end, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dpwa.launch import guard, processes
from dpwa.launch.folding import LINE_LIMIT
from dpwa.launch.processes import NodeCommand, NodeEnd, OnFailure, Supervisor, restart_delay_s

pytestmark = pytest.mark.heavy

# A worker that ignores what it can, and the pids of it and of its parent, on one line. `os.read(r, 1)` waits for it.
FORK_STUBBORN_WORKER = """
import os, signal, sys, time
r, w = os.pipe()
worker = os.fork()
if worker == 0:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, f"pids {os.getpid()} {os.getppid()}\\n".encode())
    os.write(w, b"x")
    time.sleep(600)
"""


def python(name: str, code: str, *, output_path: Path | None = None, **environment: str) -> NodeCommand:
    return NodeCommand(name, (sys.executable, "-c", code), {**os.environ, **environment}, output_path)


class Run:
    """One supervisor, its lines, and the processes that its nodes have named in a line `pids ...`."""

    def __init__(
        self,
        *commands: NodeCommand,
        react: Callable[[Supervisor, str], None] | None = None,
        on_failure: OnFailure = OnFailure.CONTINUE,
        max_restarts: int = 5,
        grace_s: float = 3.0,
    ) -> None:
        self.lines: list[tuple[str, str]] = []
        self.records: list[dict[str, object]] = []
        self.processes: list[psutil.Process] = []
        self.named_total = 0
        self._react = react
        self.supervisor = Supervisor(
            commands,
            on_failure=on_failure,
            max_restarts=max_restarts,
            grace_s=grace_s,
            on_line=self._on_line,
            record=lambda event, **fields: self.records.append({"event": event, **fields}),
        )
        started_s = time.monotonic()
        self.ends = asyncio.run(self.supervisor.run())
        self.duration_s = time.monotonic() - started_s

    def _on_line(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        if line.startswith("pids "):
            for pid in line.split()[1:]:
                self.named_total += 1
                with suppress(psutil.NoSuchProcess):  # it may have ended before its line came
                    self.processes.append(psutil.Process(int(pid)))
        if self._react is not None:
            self._react(self.supervisor, line)


def assert_ended(processes: Sequence[psutil.Process], *, timeout_s: float = 2.0) -> None:
    """None of these lives; one that its new parent has not waited for yet is dead all the same."""
    deadline_s = time.monotonic() + timeout_s
    alive = list(processes)
    while alive and time.monotonic() < deadline_s:
        _, alive = psutil.wait_procs(alive, timeout=0.02)
        alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def test_lines_come_with_the_name_and_the_raw_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "nodes" / "w1" / "output.log"
    run = Run(
        python("w1", r"import os; os.write(1, b'a\xff\n'); os.write(2, b'b')", output_path=path),
        python("w2", "print('c')"),
    )
    assert sorted(run.lines) == [("w1", "a\ufffd"), ("w1", "b"), ("w2", "c")]
    assert path.read_bytes() == b"a\xff\nb"
    assert run.ends == (NodeEnd("w1", 0, 0), NodeEnd("w2", 0, 0))


def test_a_second_run_adds_to_the_raw_output(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    for text in ("one", "two"):
        Run(python("w1", f"print('{text}')", output_path=path))
    assert path.read_text() == "one\ntwo\n"


def test_a_node_gets_its_environment_an_empty_stdin_and_a_session_of_its_own() -> None:
    code = "import os, sys; print(os.environ['MARK'], repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    assert Run(python("w1", code, MARK="here")).lines == [("w1", "here '' True")]


@pytest.mark.parametrize(
    ("code", "exit_code", "failed", "reason"),
    [
        ("", 0, False, "exit code 0"),
        ("raise SystemExit(3)", 3, True, "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, True, "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", -40, True, "killed by signal 40"),
    ],
)
def test_the_end_of_a_node_is_told_in_words(code: str, exit_code: int, *, failed: bool, reason: str) -> None:
    (end,) = Run(python("w1", code)).ends
    assert (end.exit_code, end.failed, end.reason) == (exit_code, failed, reason)


@pytest.mark.parametrize(("content", "exit_code"), [(None, 127), ("no program", 126)])
def test_a_command_that_cannot_be_run_fails_its_node_only(tmp_path: Path, content: str | None, exit_code: int) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    run = Run(NodeCommand("w1", (str(program),), os.environ, None), python("w2", "print('fine')"))
    assert [end.exit_code for end in run.ends] == [exit_code, 0]
    assert any(name == "w1" and line.startswith(f"[dpwa] cannot start {program}: ") for name, line in run.lines)


def test_bytes_without_a_line_end_are_shown_in_pieces_and_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    run = Run(python("w1", r"import sys; sys.stdout.buffer.write(b'\xff' * 1_000_000)", output_path=path))
    assert max(len(line) for _, line in run.lines) == LINE_LIMIT
    assert sum(len(line) for _, line in run.lines) == path.stat().st_size == 1_000_000


def test_without_room_the_reading_pauses_and_nothing_is_lost() -> None:
    answers = iter([False, False, False])
    lines: list[str] = []
    supervisor = Supervisor(
        [python("w1", "for number in range(100_000): print(number)")],
        on_line=lambda _, line: lines.append(line),
        has_room=lambda: next(answers, True),
    )
    asyncio.run(supervisor.run())
    assert lines == [str(number) for number in range(100_000)]


def test_when_a_node_fails_the_others_go_on(tmp_path: Path) -> None:
    go_on = tmp_path / "w1-failed"
    wait_then_end = f"""
import os, time
while not os.path.exists({str(go_on)!r}): time.sleep(0.01)
"""
    fail = f"open({str(go_on)!r}, 'w').close(); raise SystemExit(1)"
    run = Run(python("w1", fail), python("w2", wait_then_end + "print('went on')"))
    assert sorted(run.lines) == [("w1", "[dpwa] exit code 1; the launch goes on without this node"), ("w2", "went on")]
    assert [end.failed for end in run.ends] == [True, False]


def test_with_stop_one_failure_ends_all_and_only_the_first_counts_as_failed() -> None:
    run = Run(
        python("w1", "raise SystemExit(7)"),
        python("w2", "import time; time.sleep(600)"),
        on_failure=OnFailure.STOP,
    )
    assert run.ends == (NodeEnd("w1", 7, 0), NodeEnd("w2", -signal.SIGTERM, 0, was_stopped=True))
    assert [end.failed for end in run.ends] == [True, False]
    assert ("w1", "[dpwa] exit code 7; ending all nodes") in run.lines


def count_to(path: Path, good: int) -> str:
    """A program that fails until it has been started `good` times."""
    return f"""
with open({str(path)!r}, "a+") as file:
    file.write("x"); file.seek(0); count = len(file.read())
raise SystemExit(0 if count >= {good} else 5)
"""


def test_with_restart_a_failed_node_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_FIRST_RESTART_DELAY_S", 0.01)
    run = Run(python("w1", count_to(tmp_path / "count", good=3)), on_failure=OnFailure.RESTART)
    assert run.ends == (NodeEnd("w1", 0, 2),)
    assert ("w1", "[dpwa] exit code 5; restart 2 of 5 in 0 s") in run.lines


def test_restarts_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_FIRST_RESTART_DELAY_S", 0.01)
    run = Run(python("w1", count_to(tmp_path / "count", good=99)), on_failure=OnFailure.RESTART, max_restarts=2)
    assert run.ends == (NodeEnd("w1", 5, 2),)
    assert "limit of 2 restarts in a row" in run.lines[-1][1]


def test_a_node_that_ran_well_for_long_has_all_its_restarts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_FIRST_RESTART_DELAY_S", 0.01)
    monkeypatch.setattr(processes, "_HEALTHY_S", 0.0)
    run = Run(python("w1", count_to(tmp_path / "count", good=4)), on_failure=OnFailure.RESTART, max_restarts=1)
    assert run.ends == (NodeEnd("w1", 0, 3),)


def test_the_pause_before_a_restart_doubles_up_to_a_limit() -> None:
    assert [restart_delay_s(failures) for failures in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert restart_delay_s(10**9) == 30


def test_a_stop_during_the_pause_before_a_restart_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_FIRST_RESTART_DELAY_S", 30.0)

    def stop(supervisor: Supervisor, line: str) -> None:
        if "restart 1 of 5" in line:
            asyncio.get_running_loop().call_later(0.05, supervisor.stop)

    run = Run(python("w1", "raise SystemExit(5)"), react=stop, on_failure=OnFailure.RESTART)
    assert run.ends == (NodeEnd("w1", 5, 0),)
    assert run.duration_s < 5


# Not signal.pause(): a signal that comes just before it has its handler run only after the next one.
WAIT_FOR_SIGNALS = "import time\nwhile True: time.sleep(0.01)\n"


def stop_when_ready(supervisor: Supervisor, line: str) -> None:
    if line.startswith("pids "):
        supervisor.stop()


def test_stop_lets_a_node_end_by_itself_and_kills_what_it_leaves() -> None:
    leader = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n{WAIT_FOR_SIGNALS}"
    run = Run(python("w1", "import signal, sys\n" + FORK_STUBBORN_WORKER + leader), react=stop_when_ready)
    assert run.ends[0].was_stopped
    assert not run.ends[0].failed
    assert run.duration_s < 2.5  # no need for the whole grace
    assert run.named_total == 2
    assert_ended(run.processes)


def test_a_node_that_ignores_the_stop_is_killed_after_the_grace() -> None:
    leader = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FORK_STUBBORN_WORKER + "time.sleep(600)"
    run = Run(python("w1", "import signal\n" + leader), react=stop_when_ready, grace_s=0.2)
    assert run.ends == (NodeEnd("w1", -signal.SIGKILL, 0, was_stopped=True),)
    assert run.named_total == 2
    assert_ended(run.processes)


def test_a_second_stop_kills_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_SECOND_STOP_S", 0.0)

    def stop_twice(supervisor: Supervisor, line: str) -> None:
        if line.startswith("pids "):
            supervisor.stop()
            supervisor.stop()

    leader = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FORK_STUBBORN_WORKER + "time.sleep(600)"
    run = Run(python("w1", "import signal\n" + leader), react=stop_twice, grace_s=60)
    assert run.ends[0].exit_code == -signal.SIGKILL
    told = [record["signal"] for record in run.records if record["event"] == "told"]
    assert told == [signal.SIGTERM, signal.SIGKILL], "`dpwa verify` must not take the end for one that took too long"
    assert run.named_total == 2
    assert_ended(run.processes)


def test_a_stop_repeated_in_the_same_moment_leaves_the_grace() -> None:
    def stop_twice(supervisor: Supervisor, line: str) -> None:
        if line == "ready":
            supervisor.stop()
            supervisor.stop()

    code = """
import os, signal, sys, time
def end(*_):
    time.sleep(0.1)
    os.write(1, b"ended well\\n")  # not print: the handler may run inside the print below
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
"""
    code += WAIT_FOR_SIGNALS
    assert ("w1", "ended well") in Run(python("w1", code), react=stop_twice).lines


def test_a_stop_before_the_start_starts_nothing() -> None:
    supervisor = Supervisor([python("w1", "print('no')")], on_line=lambda *_: pytest.fail("something was started"))
    supervisor.stop()
    assert asyncio.run(supervisor.run()) == (NodeEnd("w1", -signal.SIGTERM, 0, was_stopped=True),)


def test_workers_die_with_a_node_that_ends_by_itself() -> None:
    run = Run(python("w1", FORK_STUBBORN_WORKER + "os.read(r, 1)"))
    assert run.ends == (NodeEnd("w1", 0, 0),)
    assert run.named_total == 2
    assert_ended(run.processes)


def test_workers_die_with_a_node_that_was_killed() -> None:
    def kill_leader(_: Supervisor, line: str) -> None:
        if line.startswith("pids "):
            os.kill(int(line.split()[2]), signal.SIGKILL)

    run = Run(python("w1", FORK_STUBBORN_WORKER + "time.sleep(600)"), react=kill_leader)
    assert run.ends == (NodeEnd("w1", -signal.SIGKILL, 0),)
    assert run.ends[0].failed
    assert run.named_total == 2
    assert_ended(run.processes)


def test_a_process_that_left_the_group_and_holds_the_pipe_does_not_hold_up_the_end() -> None:
    code = """
import os, subprocess, sys
away = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("pids", away.pid)
os._exit(0)
"""
    run = Run(python("w1", code))
    assert run.ends == (NodeEnd("w1", 0, 0),)
    assert run.duration_s < 5
    (away,) = run.processes
    away.kill()
    assert_ended([away])


def test_a_passed_signal_reaches_the_node_and_not_its_workers() -> None:
    code = """
os.read(r, 1)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # after the fork: SIGUSR1 would kill the worker
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})  # and not pause(): the signal may come just before it
os.write(1, f"worker lives: {os.waitpid(worker, os.WNOHANG) == (0, 0)}\\n".encode())
sys.exit(0)
"""

    def pass_on(supervisor: Supervisor, line: str) -> None:
        if line == "ready":
            supervisor.send_signal(signal.SIGUSR1)

    run = Run(python("w1", FORK_STUBBORN_WORKER + code), react=pass_on)
    assert ("w1", "worker lives: True") in run.lines
    assert run.ends[0].exit_code == 0


def test_a_cancelled_run_leaves_nothing() -> None:
    found: list[psutil.Process] = []

    async def cancelled() -> None:
        ready = asyncio.Event()

        def on_line(_: str, line: str) -> None:
            found.extend(psutil.Process(int(pid)) for pid in line.split()[1:])
            ready.set()

        task = asyncio.create_task(
            Supervisor([python("w1", FORK_STUBBORN_WORKER + "time.sleep(600)")], on_line=on_line).run()
        )
        await asyncio.wait_for(ready.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert len(found) == 2
    assert_ended(found)


def test_a_killed_guard_does_not_disturb_the_run() -> None:
    killed: list[int] = []

    def kill_guard(_: Supervisor, line: str) -> None:
        if line == "ready":
            (found,) = [child for child in psutil.Process().children() if guard.__file__ in child.cmdline()]
            found.kill()
            killed.append(found.pid)

    run = Run(python("w1", "print('ready', flush=True); import time; time.sleep(0.2)"), react=kill_guard)
    assert len(killed) == 1
    assert run.ends == (NodeEnd("w1", 0, 0),)


def test_the_guard_ends_the_groups_it_was_told_and_no_other() -> None:
    sleepers = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        for _ in range(3)
    ]
    watched, forgotten, half_told = (sleeper.pid for sleeper in sleepers)
    orders = f"+{watched}\n+{forgotten}\n-{forgotten}\n+{half_told}"  # the launcher died before the last line end
    with subprocess.Popen([sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(orders.encode())
        process.stdin.close()
        assert sleepers[0].wait(10) == -signal.SIGTERM
        assert process.wait(10) == 0
    assert [sleeper.poll() for sleeper in sleepers[1:]] == [None, None]
    for sleeper in sleepers[1:]:
        sleeper.kill()
        sleeper.wait(5)
