"""The pictures of a report that show single workers and single images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpwa.lab.report.class_samples import IMAGES_PER_CLASS, draw_class_samples
from dpwa.lab.report.pictures import draw
from dpwa.lab.report.summary import Summary, summarise
from dpwa.lab.report.worker_chart import MOST_CHARTS, MOST_WORKERS, ROWS_PER_CHART, worker_charts
from dpwa.lab.study.study import Study
from lab_report_support import parsed, result_of


def images_file(path: Path, *, channels: int = 1, classes: int = 3, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"train_images": images, "train_labels": labels, "held_out_images": images}, path)
    return path


def summary_of(rows: int, nodes: int = 3) -> Summary:
    names = [f"{{name: row {number}, strategy: pull}}" for number in range(rows)]
    study = Study.from_text(
        f"study: s\ndata: digits\nmodel: mlp\nnodes: {nodes}\nstrategies: [{', '.join(['single', *names])}]\n"
    )
    line = {"samples": [10.0, 20.0, 30.0], "loss": [2.0, None, 1.0], "accuracy": [0.2, 0.4, 0.6]}
    results = []
    for trial in study.trials():
        workers = {} if trial.row == "single" else dict.fromkeys(trial.process_names, line)
        results.append(parsed(result_of(trial, worker_batches=workers)))
    return summarise(study, results)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_row_of_images_for_each_class(tmp_path: Path, channels: int) -> None:
    figure = draw_class_samples(images_file(tmp_path / "x.safetensors", channels=channels))
    assert figure is not None
    assert len(figure.axes) == 3 * IMAGES_PER_CLASS
    assert all(axes.images for axes in figure.axes)


@pytest.mark.seconds
def test_a_class_with_few_images_leaves_places_empty(tmp_path: Path) -> None:
    figure = draw_class_samples(images_file(tmp_path / "x.safetensors", classes=10, count=15))
    assert figure is not None
    assert sum(len(axes.images) for axes in figure.axes) == 15


def test_what_holds_no_images_has_no_picture(tmp_path: Path) -> None:
    text = np.zeros((5, 4), np.int64)
    save_file({"train_images": text, "train_labels": text}, tmp_path / "text.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    assert draw_class_samples(tmp_path / "text.safetensors") is None
    assert draw_class_samples(tmp_path / "torn.safetensors") is None
    assert draw_class_samples(tmp_path / "missing.safetensors") is None


def test_every_worker_has_a_line_and_every_row_with_several_two_diagrams() -> None:
    (chart,) = worker_charts(summary_of(2))
    assert (chart.name, chart.title) == ("workers", "Training batches of every worker")
    assert len(chart.figure.axes) == 4
    assert [len(axes.lines) for axes in chart.figure.axes] == [3] * 4
    assert worker_charts(summary_of(0)) == []


def test_what_has_no_room_in_one_chart_stands_in_the_next() -> None:
    first, second = worker_charts(summary_of(ROWS_PER_CHART + 2))
    assert (first.name, second.name) == ("workers", "workers-2")
    assert second.title == "Training batches of every worker, 2 of 2"
    assert [len(chart.figure.axes) for chart in (first, second)] == [2 * ROWS_PER_CHART, 4]
    assert second.figure.axes[0].get_title(loc="left") == f"row {ROWS_PER_CHART}"


@pytest.mark.seconds
def test_many_rows_and_workers_are_not_left_out_in_silence() -> None:
    most = MOST_CHARTS * ROWS_PER_CHART
    found = worker_charts(summary_of(most + 2))
    assert len(found) == MOST_CHARTS
    assert f"The first {most} of {most + 2} rows" in found[-1].caption
    (chart,) = worker_charts(summary_of(1, nodes=MOST_WORKERS + 1))
    assert {len(axes.lines) for axes in chart.figure.axes} == {MOST_WORKERS}
    assert f"The first {MOST_WORKERS} workers" in chart.caption


@pytest.mark.seconds
def test_a_report_has_pictures_of_the_classes_of_its_data(tmp_path: Path) -> None:
    images_file(tmp_path / "trials" / ".data" / "digits.safetensors")
    drawn = draw(summary_of(1), tmp_path)
    assert ("Classes of digits", "classes-digits.png") in drawn.files
    assert all((tmp_path / name).is_file() for _, name in drawn.files)
