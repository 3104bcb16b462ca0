"""The far end of a launch over ssh, with pipes in place of ssh; and with a cable that is pulled."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from engine_runs import environment
from ssh_server import SshServer

from dpwa._version import __version__
from dpwa.launch.far_words import END, EVENT, HELLO, OUTPUT, Errand, Frames, main_of
from dpwa.launch.ports import free_ports
from support import wait_until

pytestmark = pytest.mark.heavy

DEADLINE_S = 60.0

# Says how it ends, and takes a moment for that, in which it prints: what nobody reads must not hold it up.
SLOW_TO_END = """
import pathlib, signal, sys, time
def end(number, frame):
    for _ in range(3000):  # more than pipes and queues hold
        sys.stdout.write("x" * 200 + "\\n")
    pathlib.Path("ended").write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("here", flush=True)
while True:
    signal.pause()
"""


class FarEnd:
    """A far end, and what it has said."""

    def __init__(self, folder: Path, errand: Errand) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", main_of("far_end")],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self.said: list[tuple[bytes, bytes]] = []
        self._frames = Frames()
        assert self.process.stdout is not None
        hello = b""
        while not hello.endswith(b"\n"):
            hello += self.process.stdout.read(1)
        assert hello == HELLO + __version__.encode() + b"\n"
        self.tell(errand.to_line())

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    def hear(self, kind: bytes, text: bytes = b"") -> bytes:
        """Waits for such a frame."""
        assert self.process.stdout is not None
        while True:
            for said in self.said:
                if said[0] == kind and text in said[1]:
                    return said[1]
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, self.said
            self.said += self._frames.feed(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def errand() -> Errand:
    port = free_ports(1)[0]
    argv = ("python", "-c", SLOW_TO_END)
    return Errand("w1", argv, {"DPWA_NODE": "w1"}, "run", "config.yaml", "{}\n", "127.0.0.1", port, 1, 60.0, "token")


@pytest.fixture
def ends() -> Iterator[list[FarEnd]]:
    """Put each far end in here."""
    started: list[FarEnd] = []
    yield started
    for end in started:
        end.close()


def started(ends: list[FarEnd], folder: Path, errand: Errand) -> FarEnd:
    ends.append(FarEnd(folder, errand))
    return ends[-1]


# The launcher's end, with a carrier whose node prints more than a pipe holds.
NEAR_END = """
import json, sys
from dpwa.launch.far_words import END, HELLO, OUTPUT, frame
from dpwa.launch.near_end import run_near_end
from dpwa._version import __version__

said = [HELLO + __version__.encode() + b"\\n"]
said += [frame(OUTPUT, b"%06d\\n" % number * 1000) for number in range(100)]
said += [frame(END, json.dumps({"exit_code": 7}).encode())]

class Carrier:
    def open(self): pass
    def adapted(self, errand): return errand
    def read(self): return said.pop(0) if said else b""
    def write(self, data): pass
    def interrupt(self): pass
    def close(self): pass
    def why(self, *, is_told): return "?"

run_near_end(json.loads(sys.argv[1]), Carrier())
"""


def test_a_burst_of_output_waits_for_its_reader_although_ssh_has_made_the_pipe_non_blocking(tmp_path, errand):
    order = {"errand": asdict(errand), "told": "h", "keys": None, "run_dir": str(tmp_path), "node_dir": str(tmp_path)}
    order |= {"files": [], "files_max_bytes": 0, "delay_s": 0.0}
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    argv = [sys.executable, "-c", NEAR_END, json.dumps(order)]
    with subprocess.Popen(argv, stdout=write_end, stderr=write_end, env=environment()) as near:
        try:
            wait_until(lambda: not select.select([], [write_end], [], 0)[1], "the pipe is full")
        except AssertionError:
            near.kill()
            raise
        os.close(write_end)
        with os.fdopen(read_end, "rb") as stream:
            said = stream.read().split()
    assert near.returncode == 7
    assert said == [b"%06d" % number for number in range(100) for _ in range(1000)]


def test_a_node_that_cannot_be_asked_needs_no_port(tmp_path, errand, ends):
    with socket.create_server((errand.host, 0)) as taken:
        mute = replace(errand, port=taken.getsockname()[1], serves=False)
        assert b"here" in started(ends, tmp_path, mute).hear(OUTPUT, b"here")
        heard = started(ends, tmp_path, replace(mute, run_dir="another", serves=True)).hear(OUTPUT, b"in use")
    assert str(mute.port).encode() in heard


@pytest.mark.slow
def test_a_launcher_that_says_nothing_any_more_is_gone(tmp_path, errand, ends):
    """As when a cable is pulled: the connection stands, what is printed stays in it, and no word comes."""
    end = started(ends, tmp_path, replace(errand, lost_s=2.0))
    end.hear(OUTPUT, b"here")
    node = psutil.Process(json.loads(end.hear(EVENT, b"started"))["pid"])
    for _ in range(6):  # an empty line is a word: nothing happens for longer than those two seconds
        time.sleep(0.5)
        end.tell(b"\n")
    assert node.is_running()
    assert end.process.wait(DEADLINE_S) == 0
    assert (tmp_path / "ended").read_text() == str(int(signal.SIGTERM)), "it had its time, though nobody read its lines"
    psutil.wait_procs([node], DEADLINE_S)
    assert not node.is_running()


def test_the_end_of_its_input_ends_the_node(tmp_path, errand, ends):
    end = started(ends, tmp_path, errand)
    end.hear(OUTPUT, b"here")
    assert end.process.stdin is not None
    end.process.stdin.close()
    assert end.process.wait(DEADLINE_S) == 0
    assert (tmp_path / "ended").read_text() == str(int(signal.SIGTERM))


@pytest.mark.slow
def test_after_a_signal_the_loss_of_the_launcher_takes_no_time_away(tmp_path, errand, ends):
    """A second word to end would kill the node: it may be saving its model, and the launcher may have been killed."""
    end = started(ends, tmp_path, errand)
    end.hear(OUTPUT, b"here")
    end.tell(b"signal 15\n")
    time.sleep(0.5)  # above that a second signal means "at once"
    assert end.process.stdin is not None
    end.process.stdin.close()
    assert end.process.wait(DEADLINE_S) == 0
    assert (tmp_path / "ended").read_text() == str(int(signal.SIGTERM))


@pytest.mark.slow
def test_two_launchers_do_not_run_one_node_in_one_folder(tmp_path, errand, ends):
    first = started(ends, tmp_path, errand)
    first.hear(OUTPUT, b"here")
    second = started(ends, tmp_path, replace(errand, run_dir=str(tmp_path / "run")))
    second.hear(OUTPUT, b"the former life of this node has not ended; waiting for that")
    second.tell(b"signal 15\n")
    assert b"it is taken: a launch that has not ended runs w1" in second.hear(OUTPUT, b"it is taken")
    assert json.loads(second.hear(END)) == {"exit_code": 2}
    first.tell(b"signal 15\n")
    assert json.loads(first.hear(END)) == {"exit_code": 0}


@pytest.mark.slow
def test_a_run_folder_with_another_config_is_refused(tmp_path, errand, ends):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run: other\n")
    end = started(ends, tmp_path, errand)
    end.hear(OUTPUT, b"it holds a run with another config; name an empty or a new folder")
    assert json.loads(end.hear(END)) == {"exit_code": 2}


# --- A cable ----------------------------------------------------------------------------------------------------------

PATIENCE = "import dpwa.launch.on_hosts as hosts; hosts.LOST_S = 12.0; from dpwa.cli import main; main()"
COUNTS = """
import os, pathlib, signal, sys, time
lives = pathlib.Path("lives")
def note(what):
    with lives.open("a") as file:
        file.write(what + "\\n")
def end(number, frame):
    note("end")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("begin")
print("here", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pulled_cable_ends_the_node_on_its_side_and_the_node_comes_back_with_the_cable(tmp_path, two_hosts):
    here, there = two_hosts.sides
    server = SshServer(tmp_path / "sshd", ["10.77.0.2"], ["ip", "netns", "exec", there])
    client = server.client(tmp_path / "client")
    lives = tmp_path / "lives"
    (tmp_path / "cluster.yaml").write_text("{}\n")
    (tmp_path / "hosts.txt").write_text(server.line("10.77.0.2", python=sys.executable))
    words = ["--hosts", "hosts.txt", "cluster.yaml", "--on-failure", "restart", "--max-restarts", "50"]
    launch = subprocess.Popen(
        [
            str(shutil.which("ip")),
            "netns",
            "exec",
            here,
            sys.executable,
            "-c",
            PATIENCE,
            "launch",
            *words,
            "--",
            "python",
            "-c",
            COUNTS,
        ],
        cwd=tmp_path,
        env=environment(PATH=f"{client}:{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert launch.stdout is not None
        said = []

        def wait_for(text: bytes) -> None:
            while True:
                line = launch.stdout.readline()  # type: ignore[union-attr]
                said.append(line)
                assert line, said
                if text in line:
                    return

        wait_for(b"| here")
        assert lives.read_text().split() == ["begin"]
        two_hosts.pull(2)
        wait_for(b"is lost; the node ends there as soon as that is noticed on its side")
        wait_for(b"cannot be reached by ssh")
        wait_until(lambda: lives.read_text().split() == ["begin", "end"], "the node ends on its side", DEADLINE_S)
        two_hosts.plug(2)
        wait_for(b"| here")
        assert lives.read_text().split() == ["begin", "end", "begin"]
        launch.terminate()
        assert launch.wait(DEADLINE_S) == 143
        assert lives.read_text().split() == ["begin", "end"] * 2
    finally:
        launch.kill()
        launch.wait()
        if launch.stdout is not None:
            launch.stdout.close()
        server.close()
