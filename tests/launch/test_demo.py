"""The demo: what it shows while it runs, what it reports, and how it ends when something goes wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from dpwa.errors import ConfigError
from dpwa.launch import demo
from dpwa.launch.demo import DemoResult, NodeResult, run_demo
from dpwa.observe import live
from dpwa.observe.curves import draw_curves
from dpwa.observe.live import LiveView, MetricsTail, Record


def _records(count: int, *, start_s: float = 1000.0) -> list[Record]:
    return [
        {
            "t": start_s + index / 4,
            "step": index,
            "loss": 1.0 / (1 + index),
            "test_accuracy": index / count,
            "epoch": 40 + index / 10,
            "epochs": 44,
            "exchanges": 1500 + index,
            "failures": 1,
            "last_peer": "w2",
            "last_factor": 0.5,
            "bytes_in": 120_300_000,
            "bytes_out": 450_000,
            "steps_per_s": 80.4,
            "training_started_s": start_s + 0.1,
        }
        for index in range(count)
    ]


def _write(path: Path, records: Sequence[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# Reading metrics


def test_a_metrics_file_that_is_not_there_yet_has_no_records(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    tail.read_new()
    assert tail.records == []
    assert tail.last == {}


def test_a_half_written_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    path.write_bytes(b'{"step": 1}\n{"st')
    tail.read_new()
    assert tail.records == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    tail.read_new()
    tail.read_new()
    assert tail.records == [{"step": 1}, {"step": 2}]


def test_a_line_that_a_killed_node_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": {"step": 2}\n[3]\n\xff\n{"step": 4}\n')
    tail = MetricsTail(path)
    tail.read_new()
    assert tail.records == [{"step": 1}, {"step": 4}]


# Showing them


def _shown(tmp_path: Path, records: Sequence[Record], *, is_terminal: bool, width: int = 80) -> str:
    _write(tmp_path / "metrics.jsonl", records)
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=width, color_system=None, legacy_windows=False)
    with LiveView(console, "all together", {"w1": MetricsTail(tmp_path / "metrics.jsonl")}):
        pass
    return output.getvalue()


def test_without_a_terminal_a_plain_line_tells_the_state_of_each_node(tmp_path: Path) -> None:
    text = _shown(tmp_path, _records(9), is_terminal=False)
    assert text == "all together, 0 s: w1 step 8 loss 0.11 accuracy 89%\n"


def test_without_a_terminal_there_is_a_line_per_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LINE_INTERVAL_S", 0.0)
    output = io.StringIO()
    with LiveView(
        Console(file=output, width=200), "all together", {"w1": MetricsTail(tmp_path / "metrics.jsonl")}
    ) as view:
        for records in (1, 1, 1, 2, 2):
            _write(tmp_path / "metrics.jsonl", _records(records))
            view.update()
            view.update()
    states = [line.partition(": ")[2] for line in output.getvalue().splitlines()]
    assert [state.partition(" loss")[0] for state in states] == ["w1 is starting", "w1 step 0", "w1 step 1"]


def test_a_node_without_metrics_is_said_to_be_starting(tmp_path: Path) -> None:
    assert "w1 is starting" in _shown(tmp_path, [], is_terminal=False)


def test_the_table_shows_all_columns_in_80_characters(tmp_path: Path) -> None:
    text = _shown(tmp_path, _records(9), is_terminal=True)
    for word in ("node", "step", "epoch", "loss", "accuracy", "exchanges", "factor", "in/out"):
        assert word in text
    for value in ("w1", "40.8/44", "0.111", "88.9%", "1508/1", "w2 0.50", "120/0.5", "80"):
        assert value in text
    assert "…" not in text


def test_the_table_shows_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    assert "nan" in _shown(tmp_path, [{"t": 1.0, "loss": "nan"}], is_terminal=True)


# The picture


def test_the_curves_are_a_png_twice_as_wide_as_a_readme_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    alone = [*_records(20), {"t": 1005.0, "loss": "nan", "test_accuracy": None}]
    draw_curves(path, together={"w1": _records(20), "w2": _records(20)}, alone={"w1": alone}, averaged_accuracy=0.9)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1800, 860)


def test_the_curves_of_nodes_that_recorded_nothing_can_be_drawn(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", together={"w1": []}, alone={}, averaged_accuracy=0.1)
    assert (tmp_path / "curves.png").exists()


# The result


def _result() -> DemoResult:
    nodes = (NodeResult("w1", (0, 1), 0.9, 0.4), NodeResult("w2", (2, 3), 0.8, 0.5))
    return DemoResult(nodes=nodes, averaged_accuracy=0.95, training_s=12.5)


def test_the_gain_is_measured_from_the_mean_of_the_nodes_alone() -> None:
    assert _result().gain == pytest.approx(0.5)


def test_the_json_holds_the_documented_keys() -> None:
    assert json.loads(_result().to_json()) == {
        "nodes": [
            {"name": "w1", "accuracy": 0.9, "alone_accuracy": 0.4},
            {"name": "w2", "accuracy": 0.8, "alone_accuracy": 0.5},
        ],
        "averaged_accuracy": 0.95,
        "training_s": 12.5,
    }


# Ends


def _replace_training(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(demo, "TRAINING_COMMAND", (sys.executable, "-c", program))


def test_a_failed_node_ends_the_demo_and_the_end_of_its_output_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _replace_training(
        monkeypatch,
        "import os, sys, signal\n"
        "if os.environ['DPWA_NODE'] != 'w2': signal.pause()\n"
        "sys.exit('there is no such digit')",
    )
    assert run_demo(None, tmp_path / "run") == 1
    errors = capfd.readouterr().err
    assert "dpwa demo: node w2 failed: exit code 1" in errors
    assert "there is no such digit" in errors
    assert "node w1" not in errors


def test_ctrl_c_ends_all_nodes_and_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _replace_training(
        monkeypatch,
        "import os, pathlib, signal\n"
        "path = pathlib.Path(os.environ['DPWA_RUN_DIR'], 'pid')\n"
        "path.with_suffix('.new').write_text(str(os.getpid()))\n"
        "path.with_suffix('.new').rename(path)\n"
        "signal.pause()",
    )
    pid_paths = [tmp_path / "run" / "alone" / f"w{number}" / "pid" for number in range(1, 5)]
    pids: list[int] = []

    class InterruptingView(LiveView):
        def update(self) -> None:
            if not pids and all(path.exists() for path in pid_paths):
                pids.extend(int(path.read_text(encoding="utf-8")) for path in pid_paths)
                os.kill(os.getpid(), signal.SIGINT)
            super().update()

    monkeypatch.setattr(demo, "LiveView", InterruptingView)
    assert run_demo(None, tmp_path / "run") == 128 + signal.SIGINT
    assert "all nodes have been stopped" in capfd.readouterr().out
    assert len(pids) == 4
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_folder_for_the_numbers_that_is_missing_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="existing folder"):
        run_demo(tmp_path / "missing" / "demo.json", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_told_by_name_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name == "sklearn" else name)
    with pytest.raises(ModuleNotFoundError) as error:
        run_demo(None, tmp_path / "run")
    assert error.value.name == "sklearn"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_together_the_nodes_learn_what_none_of_them_could_learn_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(tmp_path / "demo.json", tmp_path / "run") == 0
    numbers = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    alone = [node["alone_accuracy"] for node in numbers["nodes"]]
    assert numbers["averaged_accuracy"] >= 0.93
    assert min(node["accuracy"] for node in numbers["nodes"]) >= 0.90
    assert numbers["averaged_accuracy"] - sum(alone) / len(alone) >= 0.35
    assert 0 < numbers["training_s"] < 60
    assert (tmp_path / "run" / "curves.png").exists()
    assert str(tmp_path / "run") in capfd.readouterr().out
