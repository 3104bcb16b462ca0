"""The mean of saved models, and `dpwa average`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from dpwa.adapters.averaging import average_models, load_model
from dpwa.adapters.saving import save_model
from dpwa.cli import main
from dpwa.errors import ConfigError


def _model(value: float, steps: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    model[1].num_batches_tracked.fill_(steps)
    return model


def _run(folder: Path, *nodes: tuple[float, float | None, float | None], losses: tuple[float | None, ...] = ()) -> Path:
    """A run with a node for each value, clock and mass; None: the node has left none."""
    for number, (value, clock, mass) in enumerate(nodes, start=1):
        node = folder / "nodes" / f"w{number}"
        save_model(_model(value, steps=number).state_dict(), node / "model.safetensors")
        if clock is not None:
            closing = {"event": "close", "clock": clock, **({} if mass is None else {"mass": mass})}
            closing |= {"loss": losses[number - 1]} if losses else {}
            lines = [{"event": "start"}, {"event": "exchange", "clock": 0.0}, closing]
            (node / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _average(*arguments: object) -> tuple[int, list[str]]:
    done = CliRunner().invoke(main, ["average", *map(str, arguments)])
    return done.exit_code, done.output.splitlines()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("equal", 2.0),
        ("clock", (1 * 100 + 3 * 300) / 400),
        ("mass", 1 * 0.75 + 3 * 0.25),
        ("loss", (1 * 4 + 3 * 1) / 5),  # a quarter of the loss counts four times
    ],
)
def test_models_count_by_what_was_asked_for(tmp_path, weighting, expected):
    run = _run(tmp_path, (1.0, 100.0, 0.75), (3.0, 300.0, 0.25), losses=(0.5, 2.0))
    code, lines = _average(run, "--weights", weighting)
    assert code == 0, lines
    mean = load_file(run / "average.safetensors")
    assert mean["0.weight"].tolist() == [[pytest.approx(expected)] * 2] * 2
    assert mean["1.num_batches_tracked"] == 1  # a counter has no mean: the first node's
    _model(0.0).load_state_dict(mean)
    assert "the average of 2 models" in lines


def test_what_a_function_says_is_shown_for_each_model_and_the_mean(tmp_path, monkeypatch):
    run = _run(tmp_path, (1.0, 5.0, None), (2.0, 7.0, None))
    (tmp_path / "judge_of_the_test.py").write_text(
        "def top(state):\n    return {'weight': float(state['0.weight'][0, 0]), 'tensors': len(state)}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, lines = _average(run, "-o", tmp_path / "new" / "mean.safetensors", "--evaluate", "judge_of_the_test:top")
    assert code == 0, lines
    assert lines == [
        "w1  clock 5  weight  50.0%  weight 1, tensors 7",
        "w2  clock 7  weight  50.0%  weight 2, tensors 7",
        "the average of 2 models: weight 1.5, tensors 7",
        f"wrote {tmp_path / 'new' / 'mean.safetensors'}",
    ]


def test_a_node_without_a_model_is_named(tmp_path):
    run = _run(tmp_path, (1.0, 5.0, None))
    (run / "nodes" / "w2").mkdir()
    code, lines = _average(run)
    assert code == 0
    assert "w2 has saved no model and is not in the average" in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "mass"), "node w1: expected a mass above 0 in its journal, found None"),
        (("--weights", "loss"), "node w1: expected a loss above 0 in its journal, found None"),
        (("--evaluate", "no_colon"), '--evaluate "no_colon": expected "module:function"'),
        (("--evaluate", "no_such_module_here:f"), "the module no_such_module_here cannot be imported"),
        (("--evaluate", "json:no_such_function"), "the module json has no function no_such_function"),
        (("-o", "/proc/none/x.safetensors"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, arguments, words):
    code, lines = _average(_run(tmp_path, (1.0, 5.0, None)), *arguments)
    assert code == 2
    (line,) = lines
    assert words in line


def test_a_folder_that_is_no_run_and_a_run_without_models_are_said_in_one_line(tmp_path):
    for words in ("expected the folder of a run", "no node has saved a model yet"):
        code, lines = _average(tmp_path)
        assert code == 2
        assert words in lines[0]
        (tmp_path / "nodes" / "w1").mkdir(parents=True, exist_ok=True)


def test_models_that_differ_or_hold_nan_are_refused_by_name(tmp_path):
    _run(tmp_path, (1.0, None, None), (2.0, None, None))
    paths = sorted(tmp_path.glob("nodes/*/model.safetensors"))
    save_model(nn.Linear(3, 2).state_dict(), paths[1])
    with pytest.raises(ConfigError, match=r"0\.bias is of shape \[2\] in .*w1.* and missing in .*w2"):
        average_models(paths)
    save_model(_model(math.inf).state_dict(), paths[1])
    with pytest.raises(ConfigError, match="holds infinity"):
        average_models(paths)
    save_model(_model(float("nan")).state_dict(), paths[1])
    with pytest.raises(ConfigError, match=r"w2.*: 0\.bias holds NaN"):
        average_models(paths)
    with pytest.raises(ConfigError, match="expected at least one file"):
        average_models([])
    paths[1].write_bytes(b"no model")
    with pytest.raises(ConfigError, match="averaging models"):
        average_models(paths)
    with pytest.raises(ConfigError, match="cannot be read as a model"):
        load_model(paths[1])


def test_tied_tensors_come_back_under_all_of_their_names(tmp_path):
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
    model["decoder"].weight = model["encoder"].weight
    save_model(model.state_dict(), tmp_path / "model.safetensors")
    assert "decoder.weight" not in load_file(tmp_path / "model.safetensors")
    mean = average_models([tmp_path / "model.safetensors"] * 2)
    model.load_state_dict(mean)
    assert torch.equal(mean["decoder.weight"], model["encoder"].weight)


def test_the_mean_of_half_precision_is_rounded_once(tmp_path):
    paths = []
    for number, value in enumerate((1.0, 1.0078125, 1.015625)):
        model = nn.Linear(1, 1).bfloat16()
        nn.init.constant_(model.weight, value)
        paths.append(tmp_path / f"{number}.safetensors")
        save_model(model.state_dict(), paths[-1])
    mean = average_models(paths)
    assert mean["weight"].dtype == torch.bfloat16
    assert mean["weight"].item() == 1.0078125


def test_an_average_covers_statistics_of_batchnorm_and_takes_counters_from_the_first(tmp_path: Path) -> None:
    paths = []
    for index, value in enumerate((1.0, 2.0, 6.0)):
        norm = nn.BatchNorm1d(2)
        for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.fill_(value)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(index + 7)
        paths.append(tmp_path / f"{index}.safetensors")
        save_file(norm.state_dict(), paths[-1])
    average = average_models(paths)
    for name in ("weight", "running_mean", "running_var"):
        assert average[name].tolist() == [3.0, 3.0]
        assert average[name].dtype == torch.float32
    assert average["num_batches_tracked"].item() == 7


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one file"):
        average_models([])
