"""SIGTERM ends a training as Ctrl-C does: the model is saved, the exit code is 143, and others keep their handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch_support import linear, local_cluster

from dpwa.adapters import pytorch
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.errors import NodeClosed
from dpwa.transport.shared_memory import SEGMENT_FOLDER

pytestmark = pytest.mark.heavy

# A training that never ends by itself. With an argument it has so many workers that load data.
TRAINING = """
import sys, time
import torch
from dpwa.adapters.pytorch import DpwaPyTorchAdapter

class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            time.sleep(0.01)
            yield torch.zeros(3)

model = torch.nn.Linear(3, 2)
torch.nn.init.constant_(model.bias, 5.0)
try:
    with DpwaPyTorchAdapter(model) as dpwa:
        for step, batch in enumerate(torch.utils.data.DataLoader(Endless(), num_workers=int(sys.argv[1]))):
            dpwa.step(model(batch).sum().item())
            if step == 10:
                print("ready", flush=True)
finally:
    print("cleaned up", flush=True)
"""


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    folder = tmp_path / "run"
    monkeypatch.setenv("DPWA_RUN_DIR", str(folder))
    return folder


@pytest.fixture
def config(tmp_path):
    made = local_cluster(2, wait_ms=0, run=f"term-{os.getpid()}", timeout_ms=500, connect_timeout_ms=200)
    (tmp_path / "cluster.yaml").write_text(made.to_yaml(), encoding="utf-8")
    (tmp_path / "train.py").write_text(TRAINING, encoding="utf-8")
    return made


def saved(run_dir: Path, name: str) -> bool:
    path = run_dir / "nodes" / name / "model.safetensors"
    return path.exists() and load_file(path)["bias"].shape == (2,)


def segments(config) -> list[Path]:
    return list(SEGMENT_FOLDER.glob(f"dpwa-{config.run_id}-*"))


@pytest.fixture
def started():
    processes: list[subprocess.Popen] = []

    def start(*command: str, **environment: str) -> subprocess.Popen:
        made = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(made)
        return made

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_to_a_node_and_its_workers_saves_the_model_and_leaves_nothing(config, run_dir, started, workers):
    node = started("train.py", str(workers), DPWA_CONFIG="cluster.yaml", DPWA_NODE="w1")
    assert node.stdout.readline() == "ready\n"
    family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    assert len(family) == 1 + workers
    assert len(segments(config)) == 1
    os.killpg(node.pid, signal.SIGTERM)  # as a scheduler does
    output, errors = node.communicate(timeout=20)
    assert (node.returncode, output) == (143, "cleaned up\n"), errors
    assert "Traceback" not in errors
    assert saved(run_dir, "w1")
    assert segments(config) == []
    assert not any(process.is_running() for process in family)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGTERM to all", "SIGKILL"])
def test_however_a_launcher_is_ended_its_nodes_save_their_models_and_leave_nothing(config, run_dir, started, how):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests themselves run under `nohup`
    try:
        launcher = started(
            "-m", "dpwa", "launch", "cluster.yaml", "--run-dir", "run", "--", sys.executable, "train.py", "0"
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    waited_for = {"w1 | ready\n", "w2 | ready\n"}
    while waited_for:
        line = launcher.stdout.readline()
        assert line, "the launcher ended early"
        waited_for.discard(line)
    family = psutil.Process(launcher.pid).children(recursive=True)
    nodes = [process for process in family if "train.py" in process.cmdline()]
    assert len(nodes) == 2
    assert len(segments(config)) == 2
    launcher.send_signal(signal.SIGHUP if how == "SIGHUP" else signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM)
    if how == "SIGTERM to all":
        for node in nodes:
            node.terminate()
    launcher.wait(20)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert saved(run_dir, "w1")
    assert saved(run_dir, "w2")
    assert segments(config) == []
    if how != "SIGKILL":
        assert launcher.returncode == 128 + (signal.SIGHUP if how == "SIGHUP" else signal.SIGTERM)


# --- Handlers, within this process ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _default_action():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    yield
    left = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert left == signal.SIG_DFL


def terminated(adapter: DpwaPyTorchAdapter) -> None:
    with pytest.raises(SystemExit) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143
    assert not adapter.closed


def test_with_several_nodes_in_a_process_the_last_one_gives_the_handler_back():
    first, second = DpwaPyTorchAdapter(linear(1.0)), DpwaPyTorchAdapter(linear(1.0))
    first.close()
    terminated(second)
    second.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_of_the_script_stays(when):
    heard = []

    def mine(number: int, _frame: object) -> None:
        heard.append(number)

    if when == "before":
        signal.signal(signal.SIGTERM, mine)
    with DpwaPyTorchAdapter(linear(1.0)) as adapter:
        if when == "after":
            signal.signal(signal.SIGTERM, mine)
        signal.raise_signal(signal.SIGTERM)
        adapter.step(1.0)
    assert heard == [signal.SIGTERM]
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is mine


def test_a_script_that_catches_everything_is_ended_by_its_next_step():
    with DpwaPyTorchAdapter(linear(1.0)) as adapter:
        adapter.step(1.0)
        terminated(adapter)
        with pytest.raises(SystemExit):
            adapter.step(1.0)
        with pytest.raises(SystemExit):
            adapter.update_wait(1.0)
        assert adapter.statistics().step == 1
    with DpwaPyTorchAdapter(linear(1.0)) as adapter:
        adapter.step(1.0)  # of another life


def test_a_second_sigterm_in_the_same_moment_does_not_break_off_the_clean_up():
    with DpwaPyTorchAdapter(linear(1.0)) as adapter:
        terminated(adapter)
        signal.raise_signal(signal.SIGTERM)


def test_a_worker_that_ends_by_the_same_sigterm_is_no_failure_any_more():
    def torchs(*_: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    before = signal.signal(signal.SIGCHLD, torchs)
    try:
        with DpwaPyTorchAdapter(linear(1.0)) as adapter:
            with pytest.raises(RuntimeError, match="DataLoader worker"):
                signal.raise_signal(signal.SIGCHLD)
            terminated(adapter)
            signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_sigterm_during_the_saving_does_not_break_it_off_and_ends_the_script_after_it(monkeypatch, run_dir):
    save = pytorch.save_model

    def hit(*arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(pytorch, "save_model", hit)
    adapter = DpwaPyTorchAdapter(linear(1.0))
    adapter.step(1.0)
    with pytest.raises(SystemExit) as raised:
        adapter.close()
    assert raised.value.code == 143
    assert saved(run_dir, "alone")
    with pytest.raises(NodeClosed):
        adapter.step(1.0)


def test_a_node_in_another_thread_sets_no_handler_and_one_closed_there_leaves_the_default_action():
    def use() -> None:
        with DpwaPyTorchAdapter(linear(1.0)) as adapter:
            adapter.step(1.0)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

    child = os.fork()  # it may die of it
    if child == 0:
        adapter = DpwaPyTorchAdapter(linear(1.0))
        closer = threading.Thread(target=adapter.close)
        closer.start()
        closer.join()
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_forked_child_has_the_default_action_and_the_parent_keeps_its_handler():
    with DpwaPyTorchAdapter(linear(1.0)) as adapter:
        for _ in range(30):  # also if it comes in the first moments of the child
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                signal.pause()
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        terminated(adapter)


def test_the_model_saved_after_sigterm_is_the_trained_one(run_dir):
    model = linear(1.0)

    def train() -> None:
        with DpwaPyTorchAdapter(model) as adapter:
            adapter.step(1.0)
            torch.nn.init.constant_(model.bias, 7.0)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train()
    assert load_file(run_dir / "nodes" / "alone" / "model.safetensors")["bias"].tolist() == [7.0, 7.0]
