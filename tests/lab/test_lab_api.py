"""The lab in scripts and notebooks, and `dpwa lab try`: studies without a file, a user's own code, and the table."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dpwa.cli import main
from dpwa.errors import ConfigError
from dpwa.lab import StudyTable, api, run_study
from dpwa.lab.study.study import Study
from lab_report_support import RunFolder, failed, result_of
from support import ROOT


def small_model() -> None:
    """A function that no other process can see."""


def test_a_mapping_keywords_and_both_make_the_study_of_a_file_with_the_same_keys() -> None:
    given = {"study": "mine", "data": "digits", "strategies": ["single", ("pull",)[0]], "seeds": (1, 2)}
    for study in (api.study_of(given, {}), api.study_of({"study": "mine"}, given), api.study_of(None, given)):
        assert (study.name, study.seeds) == ("mine", (1, 2))
        assert [row.label for row in study.rows] == ["single", "pull"]
        assert yaml.safe_load(study.text)["data"] == "digits"
    assert api.study_of(None, {"strategies": ["single"]}).name == "try"


def test_what_a_process_cannot_see_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r'small_model: the lab.s processes cannot see .*name it "module:small_model"'
    ):
        run_study(strategies=["single"], model=small_model)
    with pytest.raises(ConfigError, match=r"expected plain values, as in a study file, got .* of type object"):
        run_study(strategies=["single"], cluster={"a": object()})
    with pytest.raises(ConfigError, match=r"study.yaml: expected no settings beside a study file, got nodes"):
        run_study("study.yaml", nodes=3)
    with pytest.raises(ConfigError, match=r'^strategies\[0\].strategy: .*did you mean "gosgd"'):
        run_study(study={"study": "x", "strategies": ["gosg"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gosgdd"], 'did you mean "gosgd"?'),
        (["gosgd", "--set", "n_epochs"], "--set n_epochs: expected KEY=VALUE, such as n_epochs=20"),
        (["gosgd", "--set", "n_epoch=3"], 'n_epoch: unknown key, did you mean "n_epochs"?'),
        (["gosgd", "--set", "cluster.pull_probability=2"], "cluster.pull_probability: expected a number from 0 to 1"),
    ],
)
def test_try_reports_what_is_wrong_before_anything_starts(arguments, message) -> None:
    done = CliRunner().invoke(main, ["lab", "try", *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert not Path("runs").exists()


def test_try_makes_the_study_that_its_words_and_settings_say(monkeypatch) -> None:
    made: list[Study] = []
    monkeypatch.setattr("dpwa.lab.commands._run", lambda study, *_: made.append(study) or 2)
    words = ["gosgd", "adpsgd", "--nodes", "8", "--seeds", "3", "--set", "cluster.pull_probability=0.1"]
    done = CliRunner().invoke(main, ["lab", "try", *words, "--set", "optimizer={adam: {lr: 1e-3}}"])
    assert done.exit_code == 2, done.output
    (study,) = made
    assert (study.name, study.seeds) == ("try-gosgd-adpsgd-digits", (0, 1, 2))
    assert [row.label for row in study.rows] == ["gosgd", "adpsgd"]
    for row in study.rows:
        assert row.settings.nodes == 8
        assert row.settings.cluster == {"pull_probability": 0.1}
        assert (row.settings.optimizer.kind, row.settings.learning_rate) == ("adam", 0.001)


BAD_NODES_PERCENT = 55.0  # the mean of those that are there at the end

STUDY = "study: try\nseeds: 2\ncompare_with: single\nstrategies: [single, pull, {strategy: pull, name: <bad>}]\n"


def table_of_results(path: Path) -> StudyTable:
    folder = RunFolder(path, STUDY)
    folder.write_all()
    bad = folder.trial("<bad>")
    folder.write(bad, failed(result_of(bad), 2, "exit code 9"))
    other = folder.trial("<bad>", 1)
    workers = [{"name": "w1", "accuracy": 0.4}, {"name": "w2", "accuracy": 0.7}, {"name": "w3", "accuracy": None}]
    folder.write(other, result_of(other, workers=workers))
    for seed in (0, 1):
        pull = folder.trial("pull", seed)
        folder.write(pull, result_of(pull, asked_per_step=1.0, exchanges_per_step=0.4 + 0.2 * seed))
    return api.table_of(folder.study, path)


def test_a_table_has_a_row_per_row_of_the_study_with_means_and_each_seed(tmp_path) -> None:
    table = table_of_results(tmp_path)
    single, pull, bad = table
    assert len(table) == 3
    assert (single["row"], single["strategy"], single["status"], single["seeds"]) == (
        "single",
        "single",
        "done",
        [0, 1],
    )
    assert single["accuracy"] == pytest.approx(sum(single["accuracies"].values()) / 2)
    assert single["accuracies"][1] - single["accuracies"][0] == pytest.approx(0.1)
    assert single["accuracy_half_width"] is None  # of two seeds
    assert single["exchanges_per_step"] is None
    assert (pull["asked_per_step"], pull["exchanges_per_step"]) == (1.0, pytest.approx(0.5))
    assert pull["bytes_sent"] > 0
    assert pull["samples"] == 300_000
    assert pull["updates"] > 0
    assert pull["difference"] == pytest.approx(pull["accuracy"] - single["accuracy"])
    assert (single["difference"], pull["difference_half_width"]) == (None, None)
    assert bad["merged_minus_mean"] == pytest.approx(bad["accuracy"] - BAD_NODES_PERCENT)
    assert (bad["status"], bad["seeds"]) == ("failed", [1])


def test_a_table_says_that_commits_are_mixed_and_rates_not_reached(tmp_path) -> None:
    notes = table_of_results(tmp_path).notes
    assert any("pull 0.5 of 1" in note for note in notes)
    assert not any("different commits" in note for note in notes)
    path = next(tmp_path.glob("**/trials/pull*/result.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "fedcba987654"}))
    notes = api.table_of(Study.load(path.parents[2] / "study.yaml"), path.parents[2]).notes
    assert any("Rows were made by different commits" in note for note in notes)


def test_a_table_shows_itself_as_text_and_as_html(tmp_path) -> None:
    table = table_of_results(tmp_path)
    assert "accuracy, %" in str(table)
    assert repr(table) == str(table)
    assert pickle.loads(pickle.dumps(table)) == table  # noqa: S301 - our own bytes
    shown = table._repr_html_()
    assert shown.startswith("<table><thead><tr><th>row</th><th>accuracy, %</th>")
    assert "<td>&lt;bad&gt;</td>" in shown
    assert shown.count("<tr>") == 4
    path = tmp_path / "trials" / "pull-s1" / "result.json"
    path.write_text("{")
    table = api.table_of(RunFolder(tmp_path, STUDY).study, tmp_path)
    assert "Not run yet: pull (seed 1)." in str(table).replace("\n", " ")
    assert "<p>Not run yet: pull (seed 1).</p>" in table._repr_html_()


def test_a_table_becomes_a_data_frame_where_pandas_is(tmp_path, monkeypatch) -> None:
    table = table_of_results(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="the package pandas is not installed"):
        table.to_pandas()
    (tmp_path / "pandas.py").write_text("def DataFrame(rows): return [sorted(row) for row in rows]\n")
    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(table.to_pandas()) == 3
    monkeypatch.delitem(sys.modules, "pandas")


OWN = """
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dpwa import GoSGD

def data(folder):
    draws = np.random.default_rng(0)
    x = draws.standard_normal((400, 6)).astype("f4")
    y = (x[:, 0] > 0).astype("i8")
    return x[:300], y[:300], x[300:], y[300:]

def model(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))

def optimizer(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr)

def schedule(progress):
    return 1 - progress / 2

class Mine(GoSGD):
    summary = "mine"

class Rule:
    def __init__(self, most):
        self.most = most

    def factor(self, own, peer):
        Path(__file__).with_name(f"asked {self.most}").touch()
        return self.most
"""


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(300)  # seven processes that import torch, perhaps on a machine that is busy with others
def test_everything_of_a_users_own_is_found_beside_the_study_from_wherever_it_is_run(tmp_path, capsys) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "everything_of_mine.py").write_text(OWN)
    own = "everything_of_mine"
    (folder / "study.yaml").write_text(
        f"study: mine\ndata: {own}:data\nmodel: {own}:model\noptimizer: {{'{own}:optimizer': {{lr: 0.05}}}}\n"
        f"schedule: {own}:schedule\nclip_norm: 1.0\nnodes: 2\nbatch_size: 10\nn_epochs: 4\n"
        f"strategies: [single, {{strategy: '{own}:Mine', name: mine}}, {{strategy: pull, name: ruled, "
        f"engine: in_memory, cluster: {{interpolation: '{own}:Rule', custom_rule: {{most: 0.25}}}}}}]\n"
    )

    async def in_a_notebook() -> StudyTable:
        return run_study(folder / "study.yaml")

    single, mine, ruled = asyncio.run(in_a_notebook())
    shown = capsys.readouterr().out
    assert (single["status"], mine["status"], ruled["status"]) == ("done", "done", "done"), shown
    assert single["accuracy"] > 80
    assert mine["accuracy"] > 80
    assert mine["exchanges_per_step"] > 0
    assert (folder / "asked 0.25").exists()
    assert "[2/3] mine (seed 0): done" in shown
    results = sorted(Path("runs/mine/trials").glob("*/result.json"))
    assert len({json.loads(path.read_text())["initial_weights"] for path in results}) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen processes that import torch
def test_the_notebook_of_the_examples_runs_from_its_first_cell_to_its_last() -> None:
    notebook = json.loads((ROOT / "examples" / "lab_notebook" / "lab.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    Path("cells.py").write_text("\n\n".join(cells))
    done = subprocess.run(
        [sys.executable, "cells.py"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2] gosgd (seed 0): done" in done.stdout
