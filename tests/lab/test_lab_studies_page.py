"""docs/results.md is made from small files with the results of every trial; the aim of the methods' benchmark."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dpwa.lab.report.content import content_of
from dpwa.lab.report.lines import COLOURS
from dpwa.lab.report.markdown import markdown
from dpwa.lab.report.results import read_results
from dpwa.lab.report.summary import summarise
from lab_report_support import RunFolder, failed, result_of
from support import ROOT

STUDY = """
study: small
data: digits
model: mlp
nodes: 3
n_epochs: 2
rounds_per_epoch: 5
seeds: 3
eval_train: true
compare_with: pull
same_updates: [[pull, twin]]
literature_recipe: other
strategies:
  - {strategy: pull, literature: 91}
  - {name: twin, strategy: pull, data_order: 1}
  - {name: apart, strategy: gosgd, partition: {kind: classes, classes_per_node: 2, equal: true}}
  - single
"""
PAGE = "# Results\n\nBefore.\n\n<!-- study small:begin -->\n\nNot measured yet.\n\n<!-- study small:end -->\n\nAfter.\n"


@pytest.fixture(name="module")
def module_of_benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a module of the benchmarks as a script there would."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("studies", "study_files", "measure", "report"):
        sys.modules.pop(name, None)


@pytest.fixture(name="run")
def finished_run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "small", STUDY)
    for trial in run.study.trials():
        result = result_of(trial, asked_per_step=0.5, exchanges_per_step=0.4375)
        for one in result["rounds"]:
            one |= {"train_accuracy": one["accuracy"] / 2, "train_loss": one["loss"] / 3}
        line = {key: values[:60] for key, values in result["batches"].items()}
        result["worker_batches"] = dict.fromkeys(trial.process_names, line)
        if trial.row == "apart" and trial.seed == 2:
            result = failed(result, 3, "a node was lost")
        run.write(trial, result)
    return run


def reported(run: RunFolder, results: list) -> str:
    return markdown(content_of(summarise(run.study, results), "dpwa lab run x"), ())


def test_the_file_of_a_study_is_small_and_holds_what_the_whole_report_says(run: RunFolder, module, tmp_path) -> None:
    files: ModuleType = module("study_files")
    found = files.collect(run.path)
    files.write(tmp_path / "small.json", found)
    again = files.results_of(files.read(tmp_path / "small.json"))
    assert reported(run, again) == reported(run, read_results(run.path)[0])
    assert (tmp_path / "small.json").stat().st_size < 12 * 8000
    assert {(trial["row"], trial["seed"]) for trial in found["trials"]} == {
        (trial.row, trial.seed) for trial in run.study.trials()
    }
    workers = {result.seed for result in again if result.worker_batches}
    assert workers == {0}


def test_thinned_batches_keep_their_means(module) -> None:
    files: ModuleType = module("study_files")
    samples = [float(10 * (at + 1)) for at in range(400)]
    loss = [1 / (at + 1) for at in range(400)]
    thin = files._thinned({"samples": samples, "loss": loss, "accuracy": loss}, 25)
    assert len(thin["samples"]) == 25
    assert thin["samples"][-1] == 4000
    assert sum(thin["loss"]) / 25 == pytest.approx(sum(loss) / 400)


def test_results_of_two_commits_are_not_taken(run: RunFolder, module) -> None:
    trial = run.trial("single")
    run.write(trial, result_of(trial, commit="fedcba987654"))
    with pytest.raises(SystemExit, match="results of 2 commits"):
        module("study_files").collect(run.path)


def test_rows_and_seeds_of_several_runs_come_together_to_what_one_run_would_say(run: RunFolder, module) -> None:
    files: ModuleType = module("study_files")
    whole = files.collect(run.path)
    elsewhere = {"processor": "another", "cores": 8}
    for path in run.path.glob("trials/*/result.json"):
        result = json.loads(path.read_text())
        if result["trial"]["seed"] == 2:
            path.write_text(json.dumps({**result, "machine": elsewhere}))
    second = files.collect(run.path)
    parts = [{**second, "trials": [t for t in second["trials"] if (t["seed"] == 2) is late]} for late in (False, True)]
    kept = files.added(parts[0], parts[1])
    assert files.added(kept, parts[1]) == kept
    key = ("row", "seed")
    assert sorted(tuple(trial[at] for at in key) for trial in kept["trials"]) == sorted(
        tuple(trial[at] for at in key) for trial in whole["trials"]
    )
    found = files.results_of(kept)
    assert {result.seed for result in found if result.machine == elsewhere} == {2}
    accuracies = [{(r.row, r.seed): r.rounds for r in results} for results in (found, files.results_of(whole))]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("change", ["commit", "study", "settings"])
def test_results_of_something_else_are_not_added(run: RunFolder, module, change) -> None:
    files: ModuleType = module("study_files")
    found = files.collect(run.path)
    other = {**found, change: "other"}
    if change == "settings":
        other = {**found, "settings": {**found["settings"], "pull": {"nodes": 4}}}
    with pytest.raises(SystemExit, match=f"the results that there are have (other settings in pull|the {change} )"):
        files.added(found, other)


def test_a_run_without_results_is_not_taken(tmp_path: Path, module) -> None:
    with pytest.raises(SystemExit, match="nothing has been measured yet"):
        module("study_files").collect(RunFolder(tmp_path / "small", STUDY).path)


@pytest.mark.seconds
def test_the_page_gets_table_and_curves_from_the_file_alone(run: RunFolder, module, tmp_path, monkeypatch) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text(PAGE, encoding="utf-8")
    studies, files = module("studies"), module("study_files")
    files.write(docs / "results" / "small.json", files.collect(run.path))
    for path in run.path.glob("trials/*/result.json"):
        path.unlink()
    monkeypatch.setattr(studies, "_STUDIES", run.path.parent)
    run.path.joinpath("study.yaml").rename(run.path.parent / "small.yaml")
    monkeypatch.setattr(sys, "argv", ["studies.py", "--docs", str(docs)])
    studies.main()
    page = (docs / "results.md").read_text(encoding="utf-8")
    assert page.startswith("# Results\n\nBefore.\n")
    assert page.endswith("\n\nAfter.\n")
    assert "Not measured yet." not in page
    assert "| pull | 91 (another recipe) |" in page
    assert "The noise floor is " in page
    assert "a node was lost" in page
    named = {line.split(")")[0] for line in page.split("](")[1:]}
    assert {"results-small.png", "results/small.json", "results/small-accuracy-by-round.png"} <= named
    assert {f"results/small-{chart}.png" for chart in ("loss", "training-by-round", "workers", "partition")} <= named
    assert all((docs / name).is_file() for name in named)
    assert sum(path.stat().st_size for path in docs.rglob("*.png")) < 600_000


def test_a_picture_on_the_page_keeps_the_colours_of_its_lines(module, tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    for number, colour in enumerate(COLOURS):
        axes.plot([0, 1], [number, number], color=colour, linewidth=1.6)
    for number in range(200):
        axes.text(number % 10 / 10, number // 10 / 3, "letters", fontsize=7)  # shades of grey, more than of any line
    figure.savefig(tmp_path / "whole.png", dpi=160)
    module("studies").shrink(tmp_path / "whole.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as small:
        found = np.array([colour for _, colour in small.convert("RGB").getcolors(1 << 24)])
    for colour in COLOURS:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(found - wanted).sum(axis=1).min() < 30, colour


def test_the_page_has_a_place_for_each_bundled_study_but_the_one_to_try() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "samples" / "studies").glob("*.yaml")} - {"digits"}
    assert {name for name in names if f"<!-- study {name}:begin -->" in page} == names
