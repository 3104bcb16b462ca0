"""`dpwa launch` as people use it: a process of its own, its output, exit code and signals, and what it leaves."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from background_launch import BackgroundLaunch

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.guard import GRACE_S
from dpwa.launch.ports import free_ports, port_problem

pytestmark = pytest.mark.heavy

DEADLINE_S = 20.0  # for what takes a moment on an idle machine
END_WITHIN_S = 5.0  # what dpwa promises after a signal
STUBBORN_END_WITHIN_S = GRACE_S + 3.0  # of nodes that ignore it

# A node that forks a worker; both ignore what can be ignored, and say who they are.
STUBBORN_FAMILY = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.fork()
os.write(1, f"pid {os.getpid()}\\n".encode())
time.sleep(600)
"""


class Launcher(BackgroundLaunch):
    """`python -m dpwa launch` in the background, and the processes named in lines `pid N`."""

    def __init__(self, folder: Path, *arguments: str, stdout: int = subprocess.PIPE) -> None:
        words = ["cluster.yaml", "--run-dir", "run", *arguments]
        super().__init__(words, folder, os.environ, DEADLINE_S, stdout=stdout, stderr=subprocess.PIPE)
        self.family: list[psutil.Process] = []

    def wait_text(self, text: str, count: int) -> list[str]:
        """Waits until so many lines with the text have come."""
        return self.wait_lines(re.escape(text), count)

    def wait_family(self, count: int) -> None:
        self.family = [psutil.Process(int(line.split()[-1])) for line in self.wait_text("| pid ", count)]

    def wait_end(self, within_s: float = DEADLINE_S) -> tuple[int, str]:
        """Exit code and standard error."""
        assert self.process.stderr is not None
        code = self.end(within_s)
        return code, self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        for process in self.family:
            if process.is_running():
                process.kill()
        super().close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a cluster.yaml of the nodes w1 and w2."""
    first, second = free_ports(2)
    (tmp_path / "cluster.yaml").write_text(f"nodes: [{{name: w1, port: {first}}}, {{name: w2, port: {second}}}]\n")
    return tmp_path


@pytest.fixture
def launched() -> Iterator[list[Launcher]]:
    """Put each launcher in here: it is ended with all that it has started."""
    launchers: list[Launcher] = []
    yield launchers
    for launcher in launchers:
        launcher.close()


def launch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_ended(processes: list[psutil.Process], within_s: float) -> None:
    assert processes
    deadline_s = time.monotonic() + within_s
    alive = processes
    while alive and time.monotonic() < deadline_s:
        _, alive = psutil.wait_procs(alive, timeout=0.02)
        alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def test_every_node_of_the_file_runs_with_its_name_file_and_folder(folder: Path) -> None:
    code = "import os; print(*(os.environ['DPWA_' + key] for key in ('NODE', 'CONFIG', 'RUN_DIR')))"
    done = launch(folder, "cluster.yaml", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "runs").iterdir()
    config_path = folder / "cluster.yaml"
    assert sorted(done.stdout.splitlines()) == [
        f"w1 | w1 {config_path} {run_dir}",
        f"w2 | w2 {config_path} {run_dir}",
    ]
    assert done.stderr.splitlines()[-1] == f"dpwa: 2 of 2 nodes ended well; run folder {run_dir}"
    assert ClusterConfig.load(run_dir / "config.yaml") == ClusterConfig.load(config_path)
    assert (run_dir / "nodes/w1/output.log").read_text() == f"w1 {config_path} {run_dir}\n"


def test_only_the_named_nodes_are_started_each_once(folder: Path) -> None:
    done = launch(folder, "cluster.yaml", "--node", "w2", "--node", "w2", "--", "echo", "here", "--epochs", "3")
    assert done.stdout == "w2 | here --epochs 3\n"


def test_a_failed_node_gives_a_line_with_its_reason_and_exit_code_1(folder: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9) if os.environ['DPWA_NODE'] == 'w2' else None"
    done = launch(folder, "cluster.yaml", "--run-dir", "run", "--", sys.executable, "-c", code)
    assert done.returncode == 1
    log = folder / "run/nodes/w2/output.log"
    assert f"dpwa: node w2 failed: killed by SIGKILL; its output is in {log}" in done.stderr.splitlines()
    assert "node w1 failed" not in done.stderr


def test_nodes_start_in_the_current_folder_wherever_the_file_lies(folder: Path) -> None:
    done = launch(folder.parent, str(folder / "cluster.yaml"), "--run-dir", str(folder / "run"), "--", "pwd")
    assert sorted(done.stdout.splitlines()) == [f"w1 | {folder.parent}", f"w2 | {folder.parent}"]


def with_nodes(folder: Path, *nodes: str) -> None:
    (folder / "cluster.yaml").write_text("insecure: true\nnodes:\n" + "".join(f"  - {{{node}}}\n" for node in nodes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--node", "w3", "--", "true"], "w3"),
        (["--", "no-such-program"], "cannot start no-such-program: there is no such program in PATH; correct the"),
        (["--", "./missing.sh"], "cannot start ./missing.sh: there is no such program, or it is not executable"),
        (["--run-dir", "cluster.yaml", "--", "true"], "run folder cluster.yaml: cannot be written"),
    ],
)
def test_what_can_be_seen_to_be_wrong_gives_one_line_and_exit_code_2(
    folder: Path, arguments: list[str], message: str
) -> None:
    done = launch(folder, "cluster.yaml", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("file", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_gives_one_line_and_exit_code_2(folder: Path, file: str) -> None:
    done = launch(folder, file, "--", "true")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(file)


def test_every_port_in_use_gives_a_line_and_nothing_is_started(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [server.getsockname()[1] for server in (one, two)]
        with_nodes(folder, f"name: w1, port: {ports[0]}", "name: w2, port: 21001", f"name: w3, port: {ports[1]}")
        done = launch(folder, "cluster.yaml", "--node", "w1", "--node", "w3", "--", "touch", "started")
    assert done.returncode == 2
    (who,) = set(re.findall(r"stop (.*) or change the port", done.stderr))
    assert str(os.getpid()) in who or sys.platform != "linux"
    assert done.stderr.splitlines() == [
        f"cluster.yaml: node {name}: port {port} on localhost is in use; stop {who} or change the port"
        for name, port in (("w1", ports[0]), ("w3", ports[1]))
    ]
    assert not (folder / "started").exists()
    assert not (folder / "runs").exists()


def test_each_node_finds_its_rank_and_the_size_of_the_whole_cluster(folder: Path) -> None:
    with_nodes(folder, *(f"name: {name}, port: {port}" for name, port in zip("cab", free_ports(3), strict=True)))
    names = ("DPWA_NODE", "DPWA_RANK", "DPWA_WORLD_SIZE")
    code = f"import dpwa, os; print(*(os.environ[name] for name in {names}), dpwa.local_rank())"
    done = launch(folder, "cluster.yaml", "--node", "a", "--node", "b", "--", sys.executable, "-c", code)
    assert sorted(done.stdout.splitlines()) == ["a | a 1 3 1", "b | b 2 3 2"]


def test_one_file_runs_twice_at_a_time_on_other_ports(folder: Path) -> None:
    with_nodes(folder, "name: a, port: 21001", "name: b, port: 21002")
    with (folder / "cluster.yaml").open("a") as file:
        file.write("interpolation: my_rule:Mine\n")
    (folder / "my_rule.py").write_text("class Mine:\n    def factor(self, own, peer):\n        return 0.5\n")
    first = next(port for port in free_ports(20) if port_problem("localhost", port + 1) is None)
    code = (
        "import os; from dpwa import ClusterConfig; config = ClusterConfig.load(os.environ['DPWA_CONFIG']); "
        "print([node.port for node in config.nodes], config.interpolator().uses_distance)"
    )
    done = launch(folder, "cluster.yaml", "--port-base", str(first), "--", sys.executable, "-c", code)
    assert sorted(done.stdout.splitlines()) == [f"{name} | [{first}, {first + 1}] False" for name in "ab"], done.stderr
    refused = launch(folder, "cluster.yaml", "--port-base", "65535", "--", "true")
    assert refused.stderr == "ports of 2 nodes: expected the first to be from 1 to 65534, got 65535\n"


def _python_without_dpwa(folder: Path) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("has_dpwa", [False, True])
def test_python_is_the_one_that_runs_dpwa_where_that_of_path_has_none(
    folder: Path, has_dpwa: bool, monkeypatch
) -> None:
    python = Path(sys.executable) if has_dpwa else _python_without_dpwa(folder)
    monkeypatch.setenv("PATH", str(python.parent), prepend=os.pathsep)
    with_nodes(folder, f"name: w1, port: {free_ports(1)[0]}")
    done = launch(folder, "cluster.yaml", "--", "python", "-c", "import dpwa, sys; print(sys.executable)")
    assert done.stdout.splitlines() == [f"w1 | {sys.executable}"]
    assert (f"dpwa: {python} has no dpwa, so {sys.executable} runs the command" in done.stderr) is not has_dpwa


def test_a_file_without_a_node_for_this_host_says_how_to_choose_one(folder: Path) -> None:
    with_nodes(folder, "name: w1, host: 203.0.113.77, port: 21001", "name: w2, host: 198.51.100.77, port: 21001")
    done = launch(folder, "cluster.yaml", "--", "true")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no node of this file belongs to this host (its hosts: 203.0.113.77, 198.51.100.77)" in line
    assert "--node NAME" in line


def test_a_named_node_of_another_host_is_refused_before_the_start(folder: Path) -> None:
    with_nodes(folder, "name: w1, host: 203.0.113.77, port: 21001", "name: w2, port: 21001")
    done = launch(folder, "cluster.yaml", "--node", "w1", "--", "true")
    assert done.returncode == 2
    assert "cluster.yaml: node w1: 203.0.113.77 is not an address of this machine" in done.stderr


def test_ctrl_c_ends_everything_in_time_also_stubborn_workers(folder: Path, launched: list[Launcher]) -> None:
    launcher = Launcher(folder, "--", sys.executable, "-c", STUBBORN_FAMILY)
    launched.append(launcher)
    launcher.wait_family(4)
    sent_s = time.monotonic()
    launcher.process.send_signal(signal.SIGINT)
    code, errors = launcher.wait_end(STUBBORN_END_WITHIN_S)
    assert_ended(launcher.family, STUBBORN_END_WITHIN_S - (time.monotonic() - sent_s))
    assert code == 128 + signal.SIGINT
    assert errors.splitlines()[1:] == [f"dpwa: ended by SIGINT; run folder {folder / 'run'}"]


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """What is started hears SIGHUP, also if the tests themselves run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_ends")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_to_end_are_passed_on_and_told_by_the_exit_code(
    folder: Path, launched: list[Launcher], number: signal.Signals
) -> None:
    launcher = Launcher(
        folder, "--", sys.executable, "-c", "import os, time; print('pid', os.getpid()); time.sleep(600)"
    )
    launched.append(launcher)
    launcher.wait_family(2)
    launcher.process.send_signal(number)
    code, errors = launcher.wait_end(END_WITHIN_S)
    assert_ended(launcher.family, 1.0)
    assert code == 128 + number
    assert f"dpwa: ended by {number.name};" in errors


def test_nodes_can_end_well_after_ctrl_c(folder: Path, launched: list[Launcher]) -> None:
    code = """
import time
try:
    print("ready")
    time.sleep(600)
except KeyboardInterrupt:
    print("saved")
"""
    launcher = Launcher(folder, "--", sys.executable, "-c", code)
    launched.append(launcher)
    launcher.wait_text("ready", 2)
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.wait_end(END_WITHIN_S)[0] == 128 + signal.SIGINT
    assert sorted(launcher.lines) == ["w1 | ready", "w1 | saved", "w2 | ready", "w2 | saved"]


def test_a_second_ctrl_c_kills_at_once(folder: Path, launched: list[Launcher]) -> None:
    code = """
import os, signal, time
def refuse(*_):
    os.write(1, b"not yet\\n")  # not print: the handler may run inside one of the prints below
signal.signal(signal.SIGINT, refuse)
print("ready")
while True:
    time.sleep(0.5)
    print("still here")
"""
    launcher = Launcher(folder, "--", sys.executable, "-c", code)
    launched.append(launcher)
    launcher.wait_text("ready", 2)
    launcher.process.send_signal(signal.SIGINT)
    launcher.wait_text("not yet", 2)
    seen = len(launcher.matching("still here"))
    launcher.wait_text("still here", seen + 3)  # at least half a second: no longer the same key stroke
    second_s = time.monotonic()
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.wait_end(END_WITHIN_S)[0] == 128 + signal.SIGINT
    assert time.monotonic() - second_s < 1.5


def test_nohup_keeps_its_meaning(folder: Path, launched: list[Launcher]) -> None:
    code = "import os, time\nprint('ready')\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint('done')"
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        launcher = Launcher(folder, "--", sys.executable, "-c", code)
    finally:
        signal.signal(signal.SIGHUP, previous)
    launched.append(launcher)
    launcher.wait_text("ready", 2)
    launcher.process.send_signal(signal.SIGHUP)
    (folder / "go").touch()
    assert launcher.wait_end()[0] == 0
    assert "w1 | done" in launcher.lines


def test_usr_signals_reach_the_nodes(folder: Path, launched: list[Launcher]) -> None:
    code = """
import signal, time
received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append("got it"))
print("ready")
while not received:
    time.sleep(0.01)
print(*received)
"""
    launcher = Launcher(folder, "--", sys.executable, "-c", code)
    launched.append(launcher)
    launcher.wait_text("ready", 2)
    launcher.process.send_signal(signal.SIGUSR1)
    assert launcher.wait_end()[0] == 0
    assert {"w1 | got it", "w2 | got it"} <= set(launcher.lines)


def test_a_node_killed_takes_its_workers_with_it_and_the_others_go_on(folder: Path, launched: list[Launcher]) -> None:
    launcher = Launcher(folder, "--", sys.executable, "-c", STUBBORN_FAMILY)
    launched.append(launcher)
    launcher.wait_family(4)
    of_w1 = [psutil.Process(int(line.split()[-1])) for line in launcher.lines if line.startswith("w1 | pid ")]
    leader = next(process for process in of_w1 if process.ppid() == launcher.process.pid)
    leader.kill()
    assert_ended(of_w1, 2.0)
    others = [process for process in launcher.family if process not in of_w1]
    assert len(others) == 2
    assert all(process.is_running() for process in others)
    leader = next(process for process in others if process.ppid() == launcher.process.pid)
    leader.kill()
    code, errors = launcher.wait_end(END_WITHIN_S)
    assert_ended(others, 2.0)
    assert code == 1
    assert errors.count("failed: killed by SIGKILL") == 2


@pytest.mark.slow
def test_nothing_survives_the_killing_of_the_launcher(folder: Path, launched: list[Launcher]) -> None:
    launcher = Launcher(folder, "--", sys.executable, "-c", STUBBORN_FAMILY)
    launched.append(launcher)
    launcher.wait_family(4)
    children = psutil.Process(launcher.process.pid).children()
    (guard,) = [child for child in children if any(word.endswith("guard.py") for word in child.cmdline())]
    launcher.process.kill()
    assert_ended([*launcher.family, guard], STUBBORN_END_WITHIN_S)


def test_a_reader_that_stopped_does_not_hold_up_a_signal(folder: Path, launched: list[Launcher]) -> None:
    read_end, write_end = os.pipe()
    launcher = Launcher(folder, "--", "yes", stdout=write_end)
    launched.append(launcher)
    os.close(write_end)
    assert os.read(read_end, 5) in (b"w1 | ", b"w2 | ")  # they run; from here on nobody reads
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.wait_end(END_WITHIN_S)[0] == 128 + signal.SIGTERM
    os.close(read_end)


def test_a_reader_that_went_away_ends_the_run(folder: Path, launched: list[Launcher]) -> None:
    read_end, write_end = os.pipe()
    launcher = Launcher(folder, "--", "yes", stdout=write_end)
    launched.append(launcher)
    os.close(write_end)
    assert os.read(read_end, 1) == b"w"
    os.close(read_end)
    code, errors = launcher.wait_end(END_WITHIN_S)
    assert code == 128 + signal.SIGPIPE
    assert "dpwa: ended by SIGPIPE" in errors


def output_on_a_terminal(folder: Path, **environment: str) -> bytes:
    master, terminal = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--node", "w1", "--", "echo", "hello"],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environment,
            stdout=terminal,
            stderr=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        return os.read(master, 1000)
    finally:
        os.close(terminal)
        os.close(master)


def test_names_are_coloured_on_a_terminal_unless_no_color_is_set(folder: Path) -> None:
    assert output_on_a_terminal(folder) == b"\x1b[36mw1 | \x1b[0mhello\x1b[0m\r\n"
    assert output_on_a_terminal(folder, NO_COLOR="1") == b"w1 | hello\r\n"
