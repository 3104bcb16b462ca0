"""How a launch tells apart nodes that ended and nodes that stopped, and how long it waits for one that is saving."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch import guard, processes, this_host
from dpwa.launch.guard import is_saving
from dpwa.launch.ports import free_ports
from dpwa.launch.processes import NodeCommand, Supervisor
from dpwa.launch.this_host import is_local
from dpwa.observe.endings import Ending, ending_of, remarks
from support import TESTS

pytestmark = pytest.mark.heavy

# A node of w1 and w2; w2 does as it is told in the middle, w1 ends as it should.
TRAINING = """
import os, sys
from pathlib import Path
from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel

name = os.environ["DPWA_NODE"]
config, run_dir = ClusterConfig.load(os.environ["DPWA_CONFIG"]), Path(os.environ["DPWA_RUN_DIR"])
node = Node(config, name, VectorModel([1.0]), run_dir=run_dir)
node.start()
node.step(1.0)
if name == "w2":
    END
node.finish(timeout_s=0.1)
node.close()
"""


def launched(tmp_path: Path, end: str) -> tuple[int, list[str]]:
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), connect_timeout_ms=50, timeout_ms=100)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    (tmp_path / "train.py").write_text(TRAINING.replace("END", end))
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--run-dir", "run", "--", sys.executable]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stderr.splitlines()
    return done.returncode, [line for line in lines if "ended with exit" in line or "ended well" in line]


@pytest.mark.parametrize(
    ("end", "code", "said", "well"),
    [
        ("pass", 0, None, 2),
        ("node.close(); sys.exit(0)", 0, "without the finish() that others called: perhaps in the middle", 2),
        ("os._exit(0)", 1, "its journal has no end: dpwa was not closed", 1),
    ],
)
def test_a_node_that_stops_in_the_middle_with_exit_code_0_is_told_at_the_end(tmp_path, end, code, said, well):
    returned, lines = launched(tmp_path, end)
    assert returned == code, lines
    assert lines[-1].startswith(f"dpwa: {well} of 2 nodes ended well")
    if said is None:
        assert len(lines) == 1
    else:
        assert lines[0].startswith(f"dpwa: node w2 ended with exit code 0, but {said}")


def events(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def line(event: str) -> str:
    return f'{{"t":1.0,"event":"{event}","step":3}}\n'


def test_the_last_life_counts_and_half_a_line_is_no_harm(tmp_path):
    assert ending_of(tmp_path / "none") == Ending(used_dpwa=False)
    first = events(
        tmp_path / "a", line("start"), line("finish"), line("close"), line("start"), line("exchange"), '{"ev'
    )
    assert ending_of(first) == Ending(used_dpwa=True)
    assert ending_of(first).is_cut_off
    many = events(tmp_path / "b", line("start"), *[line("exchange")] * 5000, line("finish"), line("close"))
    assert ending_of(many) == Ending(used_dpwa=True, was_closed=True, has_finished=True)
    assert not ending_of(many).is_cut_off


def test_programs_without_dpwa_and_trainings_without_finish_are_not_remarked_on():
    closed = Ending(used_dpwa=True, was_closed=True)
    assert remarks({"w1": Ending(used_dpwa=False), "w2": Ending(used_dpwa=False)}) == {}
    assert remarks({"w1": closed, "w2": closed}) == {}


# --- A node that is saving ------------------------------------------------------------------------------------------

SAVING = """
import os, signal, sys, time
def save(*_):
    with open(sys.argv[1] + ".partial", "wb"):
        os.write(1, b"saving\\n")
        time.sleep(float(sys.argv[2]))
    os.rename(sys.argv[1] + ".partial", sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:  # not signal.pause(): a signal that comes just before it has its handler run only after the next one
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("longest_s", "is_saved"), [(60.0, True), (0.5, False)])
def test_a_node_that_is_saving_has_more_than_the_grace_but_not_for_ever(tmp_path, monkeypatch, longest_s, is_saved):
    monkeypatch.setattr(processes, "SAVING_TIMEOUT_S", longest_s)
    model, lines = tmp_path / "model.safetensors", []

    def react(_: str, line: str) -> None:
        lines.append(line)
        if line == "ready":
            supervisor.stop()

    command = NodeCommand("w1", (sys.executable, "-c", SAVING, str(model), "1.5"), os.environ, None)
    supervisor = Supervisor([command], grace_s=0.3, on_line=react)
    (end,) = asyncio.run(supervisor.run())
    assert (end.exit_code, model.exists()) == ((0, True) if is_saved else (-signal.SIGKILL, False))
    assert lines.count("[dpwa] still saving its model; another Ctrl-C ends it at once") == 1


@pytest.mark.slow
def test_the_guard_waits_for_a_node_that_is_saving(tmp_path):
    model = tmp_path / "model.safetensors"
    node = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(model), str(guard.GRACE_S + 1.0)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert node.stdout.readline() == b"ready\n"
    assert not is_saving(node.pid)
    with subprocess.Popen([sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE) as process:
        process.stdin.write(f"+{node.pid}\n".encode())
        process.stdin.close()
        assert node.stdout.readline() == b"saving\n"
        assert is_saving(node.pid)
        assert node.wait(30) == 0
        assert process.wait(10) == 0
    node.stdout.close()
    assert model.exists()


# --- Which host this is ---------------------------------------------------------------------------------------------


def test_where_every_address_can_be_bound_to_only_the_own_ones_are_this_hosts(monkeypatch):
    """As in a network namespace whose loopback interface was never brought up."""
    assert is_local("127.0.0.1")
    assert not is_local("192.0.2.77")
    asked = []
    monkeypatch.setattr(this_host, "_can_bind", lambda _family, address: bool(asked.append(address)) or True)
    assert not is_local("192.0.2.77")
    assert not is_local("203.0.113.5")
    assert is_local("127.0.0.1")
    assert is_local("localhost")
    assert ("192.0.2.1", 0) in asked, "the fault happened: an address of nobody can be bound to"
