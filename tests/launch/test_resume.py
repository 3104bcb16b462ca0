"""`dpwa launch --resume`: a cluster that was killed as a whole goes on, and nobody disturbs one that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.launch.launch_record import LaunchRecord, NodeLocks, keep_record, read_record
from dpwa.launch.ports import free_ports
from dpwa.observe.bounded_file import read_records
from support import TESTS, wait_until

TRAINER = TESTS / "checkpoint_trainer.py"


class Launch:
    """`dpwa launch` in a process of its own, with its output collected as it comes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dpwa", "launch", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self._reader.start()

    def wait(self) -> int:
        code = self.process.wait(90)
        self._reader.join(20)
        self.process.stdout.close()
        return code

    def kill_all(self) -> list[int]:
        """Kill the launcher, its guard and its nodes at one moment; the processes that were killed."""
        launcher = psutil.Process(self.process.pid)
        everybody = [launcher, *launcher.children(recursive=True)]
        for one in everybody:
            one.suspend()  # else the guard would end the nodes before they are killed
        for one in everybody:
            one.kill()
        assert self.wait() == -signal.SIGKILL
        psutil.wait_procs(everybody, timeout=20)
        return [one.pid for one in everybody]


def cluster_file(folder: Path, count: int, **settings: object) -> Path:
    settings = {"checkpoint": {"every_s": 0.3}, **settings}
    config = ClusterConfig.for_localhost(count, ports=free_ports(count), **settings)
    path = folder / "cluster.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    return path


def losses(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Each line of a node: the step and the loss."""
    path = run_dir / "nodes" / name / "losses.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(int(step), float.fromhex(loss)) for step, loss in (line.split() for line in lines)]


def steps_of_checkpoints(run_dir: Path, name: str) -> list[int]:
    path = run_dir / "nodes" / name / "events.jsonl"
    return [line["of_step"] for line in read_records(path) if line["event"] == "checkpoint"]


def killed_and_resumed(folder: Path, names: Sequence[str], steps: int, pace_s: float) -> Launch:
    """Launch, kill everything in mid-training, and resume; the second launch, which has ended."""
    run_dir = folder / "killed"
    command = [sys.executable, str(TRAINER), str(steps), str(pace_s)]
    first = Launch(folder, "cluster.yaml", "--run-dir", "killed", "--", *command)
    try:
        wait_until(
            lambda: all(len(steps_of_checkpoints(run_dir, name)) >= 2 for name in names), "checkpoints of all", 60
        )
        made = {name: len(losses(run_dir, name)) for name in names}
        wait_until(lambda: all(len(losses(run_dir, name)) > made[name] + 3 for name in names), "training goes on", 60)
    finally:
        killed = first.kill_all()
    assert len(killed) >= len(names) + 2, "launcher, guard and nodes"
    for name in names:
        steps_made = losses(run_dir, name)[-1][0] + 1
        assert max(steps_of_checkpoints(run_dir, name)) <= steps_made < steps, "killed in mid-training"
    second = Launch(Path("/"), "--resume", str(run_dir))
    code = second.wait()
    assert code == 0, "".join(second.lines)
    return second


@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_loss_curve_of_a_killed_and_resumed_cluster_is_to_the_bit_that_of_one_that_was_not(tmp_path, count):
    """Two nodes that exchange models and blend nothing; what they draw and train is their own."""
    names = [f"w{number}" for number in range(1, count + 1)]
    cluster_file(tmp_path, count, constant={"value": 0.0})
    through = Launch(tmp_path, "cluster.yaml", "--run-dir", "through", "--", sys.executable, str(TRAINER), "150", "0")
    assert through.wait() == 0, "".join(through.lines)
    killed_and_resumed(tmp_path, names, 150, 0.02)
    for name in names:
        expected = dict(losses(tmp_path / "through", name))
        got = losses(tmp_path / "killed", name)
        assert len(expected) == 150
        assert {step for step, _ in got} == set(expected)
        assert len(got) > 150, "the steps since the last checkpoint were made twice"
        assert all(expected[step] == loss for step, loss in got)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_four_nodes_with_exchanges_go_on_as_one_cluster_and_nobody_throws_a_model_away(tmp_path):
    names = ["w1", "w2", "w3", "w4"]
    cluster_file(tmp_path, 4)
    through = Launch(
        tmp_path, "cluster.yaml", "--run-dir", "through", "--", sys.executable, str(TRAINER), "300", "0.01"
    )
    assert through.wait() == 0, "".join(through.lines)
    second = killed_and_resumed(tmp_path, names, 300, 0.01)
    begun = [int(found[1]) for line in second.lines if (found := re.search(r"begins with step (\d+)", line))]
    assert len(begun) == 4
    assert min(begun) > 0
    last = {
        folder: [loss for name in names for step, loss in losses(tmp_path / folder, name) if step >= 250]
        for folder in ("through", "killed")
    }
    means = {folder: sum(values) / len(values) for folder, values in last.items()}
    assert means["killed"] == pytest.approx(means["through"], rel=0.35)
    for name in names:
        events = list(read_records(tmp_path / "killed" / "nodes" / name / "events.jsonl"))
        place = max(at for at, event in enumerate(events) if event["event"] == "resume")
        assert [event for event in events[place:] if event.get("takes_over")] == []
        assert any(event.get("outcome") == "blended" for event in events[place:]), "they exchange again"
        (closing,) = [event for event in events[place:] if event["event"] == "close"]
        assert closing["clock"] > 250


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_a_run_that_is_still_running_is_not_resumed_and_a_restarted_node_goes_on_from_its_checkpoint(tmp_path):
    cluster_file(tmp_path, 2)
    run_dir = tmp_path / "run"
    command = [sys.executable, str(TRAINER), "250", "0.02"]
    launch = Launch(tmp_path, "cluster.yaml", "--run-dir", "run", "--on-failure", "restart", "--", *command)
    try:
        wait_until(lambda: steps_of_checkpoints(run_dir, "w2"), "a checkpoint of w2", 60)
        refused = subprocess.run(
            [sys.executable, "-m", "dpwa", "launch", "--resume", str(run_dir)],
            capture_output=True,
            text=True,
            check=False,
        )
        (pid,) = [int(found[1]) for line in launch.lines if (found := re.search(r"w2 \| pid (\d+)", line))]
        os.kill(pid, signal.SIGKILL)
    finally:
        code = launch.wait()
    output = "".join(launch.lines)
    assert refused.returncode == 2
    assert f"it is taken: a launch that has not ended runs w1 (process {launch.process.pid}), w2" in refused.stderr
    assert "killed by SIGKILL; restart 1 of 5" in output
    assert code == 0, output
    begun = [int(found[1]) for line in launch.lines if (found := re.search(r"w2 \| pid .* step (\d+)", line))]
    assert begun[0] == 0 < begun[1]


# --- The record and the locks -----------------------------------------------------------------------------------------

RECORD = LaunchRecord(("python", "train.py"), "/", "/cluster.yaml", ("w1", "w2"), "continue", 5)


def test_a_record_comes_back_and_a_smaller_launch_does_not_replace_it(tmp_path):
    keep_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    keep_record(tmp_path, LaunchRecord(("other",), "/", "/cluster.yaml", ("w2",), "stop", 1))
    assert read_record(tmp_path) == RECORD
    larger = LaunchRecord(("other",), "/", "/cluster.yaml", ("w1", "w2", "w3"), "stop", 1, 4000)
    keep_record(tmp_path, larger)
    assert read_record(tmp_path) == larger


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"argv": 5}', '{"argv": [], "names": []}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "launch.json").write_text(text)
    with pytest.raises(ConfigError, match="write the cluster file and the command instead"):
        read_record(tmp_path)


def test_a_record_of_the_wrong_types_is_refused(tmp_path):
    keep_record(tmp_path, RECORD)
    fields = json.loads((tmp_path / "launch.json").read_text())
    for change in ({"argv": []}, {"argv": [5]}, {"folder": None}):
        (tmp_path / "launch.json").write_text(json.dumps({**fields, **change}))
        with pytest.raises(ConfigError, match="write the cluster file and the command instead"):
            read_record(tmp_path)


def test_a_folder_without_a_record_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--resume", str(tmp_path)])
    assert ended.value.code == 2
    assert (
        "expected the folder of a run that `dpwa launch` has made, with a file launch.json" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch"], "Missing argument 'CLUSTER.yaml'"),
        (["launch", "cluster.yaml"], "Missing argument '-- COMMAND...'"),
        (["launch", "--resume", "run", "--run-dir", "other"], "leave --run-dir and --hosts out"),
    ],
)
def test_what_a_launch_needs_is_said(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


HOLD = """
import sys
from pathlib import Path
from dpwa.launch.launch_record import NodeLocks
locks = NodeLocks(Path(sys.argv[1]))
locks.take(["w1", "w2"])
print("held", flush=True)
sys.stdin.readline()
locks.release("w2")
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.mark.seconds
def test_nodes_are_held_until_they_or_their_launcher_end(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        locks = NodeLocks(tmp_path)
        with pytest.raises(ConfigError, match=rf"runs w1 \(process {holder.pid}\), w2 \(process {holder.pid}\)"):
            locks.take(["w1", "w2", "w3"])
        locks.release_all()
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"
        locks.take(["w2"])
        with pytest.raises(ConfigError, match="it is taken"):
            locks.take(["w1"])
        holder.kill()
    locks.release_all()
    locks.take(["w1", "w2"])
    locks.release_all()
