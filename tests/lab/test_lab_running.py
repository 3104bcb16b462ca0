"""Runs of studies: what runs, is kept, runs again, is skipped and is reported; and that nothing is left running."""

from __future__ import annotations

import asyncio
import io
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.lab import commands
from dpwa.lab.run import running, starting
from dpwa.lab.run.mpi_segments import remove_mpi_segments
from dpwa.lab.run.pace import Pace, Patience, duration_text
from dpwa.lab.run.progress import RunProgress
from dpwa.lab.run.run_folder import RunFolder, last_lines, remove_snapshots
from dpwa.lab.run.running import Runner
from dpwa.lab.run.starting import (
    command_of,
    environment_of,
    held_to,
    missing_for,
    prepare,
    threads_of,
)
from dpwa.lab.run.supervision import Ended, Programs
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.data import load
from dpwa.lab.training.machine import machine_cores
from support import wait_until

pytestmark = pytest.mark.heavy

BASE = "study: try\ndata: digits\nmodel: mlp\nnodes: 2\nn_epochs: 1\n"


def written(text: str, name: str = "study.yaml") -> Path:
    path = Path(name)
    path.write_text(BASE + text)
    return path


def trial_of(strategy: str = "single", **settings: object) -> Trial:
    return Trial("try", strategy, 0, Settings.model_validate({"strategy": strategy, "data": "digits", **settings}))


def run_lab(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lab", *arguments])


def run_shown(text: str, *, only: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a study in the folder `run`: the exit code and what was printed."""
    study = Study.load(written(text), for_running=True)
    output = io.StringIO()
    code = Runner(study, study.trials(only), Path("run")).run(Console(file=output, width=200))
    return code, output.getvalue()


def run_program(code: str, log: Path, *, grace_s: float = 10.0, deadline_s: float) -> Ended:
    argv = [sys.executable, "-c", code]
    is_over = lambda elapsed_s: elapsed_s > deadline_s  # noqa: E731
    return asyncio.run(Programs(grace_s).run(argv, dict(os.environ), log=log, is_over=is_over))


@pytest.fixture
def small_trials(monkeypatch):
    """Trainings and evaluations that take no time; the name of a row says how it ends."""
    train = (
        "import sys; row = sys.argv[1]; print('hello from', row); sys.exit('ValueError: broken' if 'bad' in row else 0)"
    )
    measure = (
        "import json, pathlib, sys; folder = pathlib.Path(sys.argv[1]); code = int(sys.argv[2]); "
        "trial = json.loads((folder / 'trial.json').read_text()); "
        "result = dict(trial=trial, status='failed' if code else 'done', reason=sys.argv[3], samples_seen=5, "
        "final_accuracy=None if code else 0.75); "
        "(folder / 'result.json').write_text(json.dumps(result))"
    )
    monkeypatch.setattr(running, "data_command", lambda _name, _cache: [sys.executable, "-c", ""])
    monkeypatch.setattr(running, "command_of", lambda trial, _folder: [sys.executable, "-c", train, trial.row])
    monkeypatch.setattr(
        running,
        "evaluation_command",
        lambda folder, *, exit_code, reason, wall_s: [  # noqa: ARG005
            sys.executable, "-c", measure, str(folder.path), str(exit_code), reason
        ],
    )  # fmt: skip


def test_of_a_trials_models_the_last_one_is_kept_and_not_what_it_was_before_a_merge(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    for path in (
        folder.snapshot("w1", 9),
        folder.snapshot("w1", 10),
        folder.before_merge("w1"),
        folder.snapshot("w2", 0),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_snapshots(folder)
    assert list(folder.snapshots("w1").iterdir()) == [folder.snapshot("w1", 10)]
    assert list(folder.snapshots("w2").iterdir()) == [folder.snapshot("w2", 0)]


@pytest.mark.timeout(300)  # seven processes that import torch, perhaps on a machine that is busy with others
def test_a_study_is_run_by_real_processes_measured_and_kept() -> None:
    text = "batch_size: 64\nrounds_per_epoch: 2\nstrategies: [single, {strategy: pull, cluster: {timeout_ms: 5000}}]\n"
    written(text)
    done = run_lab("run", "study.yaml")
    assert done.exit_code == 0, done.output
    results = {}
    for row in ("single", "pull"):
        folder = TrialFolder(Path("runs/try/trials") / f"{row}-s0")
        results[row] = json.loads(folder.result_json.read_text())
        assert results[row]["status"] == "done"
        # A tenth is chance. The two nodes of `pull` make eleven steps each, in which they may hardly have met.
        assert results[row]["final_accuracy"] > (0.3 if row == "single" else 0.15)
        assert [path.name for path in sorted(folder.snapshots("w1").iterdir())] == ["0002.safetensors"]
    assert results["single"]["initial_weights"] == results["pull"]["initial_weights"]
    assert results["single"]["threads_per_process"] == machine_cores()
    assert results["pull"]["threads_per_process"] == max(1, machine_cores() // 2)
    assert "Report: dpwa lab report runs/try" in done.output
    before = Path("runs/try/trials/pull-s0/result.json").stat().st_mtime_ns
    again = run_lab("run", "study.yaml")
    assert again.exit_code == 0
    assert "2 of 2 trials have finished before and are kept" in again.output
    assert Path("runs/try/trials/pull-s0/result.json").stat().st_mtime_ns == before
    assert Study.load(Path("runs/try/study.yaml")).name == "try"


@pytest.mark.usefixtures("small_trials")
def test_a_trial_that_fails_is_reported_with_its_log_and_the_others_run() -> None:
    code, output = run_shown("strategies: [{strategy: single, name: bad}, {strategy: single, name: good}]\n")
    assert code == 1
    assert "[1/2] bad (seed 0): failed: ValueError: broken" in output
    assert "  | hello from bad" in output
    assert "run/trials/bad-s0/output.log" in output
    assert "[2/2] good (seed 0): done, accuracy 75.00%" in output
    assert "bad   1 failed: ValueError: broken" in output
    code, output = run_shown("strategies: [{strategy: single, name: bad}, {strategy: single, name: good}]\n")
    assert "bad (seed 0): running again: it failed: ValueError: broken" in output
    assert "1 of 2 trials have finished before" in output


@pytest.mark.usefixtures("small_trials")
def test_whoever_runs_a_study_may_say_what_starts_its_processes() -> None:
    study = Study.load(written("strategies: [single]\n"), for_running=True)

    def command(trial: Trial, folder: TrialFolder) -> list[str]:
        return [sys.executable, "-c", f"print('on another host:', {trial.row!r}, {folder.path.name!r})"]

    assert Runner(study, study.trials(), Path("run"), command=command).run(Console(file=io.StringIO())) == 0
    log = Path("run/trials/single-s0/output.log").read_text()
    assert "on another host: single single-s0" in log


@pytest.mark.usefixtures("small_trials")
def test_an_error_with_a_cause_is_reported_in_its_own_words(monkeypatch) -> None:
    train = "try: 1 / 0\nexcept ZeroDivisionError as error: raise ValueError('expected files in there') from error"
    monkeypatch.setattr(running, "command_of", lambda _trial, _folder: [sys.executable, "-c", train])
    code, shown = run_shown("strategies: [single]\n")
    assert code == 1
    assert "failed: ValueError: expected files in there" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("small_trials")
def test_without_its_data_nothing_is_started_and_the_reason_is_given_once(monkeypatch) -> None:
    without = running.data_command
    monkeypatch.setattr(
        running,
        "data_command",
        lambda name, cache: (starting.data_command if name == "cifar10" else without)(name, cache),
    )
    monkeypatch.setenv("DPWA_DATA_DIR", str(Path("nowhere").absolute()))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    text = "strategies: [{strategy: single, data: cifar10}, pull]\nseeds: 2\n"
    code, shown = run_shown(text)
    assert code == 2
    assert shown.count("loading cifar10: expected torchvision's files in") == 1
    assert "or train/CLASS/*.jpg" in shown
    hint = "to leave out the trials that need it: --only data=digits"
    assert f"cifar10 cannot be loaded, so no trial was started; {hint}" in shown
    assert not list(Path("run").rglob("trial.json"))

    code, shown = run_shown(text, only=("data=digits",))
    assert code == 0, shown


def test_data_are_read_once_and_shared(capfd) -> None:
    study = Study.load(written("strategies: [single]\nseeds: 2\n"), for_running=True)
    trials = study.trials()
    caches = {RunFolder(Path("run")).of(trial).data_cache("digits") for trial in trials}
    (cache,) = caches
    subprocess.run(starting.data_command("digits", cache), check=True)
    assert capfd.readouterr().err == ""
    assert len(load("digits", None, cache).train) == 1437


@pytest.mark.usefixtures("small_trials")
def test_texts_of_a_user_are_read_anew_by_each_run_and_other_data_are_kept(monkeypatch) -> None:
    touch = "import pathlib, sys; pathlib.Path(sys.argv[1]).parent.mkdir(exist_ok=True, parents=True); "
    touch += "pathlib.Path(sys.argv[1]).touch()"
    monkeypatch.setattr(running, "data_command", lambda _name, cache: [sys.executable, "-c", touch, str(cache)])
    text = "strategies: [single, {name: on texts, strategy: single, data: text_files, model: char_transformer}]\n"
    loaded = []
    for _ in range(2):
        shown = run_shown(text)[1]
        loaded.append([name for name in ("digits", "text_files") if f"{name}: loading the data" in shown])
        for row in ("single", "on-texts"):
            shutil.rmtree(f"run/trials/{row}-s0")
    assert loaded == [["digits", "text_files"], ["text_files"]]


@pytest.mark.usefixtures("small_trials")
def test_a_trial_whose_settings_have_changed_runs_again() -> None:
    run_shown("strategies: [{name: one, strategy: single}, {name: two, strategy: single, momentum: 0.5}]\n")
    code, output = run_shown(
        "strategies: [{name: one, strategy: single}, {name: two, strategy: single, momentum: 0.6}]\n"
    )
    assert code == 0
    assert "two (seed 0): running again: its settings have changed (momentum)" in output
    assert "one (seed 0): running again" not in output


@pytest.mark.usefixtures("small_trials")
def test_a_trial_from_before_a_new_setting_still_counts() -> None:
    run_shown("strategies: [single]\n")
    path = Path("run/trials/single-s0/result.json")
    result = json.loads(path.read_text())
    del result["trial"]["settings"]["every_steps"]
    path.write_text(json.dumps(result))
    assert "1 of 1 trials have finished before" in run_shown("strategies: [single]\n")[1]
    path.write_text(json.dumps(result)[:100])
    assert "running again: it was interrupted" in run_shown("strategies: [single]\n")[1]


@pytest.mark.usefixtures("small_trials")
def test_only_and_seeds_choose_trials_and_the_next_run_runs_the_others() -> None:
    text = "strategies: [{strategy: single, name: one}, {strategy: single, name: two}]\nseeds: 2\n"
    _, output = run_shown(text, only=("row=one",))
    assert "two" not in output
    _, output = run_shown(text)
    assert "2 of 4 trials have finished before" in output
    assert "one  75.00% (mean of 2)" in output.replace("one   ", "one ")


@pytest.mark.usefixtures("small_trials")
def test_a_failure_is_a_result_where_the_study_kills_a_node() -> None:
    text = "kill: {node: 1, at: 0.5}\nstrategies: [{strategy: ddp, name: bad}]\n"
    code, output = run_shown(text)
    assert code == 0
    assert "failed: ValueError: broken" in output
    code, output = run_shown(text)
    assert code == 0
    assert "1 of 1 trials have finished before" in output


@pytest.mark.usefixtures("small_trials")
def test_a_row_whose_extra_is_missing_is_skipped_with_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    code, output = run_shown("strategies: [param_avg, single]\n")
    assert code == 0
    assert "[1/2] param_avg (seed 0): skipped: install dpwa[mpi]\n" in output
    assert "[2/2] single (seed 0): done" in output
    result = json.loads(Path("run/trials/param_avg-s0/result.json").read_text())
    assert (result["status"], result["reason"]) == ("skipped", "install dpwa[mpi]")
    monkeypatch.undo()


@pytest.mark.parametrize("package", ["torch", "sklearn"])
def test_a_package_that_every_trial_needs_is_asked_for_in_one_line_before_anything_starts(monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    written("strategies: [single, pull]\n")
    result = run_lab("run", "study.yaml")
    assert result.exit_code == 2
    install = f"{sys.executable} -m pip install 'dpwa[examples,lab]'"
    advice = f"the package {package} is not installed; install it with: {install}\n"
    assert result.stderr == f"dpwa lab run: {advice}"
    assert not Path("runs").exists()


@pytest.mark.usefixtures("small_trials")
def test_a_trial_that_does_not_end_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(Pace, "deadline_s", lambda *_: 0.4)
    monkeypatch.setattr(running, "command_of", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    code, output = run_shown("strategies: [single]\n")
    assert code == 1
    assert re.search(r"failed: not done within \d s, and no round has ended", output)


@pytest.mark.usefixtures("small_trials")
def test_an_evaluation_that_fails_is_reported(monkeypatch) -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('KeyError: what')"]
    monkeypatch.setattr(running, "evaluation_command", lambda *_, **__: broken)
    code, output = run_shown("strategies: [single]\n")
    assert code == 1
    assert "failed: its evaluation failed: KeyError: what" in output
    assert json.loads(Path("run/trials/single-s0/result.json").read_text())["status"] == "failed"


@pytest.mark.usefixtures("small_trials")
def test_a_folder_of_something_else_is_not_emptied() -> None:
    precious = Path("run/trials/single-s0/thesis.txt")
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(ConfigError, match=r"got one without trial\.json"):
        run_shown("strategies: [single]\n")
    assert precious.read_text() == "years of work"


@pytest.mark.usefixtures("small_trials")
def test_a_folder_holds_one_study_and_one_run_at_a_time() -> None:
    run_shown("strategies: [single]\n")
    other = written("strategies: [single]\n", "other.yaml")
    other.write_text(other.read_text().replace("study: try", "study: other"))
    refused = run_lab("run", "other.yaml", "--run-dir", "run")
    assert refused.exit_code == 2
    assert "it belongs to the study try, not other" in refused.output
    with RunFolder(Path("run")).taken():
        refused = run_lab("run", "study.yaml", "--run-dir", "run")
    assert refused.exit_code == 2
    assert "another dpwa lab run is using it" in refused.output


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_and_can_be_continued(tmp_path: Path) -> None:
    written("strategies: [{strategy: pull, n_epochs: 10000, batch_size: 8}]\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dpwa", "lab", "run", "study.yaml"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    nodes = tmp_path / "runs/try/trials/pull-s0/nodes"
    try:
        wait_until(lambda: all((nodes / name / "ready").exists() for name in ("w1", "w2")), "both train", 90)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"ended by SIGTERM; run the same command again to continue" in output
    assert len(children) >= 3
    wait_until(lambda: not any(child.is_running() for child in children), "all processes have ended")
    study = Study.load(Path("study.yaml"))
    assert RunFolder(tmp_path / "runs/try").why_again(study.trials()[0]) == "it was interrupted"


def test_a_process_that_does_not_want_to_end_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    ended = run_program(code, log, grace_s=0.1, deadline_s=1.5)
    assert ended.is_late
    assert ended.exit_code == -signal.SIGKILL
    child = int(log.read_text())
    wait_until(
        lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "the child has ended"
    )


def test_processes_are_held_to_the_cores_of_the_study(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    code = "import os; print(len(os.sched_getaffinity(0)))"
    with held_to(1):
        ended = run_program(code, tmp_path / "log", deadline_s=30)
    assert ended.exit_code == 0
    assert (tmp_path / "log").read_text() == "1\n"
    assert os.sched_getaffinity(0) == usable


@pytest.mark.parametrize(
    ("strategy", "nodes", "cores", "threads"),
    [
        ("single", 4, None, 8),
        ("single", 4, 1, 1),
        ("pull", 4, None, 2),
        ("ddp", 2, None, 4),
        ("fedavg", 4, None, 2),
        ("param_avg", 6, None, 1),
        ("param_avg", 64, None, 1),
        ("custom_data_parallel", 2, 2, 2),
    ],
)
def test_cores_are_divided_equally_among_the_processes_that_compute(strategy, nodes, cores, threads) -> None:
    assert threads_of(trial_of(strategy, nodes=nodes, cores=cores), 8) == threads


def test_the_environment_names_threads_and_data_and_no_other_node(monkeypatch) -> None:
    monkeypatch.setenv("DPWA_NODE", "w7")
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    found = environment_of(2, Path("data"))
    assert [found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")] == ["2", "2", "2"]
    assert found["DPWA_DATA_DIR"] == str(Path("data").absolute())
    assert "DPWA_NODE" not in found
    assert "DPWA_DATA_DIR" not in environment_of(2, None)


@pytest.mark.parametrize("strategy", ["pull", "sgp", "ddp", "single", "fedavg", "allreduce_every_h"])
def test_the_cluster_file_of_a_row_is_one_that_dpwa_accepts(strategy: str, tmp_path: Path) -> None:
    options = {"pull_probability": 0.25} if strategy in ("pull", "sgp") else {}
    trial = Trial("try", strategy, 7, Settings.model_validate({"strategy": strategy, "nodes": 3, "cluster": options}))
    folder = TrialFolder(tmp_path)
    prepare(trial, folder, tmp_path)
    config = ClusterConfig.load(folder.cluster_yaml)
    assert tuple(node.name for node in config.nodes) == trial.process_names
    assert (config.run, config.seed) == ("try", 7)
    if options:
        assert (config.method, config.pull_probability) == (strategy, 0.25)
    argv = command_of(trial, folder)
    assert argv[1:4] == ["-m", "dpwa", "launch"]
    assert argv[-3:] == ["-m", "dpwa.lab.worker", str(tmp_path)]


def test_matrices_are_named_by_their_whole_path_in_the_cluster_file(tmp_path: Path) -> None:
    options = {"topology": {"graph": "matrix", "matrix": "m.csv"}}
    (tmp_path / "m.csv").write_text("0.5,0.5\n0.5,0.5\n")
    folder = TrialFolder(tmp_path / "trial")
    folder.path.mkdir()
    prepare(trial_of("dpsgd", nodes=2, cluster=options), folder, tmp_path)
    assert ClusterConfig.load(folder.cluster_yaml).topology_of_nodes.count == 2


def test_mpi_rows_are_started_by_mpiexec_and_tensorflow_by_its_own_script(tmp_path: Path) -> None:
    argv = command_of(trial_of("param_avg", nodes=3), TrialFolder(tmp_path))
    assert Path(argv[0]).name == "mpiexec"
    assert argv[1:3] == ["-n", "3"]
    assert missing_for(trial_of("single")) is None
    assert command_of(trial_of("tf_mirrored"), TrialFolder(tmp_path))[1:3] == [
        "-m",
        "dpwa.lab.strategies.tensorflow.mirrored",
    ]


def test_the_pace_is_learned_from_trials_with_the_same_data_and_network() -> None:
    pace = Pace()
    assert pace.seconds([]) == 0
    assert pace.seconds([trial_of()]) is None
    pace.learn(trial_of(n_epochs=2), 30)
    pace.learn(trial_of(n_epochs=4), 30)
    assert pace.seconds([trial_of("pull", n_epochs=3), trial_of(n_epochs=1)]) == 40
    assert pace.seconds([trial_of(), trial_of(model="mlp")]) is None
    assert pace.seconds([trial_of(n_epochs=1), trial_of(model="mlp")], (trial_of(model="mlp"), 7)) == 17
    slow = {"slow": {"node": 1, "factor": 4}, "n_epochs": 1}
    assert [pace.seconds([trial_of(strategy, **slow)]) for strategy in ("ddp", "pull")] == [40, 10]
    assert pace.seconds([trial_of("pull", slow={"node": 1, "factor": 4, "keeps_work": True}, n_epochs=1)]) == 40
    assert pace.seconds([trial_of("pull", engine="in_memory")]) is None, "one core does all"


def test_a_trial_is_not_late_while_its_rounds_still_end() -> None:
    patience = Patience(deadline_s=1000)
    assert not patience.is_over(999, rounds=0)
    assert not patience.is_over(900, rounds=0.5)
    assert not patience.is_over(6200, rounds=0.5), "six times as long as a half"
    assert not patience.is_over(6300, rounds=1)
    assert not patience.is_over(6300 + 6 * 5400, rounds=1)
    assert patience.is_over(6301 + 6 * 5400, rounds=1)
    assert Patience(deadline_s=1000).is_over(1001, rounds=0), "not even one"


def test_a_trial_of_short_rounds_hangs_only_when_none_has_ended_for_ten_minutes() -> None:
    patience = Patience(deadline_s=1000)
    assert [patience.is_over(elapsed_s, rounds=elapsed_s) for elapsed_s in range(1, 1200)] == [False] * 1199
    assert [patience.is_over(elapsed_s, rounds=1199) for elapsed_s in (1798, 1800)] == [False, True]


def test_deadlines_are_generous_and_follow_the_pace() -> None:
    pace = Pace()
    before = [pace.deadline_s(trial_of(n_epochs=epochs)) for epochs in (1, 10)]
    assert 600 < before[0] < before[1]
    pace.learn(trial_of(n_epochs=1), 50)
    assert [pace.deadline_s(trial_of(n_epochs=epochs)) for epochs in (1, 10)] == [600, 3000]


@pytest.mark.usefixtures("small_trials")
def test_the_time_left_is_shown_once_a_similar_trial_has_finished() -> None:
    text = "strategies: [{strategy: single, name: one}, {strategy: single, name: two, n_epochs: 1000}]\n"
    _, output = run_shown(text)
    assert "[1/2] one (seed 0): started\n" in output
    assert re.search(r"\[2/2\] two \(seed 0\): started; about [1-9].* left\n", output)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (119, "2 min"), (3600, "60 min"), (11100, "3 h 05 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_list_shows_rows_seeds_epochs_and_problems() -> None:
    folder = Path("samples/studies")
    folder.mkdir(parents=True)
    (folder / "first.yaml").write_text(BASE + "title: Is it so?\nstrategies: [single, pull]\nseeds: 3\n")
    listed = run_lab("list")
    assert listed.exit_code == 0
    assert re.search(r"first\.yaml +2 x 3 +6 +- +Is it so\?", listed.output)
    (folder / "first.yaml").write_text(BASE + "title: Is it so?\ntakes: half a day\nstrategies: [single]\n")
    assert re.search(r"first\.yaml +1 x 1 +1 +half a day +Is it so\?", run_lab("list").output)
    assert commands.study_path(Path("first")) == folder / "first.yaml"
    with pytest.raises(ConfigError, match=r'there is no such study, did you mean "first"\?'):
        commands.study_path(Path("frist"))
    Path("bad.yaml").write_text("study: x\nstrategies: [singel]\n")
    listed = CliRunner().invoke(main, ["lab", "list", "bad.yaml"])
    assert listed.exit_code == 2
    assert "bad.yaml:2:14: strategies[0].strategy" in listed.output


def test_the_strategies_are_listed_with_what_they_need() -> None:
    listed = run_lab("list", "--strategies")
    assert listed.exit_code == 0
    assert "w_param_avg" in listed.output
    assert "dpwa[mpi]" in listed.output


def test_the_lab_answers_without_torch() -> None:
    code = (
        "import sys; from dpwa.lab import commands; from dpwa.lab.run import running; "
        "from dpwa.lab.study import study; "
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(is_terminal: bool, monkeypatch) -> None:
    monkeypatch.setattr("dpwa.lab.run.progress._LINE_EVERY_S", 0.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=150)
    with RunProgress(console, 3, 1) as progress:
        progress.begin("pull (seed 0)", None)
        progress.update("pull (seed 0)", 0.5, 60.0)
        progress.end("pull (seed 0)", "done", 120.0)
    shown = output.getvalue()
    assert "[2/3] pull (seed 0): done; about 2 min left" in shown
    assert "pull (seed 0): 50%; about 60 s left" in shown
    assert ("[2/3] pull (seed 0): started\n" in shown) is not is_terminal


def test_trials_side_by_side_have_their_own_numbers_and_shares() -> None:
    output = io.StringIO()
    with RunProgress(Console(file=output, width=150), 4, 1) as progress:
        progress.begin("a", None)
        progress.begin("b", None)
        progress.end("b", "done")
        progress.begin("c", None)
        progress.end("a", "done")
        progress.end("c", "done")
    lines = output.getvalue().splitlines()
    assert lines == [
        "[2/4] a: started",
        "[3/4] b: started",
        "[3/4] b: done",
        "[4/4] c: started",
        "[2/4] a: done",
        "[4/4] c: done",
    ]


class AtWork:
    """Stands for the programs of a run: counts how many trials are under way, and can fail in one."""

    def __init__(self, failing: str = "") -> None:
        self.now = self.most = 0
        self.begun: list[str] = []
        self._failing = failing

    async def __call__(self, trial: Trial, _progress: RunProgress) -> tuple[running.TrialOutcome, Ended]:
        self.begun.append(trial.title)
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(20):
            await asyncio.sleep(0)
        self.now -= 1
        if trial.title == self._failing:
            raise ConfigError("out of ports")
        return running.TrialOutcome(trial, "done", accuracy=0.5), Ended(0, 1.0)


async def has_data(_console: Console) -> bool:
    return True


@pytest.mark.parametrize(
    ("more", "cores", "expected"),
    [("engine: in_memory\n", 2, 2), ("engine: in_memory\n", 3, 3), ("", 2, 1), ("engine: in_memory\ncores: 1\n", 2, 1)],
)
def test_trials_in_virtual_time_share_the_cores_and_others_have_them_alone(
    monkeypatch, tmp_path, more: str, cores: int, expected: int
) -> None:
    monkeypatch.setattr(running, "machine_cores", lambda: cores)
    study = Study.load(written(f"seeds: 5\nstrategies: [pull]\n{more}"))
    runner, at_work = Runner(study, study.trials(), tmp_path / "run"), AtWork()
    monkeypatch.setattr(runner, "_run_trial", at_work)
    monkeypatch.setattr(runner, "_has_data", has_data)
    assert runner.run(Console(file=io.StringIO())) == 0
    assert len(at_work.begun) == 5
    assert at_work.most == expected


def test_after_an_error_no_other_trial_begins(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(running, "machine_cores", lambda: 2)
    study = Study.load(written("seeds: 9\nstrategies: [pull]\nengine: in_memory\n"))
    runner, at_work = Runner(study, study.trials(), tmp_path / "run"), AtWork(failing="pull (seed 1)")
    monkeypatch.setattr(runner, "_run_trial", at_work)
    monkeypatch.setattr(runner, "_has_data", has_data)
    with pytest.raises(ConfigError, match="out of ports"):
        runner.run(Console(file=io.StringIO()))
    assert len(at_work.begun) <= 3
    assert at_work.now == 0, "nothing is left at work"


def test_the_last_lines_of_a_log_are_the_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 3) == []
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert last_lines(log, 2) == ["line 998", "line 999"]


def test_segments_of_mpi_jobs_that_have_ended_are_removed(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"mpich_shm_{name}" for name in ("old", "mapped", "young")}
    for name, path in paths.items():
        path.write_bytes(bytes(mmap.PAGESIZE))
        if name != "young":
            os.utime(path, (time.time() - 60, time.time() - 60))
    with paths["mapped"].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        remove_mpi_segments(tmp_path)
    assert {name for name, path in paths.items() if path.exists()} == {"mapped", "young"}


@pytest.mark.usefixtures("small_trials")
def test_a_users_own_data_are_loaded_anew_by_each_run_and_the_labs_only_once(monkeypatch) -> None:
    Path("data_of_mine.py").write_text("def data(folder): ...\n")
    count = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); open('loaded', 'a').write(sys.argv[2] + ' ')"

    def command(name: str, cache: Path) -> list[str]:
        cache.parent.mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-c", count, str(cache), name]

    monkeypatch.setattr(running, "data_command", command)
    text = "strategies: [{strategy: single, name: bad}, {strategy: single, name: bad2, data: 'data_of_mine:data'}]\n"
    for _ in range(2):
        code, _ = run_shown(text)
        assert code == 1
    assert Path("loaded").read_text().split() == ["digits", "data_of_mine:data", "data_of_mine:data"]


@pytest.mark.usefixtures("small_trials")
def test_a_run_in_another_thread_is_ended_as_by_a_signal(monkeypatch) -> None:
    sleep = "import time; print('up', flush=True); time.sleep(100)"
    monkeypatch.setattr(running, "command_of", lambda _trial, _folder: [sys.executable, "-c", sleep])
    study = Study.load(written("strategies: [single]\n"), for_running=True)
    runner = Runner(study, study.trials(), Path("run"))
    log = Path("run/trials/single-s0/output.log")
    output = io.StringIO()
    with ThreadPoolExecutor(1) as threads:
        code = threads.submit(runner.run, Console(file=output))
        wait_until(lambda: log.exists() and "up" in log.read_text(), "the trial runs")
        runner.end(signal.SIGINT)
        assert code.result() == 128 + signal.SIGINT
    assert "run the same command again to continue" in output.getvalue()
