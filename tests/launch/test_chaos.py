"""`dpwa chaos` on real processes: what it breaks, whom it never touches, and that it leaves nothing broken behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig
from dpwa.launch import breaking
from dpwa.launch.ports import free_ports
from dpwa.launch.victims import running_node
from dpwa.observe.bounded_file import read_records
from dpwa.observe.lives import faults_of
from dpwa.observe.process_use import started_ticks, state_of
from dpwa.observe.run_folder import read_run
from dpwa.observe.run_record import CHAOS_FILE
from dpwa.transport.faults import SteeredPartition
from fault_launch import TRAINER
from support import VectorModel, step_until, wait_until

NODES = ["w1", "w2", "w3", "w4"]
FLOW = {"probe_s": 0.2, "probe_max_s": 0.5}


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    config = ClusterConfig.for_localhost(
        4,
        ports=free_ports(4),
        timeout_ms=500,
        connect_timeout_ms=200,
        metrics_interval_ms=200,
        flow_control=FLOW,
        faults={"steered": True},
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(config.to_yaml())
    return path


def _dpwa(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dpwa", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _pids(run_dir: Path) -> dict[str, int]:
    found = {node: running_node(run_dir, node) for node in NODES}
    return {node: victim.pid for node, victim in found.items() if victim is not None}


@pytest.mark.heavy
@pytest.mark.timeout(180)
@pytest.mark.slow
def test_a_cluster_that_is_launched_and_broken_holds_what_must_hold(cluster_file, tmp_path):
    run_dir = tmp_path / "run"
    options = ["--mtbf", "1.5s", "--duration", "15s", "--seed", "3", "--run-dir", run_dir]
    with _dpwa("chaos", cluster_file, *options, "--", sys.executable, TRAINER, "100000") as chaos:
        output = chaos.communicate(timeout=150)[0]
    assert chaos.returncode == 0, output
    run = read_run(run_dir)
    assert len(run.faults) >= 4, output
    for name in ("I1", "I2", "I3", "I4", "I5", "I8", "I9"):
        assert re.search(rf"^{name}  held ", output, re.MULTILINE), output
    assert "violated" not in output
    assert (run_dir / "chaos.png").stat().st_size > 10_000
    assert _pids(run_dir) == {}


@pytest.fixture
def running(cluster_file, tmp_path):
    """A cluster that runs, and would restart."""
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--on-failure", "restart"]
    launch = _dpwa("launch", cluster_file, *options, "--", sys.executable, TRAINER, "100000")
    try:
        wait_until(lambda: len(_pids(run_dir)) == 4, "all run", 60)
        yield run_dir
    finally:
        launch.terminate()
        launch.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_leaves_nobody_stopped_or_cut_off(running, number):
    with _dpwa("chaos", running, "--mtbf", "1s", "--duration", "10m", "--seed", "5") as chaos:
        pids = _pids(running)
        wait_until(lambda: any(state_of(pid) == "T" for pid in _pids(running).values()), "one is stopped", 60)
        chaos.send_signal(number)
        output = chaos.communicate(timeout=60)[0]
    assert chaos.returncode == 128 + number, output
    assert "interrupted" in output
    assert not (running / "partition.json").exists()
    wait_until(lambda: len(_pids(running)) == 4, "all are back", 60)
    assert all(state_of(pid) in ("R", "S", "D") for pid in _pids(running).values())
    assert len(pids) == 4
    assert any(fault.kind == "stop" for fault in read_run(running).faults)


# --- Whom it never touches --------------------------------------------------------------------------------------------


@pytest.fixture
def stranger():
    """A process that is no node, and yet has all of a node's environment that is given."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> int:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, **environment}
            )
        )
        pid = started[-1].pid
        # Until it has become the program, it has the environment of this one.
        wait_until(lambda: b"input" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it runs")
        return pid

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()


def _leave_process(run_dir: Path, node: str, text: str) -> None:
    folder = run_dir / "nodes" / node
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "process").write_text(text)


def test_only_a_process_of_this_run_and_this_node_with_this_start_is_a_node(tmp_path, stranger):
    run_dir, other_dir = tmp_path / "run", tmp_path / "other"
    other_dir.mkdir()
    pid = stranger(DPWA_RUN_DIR=str(run_dir), DPWA_NODE="w1")
    ticks = started_ticks(pid)
    _leave_process(run_dir, "w1", f"{pid} {ticks}\n")
    victim = running_node(run_dir, "w1")
    assert victim is not None
    assert (victim.pid, victim.restarts) == (pid, False)
    for text in (f"{pid} {ticks - 1}", f"{pid} 0", f"{2**22 + 1} {ticks}", "", "x y", f"{pid}", f"-1 {ticks}"):
        _leave_process(run_dir, "w1", text)  # its number was given to another process, or the file is damaged
        assert running_node(run_dir, "w1") is None, text
    _leave_process(run_dir, "w2", f"{pid} {ticks}\n")
    assert running_node(run_dir, "w2") is None, "another node"
    _leave_process(other_dir, "w1", f"{pid} {ticks}\n")
    assert running_node(other_dir, "w1") is None, "another run"
    _leave_process(run_dir, "w1", f"{os.getpid()} {started_ticks(os.getpid())}\n")
    assert running_node(run_dir, "w1") is None, "no node at all"


def test_a_process_that_has_ended_gets_no_signal(tmp_path, stranger):
    pid = stranger(DPWA_RUN_DIR=str(tmp_path / "run"), DPWA_NODE="w1")
    _leave_process(tmp_path / "run", "w1", f"{pid} {started_ticks(pid)}\n")
    victim = running_node(tmp_path / "run", "w1")
    assert victim is not None
    assert victim.send(signal.SIGSTOP)
    assert victim.wait_for_state("T") == "state T"
    assert victim.send(signal.SIGKILL)
    assert victim.wait_for_state("", "Z") in ("gone", "state Z")
    assert not victim.is_alive
    assert not victim.send(signal.SIGCONT)
    assert running_node(tmp_path / "run", "w1") is None


# --- Partitions -------------------------------------------------------------------------------------------------------


def test_a_partition_in_the_run_folder_separates_groups_and_ends_by_itself(tmp_path):
    writer, reader = SteeredPartition(tmp_path), SteeredPartition(tmp_path)
    assert not reader.separates("w1", "w2")
    writer.write([["w1"], ["w2", "w3"]], time.time() + 2.0)
    wait_until(lambda: reader.separates("w1", "w2"), "it is seen")
    assert reader.separates("w3", "w1")
    assert not reader.separates("w2", "w3")
    assert not reader.separates("w1", "w4"), "who is in no group reaches all"
    assert not reader.separates("w4", "w1")
    wait_until(lambda: not reader.separates("w1", "w2"), "its time is over")
    writer.write([["w1"], ["w2"]], time.time() + 60.0)
    wait_until(lambda: reader.separates("w1", "w2"), "another one")
    writer.remove()
    wait_until(lambda: not reader.separates("w1", "w2"), "it is healed")


def test_what_is_on_record_of_a_partition_says_when_it_ends_by_itself(tmp_path, monkeypatch):
    """Whoever made it may be killed meanwhile, and then nobody writes that it is over."""

    def node(_run_dir: Path, name: str) -> SimpleNamespace:
        return SimpleNamespace(node=name, pid=1, restarts=False, is_alive=True, send=lambda _number: False)

    monkeypatch.setattr(breaking, "running_node", node)
    breaker = breaking.Breaker(tmp_path, ["w1", "w2"], mtbf_s=1e-3, is_steered=True, seed=1, tell=lambda _line: None)
    wait_until(lambda: (breaker.turn(may_begin=True), breaker.made)[1] > 0, "a partition is made")
    (fault,) = faults_of(read_records(tmp_path / CHAOS_FILE))
    assert fault.ended_s == json.loads((tmp_path / "partition.json").read_text())["until"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"groups": 3, "until": 9e99}', '{"groups": [["w1"]], "until": "x"}'])
def test_a_partition_that_cannot_be_read_separates_nobody(tmp_path, text):
    (tmp_path / "partition.json").write_text(text)
    assert not SteeredPartition(tmp_path).separates("w1", "w2")


def test_nodes_that_are_steered_are_cut_off_and_say_so(zeromq, tmp_path):
    first, _ = zeromq.start(
        [VectorModel([0.0]), VectorModel([1.0])], run_dir=tmp_path, faults={"steered": True}, flow_control=FLOW
    )
    step_until(first, lambda: (zeromq.step_all(1), first.statistics().blended > 2)[1], "they exchange")
    SteeredPartition(tmp_path).write([["w1"], ["w2"]], time.time() + 60.0)
    step_until(first, lambda: first.statistics().faults["partition"] > 0, "they are cut off")
    SteeredPartition(tmp_path).remove()
    before = first.statistics().blended
    step_until(first, lambda: (zeromq.step_all(1), first.statistics().blended > before)[1], "they exchange again")


# --- Its arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{run}", "--mtbf", "5"], "expected a time above 0 with its unit, such as 5s, 2m or 1h, got"),
        (["{run}", "--duration", "0s"], "expected a time above 0"),
        (["{run}", "--", "python", "train.py"], "it takes no command"),
        (["{file}"], "or a cluster file and -- COMMAND"),
        (["{run}"], "0 of its 1 nodes run on this machine now"),
        (["{empty}"], "expected the folder of a run"),
    ],
)
def test_what_cannot_be_broken_is_refused_with_exit_code_2(tmp_path, words, expected):
    (tmp_path / "run" / "nodes" / "w1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    places = {"run": tmp_path / "run", "empty": tmp_path / "empty", "file": tmp_path / "cluster.yaml"}
    done = CliRunner().invoke(main, ["chaos", *(word.format(**places) for word in words)], env={"COLUMNS": "300"})
    assert done.exit_code == 2, done.output
    assert expected in " ".join(done.output.split())
