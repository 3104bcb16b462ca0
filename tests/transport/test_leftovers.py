"""Segments that a kill leaves behind: removed by the next start of dpwa, whoever's it is, and never while used."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.transport import leftovers
from dpwa.transport.leftovers import remove_unowned
from dpwa.transport.shared_memory import SEGMENT_FOLDER, Segment
from support import TESTS, VectorModel, wait_until

pytestmark = pytest.mark.heavy

# Owns a segment of the run argv[1] until it is killed; with a second argument it has a forked child that lives on.
OWNER = """
import os, sys, time
from dpwa.transport.shared_memory import Segment
segment = Segment(run_id=sys.argv[1], node="w1", incarnation=os.urandom(8), size_bytes=100_000, slots=2)
segment.slot(0)[:] = 1
if len(sys.argv) > 2:
    lives, tell = os.pipe()
    if os.fork() == 0:
        os.write(tell, b"the worker runs")
        time.sleep(60)
    os.read(lives, 1)
print("pid", os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run():
    name = f"left-test-{os.getpid()}"
    yield name
    left = segments(name)
    for path in left:
        path.unlink()
    assert left == []


def segments(run: str) -> list[Path]:
    return sorted(SEGMENT_FOLDER.glob(f"dpwa-{run}-*"))


@pytest.fixture
def owner(run):
    """Starts a process that owns a segment; with a group of its own, all of which ends with the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, run, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline().startswith("pid")
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait(10)


def make(run: str, node: str = "w1") -> Segment:
    return Segment(run_id=run, node=node, incarnation=os.urandom(8), size_bytes=100, slots=1)


def test_a_segment_is_removed_when_its_owner_was_killed_and_not_before(run, owner):
    process, own = owner(), make(run, "w2")
    assert len(segments(run)) == 2
    remove_unowned()
    assert len(segments(run)) == 2, "both owners live"
    kill(process)
    assert len(segments(run)) == 2, "the fault happened"
    assert remove_unowned() >= 1
    assert [path.name.split("-")[-2] for path in segments(run)] == ["w2"]
    own.close()
    assert segments(run) == []


def test_a_forked_worker_that_outlives_its_trainer_does_not_keep_the_segment(run, owner):
    process = owner("with a worker")
    worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    remove_unowned()
    assert len(segments(run)) == 1
    kill(process)
    assert len(segments(run)) == 1, "the fault happened"
    os.kill(worker, 0)  # it lives
    remove_unowned()
    assert segments(run) == []


def test_a_forked_child_that_closes_or_ends_keeps_the_owners_segment(run):
    segment = make(run)
    child = os.fork()
    if child == 0:
        segment.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    remove_unowned()
    assert len(segments(run)) == 1
    segment.close()
    assert segments(run) == []


def test_segments_that_are_being_made_survive_removers_at_full_speed(run):
    """A file has a name before it can be locked: whoever makes it notices that it was removed in between."""
    stop, removed = threading.Event(), []

    def remove() -> None:
        while not stop.is_set():
            removed.append(remove_unowned())

    removers = [threading.Thread(target=remove) for _ in range(2)]
    for remover in removers:
        remover.start()
    try:
        for _ in range(300):
            segment = make(run)
            assert len(segments(run)) == 1
            segment.close()
    finally:
        stop.set()
        for remover in removers:
            remover.join()
    assert len(removed) > 100


def test_a_segment_that_was_removed_before_it_had_its_lock_is_made_anew(run, monkeypatch):
    lock_of, removed = leftovers._lock_of, []

    def removed_first(path: str) -> int | None:
        if not removed:
            removed.append(remove_unowned())
        return lock_of(path)

    monkeypatch.setattr(leftovers, "_lock_of", removed_first)
    segment = make(run)
    assert removed[0] >= 1, "the fault happened"
    remove_unowned()
    assert len(segments(run)) == 1
    segment.close()


def test_a_remover_that_comes_too_late_does_not_remove_the_segment_that_was_made_anew(run, owner, monkeypatch):
    """Two removers have opened the same file; the maker uses its name again before the second one looks."""
    lock, made = fcntl.flock, []

    def lock_late(file: int, how: int) -> None:
        if how & fcntl.LOCK_NB and not made:
            path = os.readlink(f"/proc/self/fd/{file}")
            os.unlink(path)  # by the other remover
            made.append(leftovers.create_owned(path))
        lock(file, how)

    kill(owner())
    (path,) = segments(run)
    monkeypatch.setattr(fcntl, "flock", lock_late)
    remove_unowned()
    monkeypatch.undo()
    assert made, "the fault happened"
    assert segments(run) == [path], "the one that was made anew"
    file, own_lock = made[0]
    os.close(file)
    leftovers.disown(own_lock)
    remove_unowned()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o644),
        lambda path: path.write_bytes(b"somebody's own data"),
        lambda path: path.rename(path.with_name(f"{path.name}-kept")),
        lambda path: (path.unlink(), path.mkdir(mode=0o600)),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
        lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    ],
    ids=["another mode", "other content", "another name", "a folder", "a link", "a pipe"],
)
def test_what_is_no_segment_stays(run, owner, spoil):
    process = owner()
    kill(process)
    (path,) = segments(run)
    spoil(path)
    remove_unowned()
    (left,) = segments(run)
    left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()


def test_files_of_other_users_stay(run, owner, monkeypatch):
    kill(owner())
    monkeypatch.setattr(os, "getuid", lambda: os.stat(SEGMENT_FOLDER).st_uid + 12345)
    remove_unowned()
    monkeypatch.undo()
    assert len(segments(run)) == 1
    remove_unowned()
    assert segments(run) == []


def test_the_start_of_a_node_of_any_cluster_removes_what_a_killed_one_left(run, owner):
    kill(owner())
    assert len(segments(run)) == 1
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    node = Node(config, "w2", VectorModel([1.0]))
    node.start()
    assert segments(run) == []
    node.close()


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_a_launch_removes_what_others_left(run, owner, tmp_path, shared_memory):
    kill(owner())
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), shared_memory=shared_memory)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--", "true"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 0
    assert segments(run) == []


TRAINER = TESTS / "fault_trainer.py"


def test_when_launcher_and_a_node_are_killed_the_guard_leaves_nothing(run, tmp_path):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), run=run, timeout_ms=500, connect_timeout_ms=200)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--run-dir", "run", "--"]
    launcher = subprocess.Popen(
        [*command, sys.executable, str(TRAINER), "1000"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        pids: list[int] = []
        while len(pids) < 2:
            line = launcher.stdout.readline()
            assert line, "the launcher ended early"
            if "| pid " in line:
                pids.append(int(line.split()[-1]))
        wait_until(lambda: len(segments(run)) == 2, "both nodes have a segment")
        os.kill(launcher.pid, signal.SIGSTOP)  # it must not clean up after the node itself
        os.kill(pids[0], signal.SIGKILL)
        assert len(segments(run)) == 2, "the fault happened"
        launcher.kill()
        wait_until(lambda: segments(run) == [], "the guard has removed both")
    finally:
        launcher.kill()
        launcher.communicate()
