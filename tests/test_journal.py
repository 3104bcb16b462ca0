"""The journal: strict JSON whatever it is given, and training that goes on without it."""

from __future__ import annotations

import json

import numpy as np

from dpwa.observe.journal import Journal
from support import VectorModel, wait_until


def _strict(line: str) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_any_value_becomes_strict_json(tmp_path):
    values = {"nan": [float("nan")], "number": np.float32(0.5), "array": np.arange(2), "object": object, "none": None}
    journal = Journal(tmp_path / "w1", sample=lambda: values, metrics_interval_s=60)
    journal.start()
    journal.record("odd", nested={"a": (float("inf"), float("-inf"))}, loss=float("nan"))
    journal.close(5)
    event = _strict((tmp_path / "w1" / "events.jsonl").read_text())
    metrics = _strict((tmp_path / "w1" / "metrics.jsonl").read_text())
    assert event["nested"] == {"a": ["inf", "-inf"]}
    assert event["loss"] == "nan"
    assert (metrics["nan"], metrics["number"], metrics["array"], metrics["none"]) == (["nan"], 0.5, [0, 1], None)


def test_metrics_come_at_their_interval_and_once_more_at_the_end(tmp_path):
    journal = Journal(tmp_path / "w1", sample=lambda: {"step": 1}, metrics_interval_s=0.02)
    journal.start()
    file = tmp_path / "w1" / "metrics.jsonl"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) >= 3, "three lines")
    before = len(file.read_text().splitlines())
    journal.close(5)
    journal.close(5)
    assert len(file.read_text().splitlines()) > before


def test_a_second_life_adds_to_the_journal_of_the_first(tmp_path):
    for life in range(2):
        journal = Journal(tmp_path / "w1", sample=dict, metrics_interval_s=60)
        journal.start()
        journal.record("start", life=life)
        journal.close(5)
    lines = (tmp_path / "w1" / "events.jsonl").read_text().splitlines()
    assert [_strict(line)["life"] for line in lines] == [0, 1]


def test_a_journal_that_cannot_be_written_warns_and_lets_the_training_go_on(zeromq, tmp_path, caplog):
    (tmp_path / "run" / "nodes" / "w1" / "events.jsonl").mkdir(parents=True)  # a folder in the place of the file
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([1.0])], run_dir=tmp_path / "run")
    wait_until(lambda: "training goes on" in caplog.text, "the warning")
    zeromq.step_all(5)
    assert nodes[0].statistics().step == 5
    assert nodes[1].statistics().blended > 0
