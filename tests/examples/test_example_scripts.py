"""The example scripts: that they can be read, run alone and in a cluster, and say how good their averages are."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from dpwa.cli import main as command_line
from dpwa.config.cluster import ClusterConfig
from dpwa.examples.cifar10.model import build_network
from dpwa.examples.digits.model import digits_network
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.launch.ports import free_ports
from support import ROOT

EXAMPLES = ROOT / "examples"
PROCESS_TIMEOUT_S = 100


# The training files

TRAINING_FILES = sorted(EXAMPLES.glob("*/train.py"))


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: path.parent.name)
def test_the_loop_stands_in_sight_in_the_training_file_of_an_example(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    loop = ["loss.backward()", "optimizer.step()", "node.step(loss)", "node.finish()"]
    places = [text.find(f" {line}") for line in loop]
    assert -1 not in places
    assert places == sorted(places)
    assert 40 <= len(text.splitlines()) <= 80


def test_a_training_file_is_there_for_each_data_set_and_for_a_custom_rule() -> None:
    assert [path.parent.name for path in TRAINING_FILES] == [
        "cifar10",
        "custom_rule",
        "digits",
        "fashion_mnist",
        "resume",
    ]


# Whole scripts


def _run_script(path: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(str(EXAMPLES / path), run_name="__main__")


def _last_metrics(run_dir: Path, name: str) -> dict[str, object]:
    lines = (run_dir / "nodes" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[-1])
    assert isinstance(record, dict)
    return record


@pytest.mark.heavy
def test_the_digits_script_runs_alone_and_learns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_script("digits/train.py", "--epochs", "3", monkeypatch=monkeypatch)
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("digits: test accuracy of alone: ")
    assert float(line.split()[-1].rstrip("%")) > 80


@pytest.mark.heavy
def test_the_fashion_mnist_script_runs_alone_and_logs_its_accuracy(
    fashion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    _run_script("fashion_mnist/train.py", "--data-dir", str(fashion_folder), "--epochs", "1", monkeypatch=monkeypatch)
    assert "Fashion-MNIST: test accuracy of alone: " in capsys.readouterr().out
    record = _last_metrics(tmp_path / "run", "alone")
    assert (record["step"], record["epoch"], record["epochs"]) == (2, 1.0, 1)
    assert isinstance(record["test_accuracy"], float)


def test_the_data_folder_can_come_from_the_environment(
    cifar10_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPWA_DATA_DIR", str(cifar10_folder))
    _run_script("cifar10/train.py", "--epochs", "1", "--shard", "1/2", monkeypatch=monkeypatch)
    assert "CIFAR-10: test accuracy of alone: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--shard", "9/4"], ["--epochs", "0"], ["--epochs", "many"]])
def test_a_bad_argument_is_explained(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as end:
        _run_script("digits/train.py", *arguments, monkeypatch=monkeypatch)
    assert end.value.code == 2
    assert "expected" in capsys.readouterr().err


def _launch(tmp_path: Path, count: int, *command: str) -> tuple[str, Path]:
    cluster_file, run_dir = tmp_path / "cluster.yaml", tmp_path / "run"
    cluster_file.write_text(ClusterConfig.for_localhost(count, ports=free_ports(count)).to_yaml(), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", cluster_file, "--run-dir", run_dir, "--", sys.executable, *command],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONWARNINGS": "error::UserWarning"},
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, run_dir


@pytest.mark.slow
@pytest.mark.heavy
def test_two_digits_nodes_learn_together(tmp_path: Path) -> None:
    output, run_dir = _launch(tmp_path, 2, "examples/digits/train.py", "--epochs", "4")
    assert "w1 | digits: test accuracy of w1: " in output
    assert "w2 | digits: test accuracy of w2: " in output
    for name in ("w1", "w2"):
        exchanges = _last_metrics(run_dir, name)["exchanges"]
        assert isinstance(exchanges, int)
        assert exchanges > 0


@pytest.mark.heavy
@pytest.mark.slow
def test_the_existing_script_runs_in_a_cluster_once_dpwa_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run_dir = _launch(tmp_path, 2, "examples/existing_script/after.py", "--epochs", "1")
    assert output.count("test accuracy: ") == 2
    _be_in_the_checkout(monkeypatch)
    *nodes, of_mean, _ = _averaged(run_dir, "examples.existing_script.after:accuracy")
    assert [line.split()[0] for line in nodes] == ["w1", "w2"]
    assert _last_number(of_mean) > 0.5


@pytest.mark.heavy
def test_the_existing_script_runs_before_dpwa_is_added(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_script("existing_script/before.py", "--epochs", "1", monkeypatch=monkeypatch)
    assert "test accuracy: " in capsys.readouterr().out


def _be_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the examples' own command lines are typed; `dpwa average` imports from there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # before tests/, which has a folder examples, too


def _averaged(run_dir: Path, evaluate: str) -> list[str]:
    """What `dpwa average` prints."""
    result = CliRunner().invoke(command_line, ["average", str(run_dir), "--evaluate", evaluate])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def _last_number(line: str) -> float:
    return float(line.rsplit(maxsplit=1)[-1])


@pytest.mark.parametrize(
    ("evaluate", "network"),
    [
        ("dpwa.examples.digits.train:evaluate", digits_network),
        ("dpwa.examples.fashion_mnist.train:evaluate", fashion_network),
        ("dpwa.examples.cifar10.train:evaluate", partial(build_network, "small")),
        pytest.param(  # torchvision takes a second to import
            "dpwa.examples.cifar10.train:evaluate", partial(build_network, "resnet18"), marks=pytest.mark.seconds
        ),
        ("examples.custom_rule.train:evaluate", lambda: _of_custom_rule().network()),
        ("examples.existing_script.after:accuracy", lambda: _existing_script().network()),
    ],
)
def test_every_example_says_how_good_its_averaged_model_is(
    evaluate: str,
    network: Callable[[], nn.Module],
    fashion_folder: Path,
    cifar10_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del fashion_folder  # it and CIFAR-10's lie in the same folder
    monkeypatch.setenv("DPWA_DATA_DIR", str(cifar10_folder))
    _be_in_the_checkout(monkeypatch)
    for name in ("w1", "w2"):
        folder = tmp_path / "run" / "nodes" / name
        folder.mkdir(parents=True)
        save_file(network().state_dict(), folder / "model.safetensors")
    *nodes, of_mean, _ = _averaged(tmp_path / "run", evaluate)
    assert of_mean.startswith("the average of 2 models: ")
    assert all(math.isfinite(_last_number(line)) for line in (*nodes, of_mean))


def _of_custom_rule() -> ModuleType:
    return importlib.import_module("examples.custom_rule.train")


def _existing_script() -> ModuleType:
    return importlib.import_module("examples.existing_script.after")


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: path.parent.name)
def test_an_example_names_the_function_that_judges_its_average(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    module = f"examples.{path.parent.name}.train"
    assert re.search(rf"dpwa average runs/RUN --evaluate (dpwa\.)?{module}:evaluate\n", text)


def test_dpwa_adds_four_lines_to_an_existing_script() -> None:
    before, after = (
        (EXAMPLES / "existing_script" / name).read_text(encoding="utf-8").splitlines()
        for name in ("before.py", "after.py")
    )
    changes = [line for line in difflib.ndiff(before, after) if line.startswith(("+", "-"))]
    assert [line[0] for line in changes] == ["+"] * 4
