"""The pictures of a report that show single workers and single images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpwa.lab.report.class_samples import IMAGES_PER_CLASS, draw_class_samples
from dpwa.lab.report.pictures import draw
from dpwa.lab.report.summary import Summary, summarise
from dpwa.lab.report.worker_chart import MOST_ROWS, worker_chart
from dpwa.lab.study.study import Study
from lab_report_support import parsed, result_of


def images_file(path: Path, *, channels: int = 1, classes: int = 3, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"train_images": images, "train_labels": labels, "held_out_images": images}, path)
    return path


def summary_of(rows: int) -> Summary:
    names = [f"{{name: row {number}, strategy: pull}}" for number in range(rows)]
    study = Study.from_text(
        f"study: s\ndata: digits\nmodel: mlp\nnodes: 3\nstrategies: [{', '.join(['single', *names])}]\n"
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
    chart = worker_chart(summary_of(2))
    assert chart is not None
    assert len(chart.figure.axes) == 4
    assert [len(axes.lines) for axes in chart.figure.axes] == [3] * 4
    assert worker_chart(summary_of(0)) is None


def test_many_rows_are_not_drawn_in_silence() -> None:
    chart = worker_chart(summary_of(MOST_ROWS + 2))
    assert chart is not None
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 2} rows" in chart.caption


@pytest.mark.seconds
def test_a_report_has_pictures_of_the_classes_of_its_data(tmp_path: Path) -> None:
    images_file(tmp_path / "trials" / ".data" / "digits.safetensors")
    drawn = draw(summary_of(1), tmp_path)
    assert ("Classes of digits", "classes-digits.png") in drawn.files
    assert all((tmp_path / name).is_file() for _, name in drawn.files)
