"""What a process of a trial writes down, and the clock that stands still meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import TrialFolder
from dpwa.lab.training.handicaps import Handicap, shares_of_work
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.snapshots import read_steps, write_snapshot
from support import wait_until


def recorder(folder: Path, *, rounds: int, names: tuple[str, ...] = ("w1",), name: str = "w1", **options) -> Recorder:
    return Recorder(TrialFolder(folder), names, name, nn.Linear(2, 1), rounds=rounds, **options)


def make_steps(watch: Recorder, count: int, *, begin: int = 1, of: int | None = None) -> None:
    for step in range(begin, begin + count):
        watch.stepped(step, done=step / (of or count), loss=torch.tensor(float(step)), right=1, count=4)


def header_of(folder: Path, round_: int, name: str = "w1") -> dict[str, float]:
    with safe_open(TrialFolder(folder).snapshot(name, round_), framework="pt") as file:
        return {key: float(value) for key, value in file.metadata().items()}


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 40), rounds=st.integers(1, 12))
def test_rounds_are_equal_parts_of_the_steps_also_when_there_are_more_rounds_than_steps(
    tmp_path_factory: pytest.TempPathFactory, total: int, rounds: int
):
    folder = tmp_path_factory.mktemp("trial")
    watch = recorder(folder, rounds=rounds)
    watch.begin(total)
    make_steps(watch, total)
    found = [header_of(folder, number)["step"] for number in range(rounds + 1)]
    assert found[0] == 0
    assert found[-1] == total
    assert all(abs(step - number * total / rounds) <= 1 for number, step in enumerate(found))
    assert header_of(folder, rounds)["samples"] == 4 * total


def test_the_training_clock_stands_still_while_a_snapshot_is_written(tmp_path, monkeypatch):
    now_s = 100.0
    watch = recorder(tmp_path, rounds=2, clock=lambda: now_s)

    def slow_write(*arguments: object) -> None:
        nonlocal now_s
        now_s += 50.0
        write_snapshot(*arguments)

    monkeypatch.setattr("dpwa.lab.training.recording.write_snapshot", slow_write)
    watch.begin(2)
    now_s += 3.0
    make_steps(watch, 1, of=2)
    now_s += 4.0
    make_steps(watch, 1, begin=2, of=2)
    assert header_of(tmp_path, 1)["training_s"] == pytest.approx(3.0)
    assert header_of(tmp_path, 2)["training_s"] == pytest.approx(7.0)
    assert watch.training_s == pytest.approx(7.0)


def test_every_step_is_written_down_with_its_loss_and_what_was_right(tmp_path):
    watch = recorder(tmp_path, rounds=1)
    watch.begin(3)
    make_steps(watch, 3)
    with np.load(TrialFolder(tmp_path).steps("w1"), allow_pickle=False) as steps:
        assert steps["loss"].tolist() == [1.0, 2.0, 3.0]
        assert steps["right"].tolist() == [1, 1, 1]
        assert steps["count"].tolist() == [4, 4, 4]
        assert (np.diff(steps["end_s"]) >= 0).all()


def test_no_clock_runs_before_all_processes_are_ready(tmp_path):
    first, second = (recorder(tmp_path, rounds=1, names=("w1", "w2"), name=name) for name in ("w1", "w2"))
    begun = threading.Event()

    def begin() -> None:
        first.begin(1)
        begun.set()

    thread = threading.Thread(target=begin)
    thread.start()
    wait_until((TrialFolder(tmp_path).node("w1") / "ready").exists, "the first process is ready")
    assert not begun.is_set()
    second.begin(1)
    thread.join(10)
    assert begun.is_set()
    assert first.training_s < 5


def test_a_process_whose_model_is_another_ones_puts_no_model_down_but_its_steps(tmp_path):
    watch = recorder(tmp_path, rounds=1, saves=False)
    watch.begin(1)
    make_steps(watch, 1)
    assert list(TrialFolder(tmp_path).snapshots("w1").glob("*")) == []
    assert TrialFolder(tmp_path).steps("w1").exists()


def test_a_slow_node_sleeps_in_proportion_to_what_it_computed(monkeypatch):
    slept_s: list[float] = []
    cpu_s = iter([7.0, 7.5, 7.75])
    monkeypatch.setattr("dpwa.lab.training.handicaps.time.thread_time", lambda: next(cpu_s))
    monkeypatch.setattr("dpwa.lab.training.handicaps.time.sleep", slept_s.append)
    options = Settings.model_validate({"strategy": "pull", "slow": {"node": 2, "factor": 4.0}})
    slow = Handicap(options, 2, crowding=2.0)
    slow.begin()
    slow.after_step()
    slow.after_step()
    assert slept_s == [pytest.approx(3 * 0.5 * 2), pytest.approx(3 * 0.25 * 2)]


def test_saving_is_no_computing_that_a_slow_node_sleeps_for(tmp_path, monkeypatch):
    slept_s: list[float] = []
    cpu_s = 0.0
    monkeypatch.setattr("dpwa.lab.training.handicaps.time.thread_time", lambda: cpu_s)
    monkeypatch.setattr("dpwa.lab.training.handicaps.time.sleep", slept_s.append)

    def hard_write(*arguments: object) -> None:
        nonlocal cpu_s
        cpu_s += 50.0
        write_snapshot(*arguments)

    monkeypatch.setattr("dpwa.lab.training.recording.write_snapshot", hard_write)
    options = Settings.model_validate({"strategy": "pull", "slow": {"node": 1, "factor": 4.0}})
    watch = recorder(tmp_path, rounds=2, handicap=Handicap(options, 1, crowding=1.0))
    watch.begin(2)
    for step in (1, 2):
        cpu_s += 0.5
        make_steps(watch, 1, begin=step, of=2)
    assert slept_s == [pytest.approx(1.5)] * 2


def test_a_process_that_begins_anew_has_the_clock_of_its_first_life(tmp_path):
    recorder(tmp_path, rounds=1).begin(1)
    ready = TrialFolder(tmp_path).node("w1") / "ready"
    began_s = ready.stat().st_mtime - 100
    os.utime(ready, (began_s, began_s))
    for _life in (2, 3):
        again = recorder(tmp_path, rounds=1)
        again.begin(1)
        assert 100 <= again.training_s < 160


def test_other_nodes_are_not_slowed_down(monkeypatch):
    monkeypatch.setattr("dpwa.lab.training.handicaps.time.sleep", lambda _: pytest.fail("a healthy node slept"))
    options = Settings.model_validate({"strategy": "pull", "slow": {"node": 2, "factor": 4.0}})
    healthy = Handicap(options, 1, crowding=1.0)
    healthy.after_step()
    assert not healthy.is_due(0.9)
    assert shares_of_work(options, waits=True) == [1.0] * 4


@pytest.mark.parametrize(("at", "steps"), [(0.5, 5), (0.65, 7), (0.95, 10)])
def test_a_killed_node_dies_by_the_signal_and_all_that_it_did_is_written_down(tmp_path, at, steps):
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from dpwa.lab.study.settings import Settings\n"
        "from dpwa.lab.study.trial import TrialFolder\n"
        "from dpwa.lab.training.handicaps import Handicap\n"
        "from dpwa.lab.training.recording import Recorder\n"
        f"made = Settings.model_validate({{'strategy': 'pull', 'kill': {{'node': 1, 'at': {at}}}}})\n"
        "watch = Recorder(TrialFolder(Path(sys.argv[1])), ('w1',), 'w1', torch.nn.Linear(1, 1), rounds=2,\n"
        "                 did=lambda: {'bytes_sent': 7}, handicap=Handicap(made, 1, 1.0))\n"
        "watch.begin(10)\n"
        "for step in range(1, 11):\n"
        "    print(step, flush=True)\n"
        "    watch.stepped(step, done=step / 10, loss=torch.tensor(1.0), right=1, count=4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(done.stdout.split()) == steps
    folder = TrialFolder(tmp_path)
    assert [folder.snapshot("w1", round_).exists() for round_ in range(3)] == [True, True, False]
    word = json.loads(folder.last_word("w1").read_text())
    assert (word["step"], word["samples"], word["bytes_sent"]) == (steps, 4 * steps, 7)
    assert read_steps(folder.steps("w1"))["count"].sum() == 4 * steps


@given(nodes=st.integers(2, 64), factor=st.floats(1.01, 1000), data=st.data())
def test_shares_of_work_are_as_the_speeds_and_sum_up_to_the_work_of_equal_nodes(nodes, factor, data):
    slow = data.draw(st.integers(1, nodes))
    options = Settings.model_validate({"strategy": "pull", "nodes": nodes, "slow": {"node": slow, "factor": factor}})
    shares = shares_of_work(options, waits=False)
    assert sum(shares) == pytest.approx(nodes)
    others = [share for number, share in enumerate(shares, start=1) if number != slow]
    assert min(others) == pytest.approx(max(others))
    assert others[0] / shares[slow - 1] == pytest.approx(factor)


def test_a_slow_node_that_keeps_its_work_makes_as_many_steps_as_the_others():
    slow = {"node": 2, "factor": 4.0, "keeps_work": True}
    options = Settings.model_validate({"strategy": "pull", "nodes": 4, "slow": slow})
    assert shares_of_work(options, waits=False) == [1.0] * 4


def test_what_is_written_holds_threads_and_processes(tmp_path):
    watch = recorder(tmp_path, rounds=1, did=lambda: {"bytes_sent": 123})
    watch.begin(1)
    make_steps(watch, 1)
    header = header_of(tmp_path, 1)
    assert header["bytes_sent"] == 123
    assert header["processes"] == 1
    assert header["threads"] == torch.get_num_threads()
