"""The journal: strict JSON whatever it is given, bounded, and training that goes on without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dpwa.node.record import NodeStatistics, Record
from dpwa.observe import bounded_file, repeats, steady_file
from dpwa.observe.bounded_file import read_records
from dpwa.observe.journal import Journal
from dpwa.snapshot.model import Inventory
from dpwa.snapshot.state import State
from support import TESTS, VectorModel, wait_until


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
    wait_until(lambda: "training continues" in caplog.text, "the warning")
    zeromq.step_all(5)
    assert nodes[0].statistics().step == 5
    assert nodes[1].statistics().blended > 0


# --- Whatever a script or a method gives ------------------------------------------------------------------------------


class Journals:
    """Journals of one folder, and what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Journal] = []

    def start(self, sample: Callable[[], Mapping[str, object]] = dict, **settings: float) -> Journal:
        journal = Journal(self.folder, sample=sample, **{"metrics_interval_s": 60, **settings})  # type: ignore[arg-type]
        self.started.append(journal)
        journal.start()
        return journal

    def events(self) -> list[dict]:
        return list(read_records(self.folder / "events.jsonl"))

    def metrics(self) -> list[dict]:
        return list(read_records(self.folder / "metrics.jsonl"))


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[Journals]:
    journals = Journals(tmp_path / "w1")
    yield journals
    for journal in journals.started:
        journal.close(5)


class Unreadable:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_logged_value_is_written_as_it_was_when_it_was_given():
    record = Record(0.0)
    values, array = {"a": 1}, np.zeros(2)
    record.log({"values": values, "array": array})
    values["a"] = 2
    array += 1
    metrics = record.metrics(statistics_of(record), 1.0)
    assert (metrics["values"], metrics["array"]) == ({"a": 1}, [0.0, 0.0])


def test_logged_values_are_bounded_in_number_and_size(caplog):
    record = Record(0.0)
    for step in range(1000):
        record.log({f"loss_{step}": float(step)})
    record.log({"loss_0": list(range(10**6))})
    metrics = record.metrics(statistics_of(record), 1.0)
    assert sum(name.startswith("loss_") for name in metrics) == 256
    assert len(json.dumps(metrics)) < 30_000
    assert caplog.text.count("256") == 1


def test_a_logged_value_replaces_none_of_the_nodes_own(zeromq, tmp_path):
    (node,) = zeromq.start([VectorModel([0.0])], run_dir=tmp_path, metrics_interval_ms=10)
    node.log(t=-1.0, step=-1, steps_per_s=-1.0, accuracy=0.9)
    node.step(1.0)
    node.close()
    last = list(read_records(tmp_path / "nodes" / "w1" / "metrics.jsonl"))[-1]
    assert (last["step"], last["accuracy"]) == (1, 0.9)
    assert last["t"] > 0
    assert last["steps_per_s"] >= 0


def statistics_of(record: Record) -> NodeStatistics:
    return record.statistics(
        step=1,
        state=State(None, 0.0),
        published=0,
        served=0,
        bytes_out=0,
        protocol_errors=0,
        merged_models=0,
        members={},
        ignored_entries={},
        scores={},
        method={},
        faults={},
        inventory=Inventory(1, 8),
    )


def test_a_logged_value_without_a_text_is_told_once_and_ends_nothing(zeromq, tmp_path, caplog):
    (node,) = zeromq.start([VectorModel([0.0])], run_dir=tmp_path, metrics_interval_ms=10)
    node.log(best=Unreadable())
    node.log(best=Unreadable())
    folder = tmp_path / "nodes" / "w1"
    wait_until(lambda: [r for r in read_records(folder / "metrics.jsonl") if "best" in r], "a line that says so")
    node.close()
    assert list(read_records(folder / "metrics.jsonl"))[-1]["best"].startswith("<a value of type Unreadable")
    assert list(read_records(folder / "events.jsonl"))[-1]["event"] == "close"
    assert caplog.text.count("a value of type Unreadable cannot be read") == 1


def test_an_event_that_cannot_be_read_or_is_too_long_becomes_a_line_that_says_so(journals, caplog):
    journal = journals.start()
    journal.record("odd", value=Unreadable())
    journal.record("long", values=["\u00e9" * 1000] * 500)
    journal.record("fine")
    journal.close(5)
    odd, long, fine = journals.events()
    assert "cannot be read" in odd["value"]
    assert (long["event"], "too long" in long["problem"]) == ("long", True)
    assert fine["event"] == "fine"
    assert "cannot be read" in caplog.text


def test_metrics_that_raise_are_told_once_and_come_again(journals, caplog):
    answers = iter(range(1000))

    def sample() -> Mapping[str, object]:
        number = next(answers)
        if number in (1, 2):
            raise KeyError("no such number")
        return {"number": number}

    journals.start(sample, metrics_interval_s=0.01)
    wait_until(lambda: any(line.get("number") == 3 for line in journals.metrics()), "metrics again")
    first, *problems, _ = journals.metrics()[:4]
    assert first["number"] == 0
    assert ["KeyError" in line["problem"] for line in problems] == [True, True]
    assert caplog.text.count("the metrics cannot be read") == 1


# --- Repeats ----------------------------------------------------------------------------------------------------------


def test_a_lone_survivor_writes_a_few_lines_and_not_one_for_each_step(in_memory, tmp_path):
    survivor, other = in_memory.start([VectorModel([0.0]), VectorModel([1.0])], run_dir=tmp_path)
    in_memory.step_all(5)
    other.close()
    for _ in range(2000):
        survivor.step(1.0)
    survivor.close()
    exchanges = [e for e in read_records(tmp_path / "nodes" / "w1" / "events.jsonl") if e["event"] == "exchange"]
    counted: Counter[str] = Counter()
    for event in exchanges:
        counted[event["outcome"]] += event.get("repeats", 1)
    assert counted == survivor.statistics().exchanges, "none is forgotten"
    assert sum(counted.values()) - counted["blended"] > 1900, "it was alone"
    assert len(exchanges) - counted["blended"] < 50


def test_repeats_are_seen_while_they_go_on(journals, monkeypatch):
    monkeypatch.setattr(repeats, "INTERVAL_S", 0.05)
    journal = journals.start()
    journal.record("exchange", outcome="no_peer", step=1)
    wait_until(lambda: journals.events() != [], "the first one at once")
    assert "repeats" not in journals.events()[0]

    def told() -> bool:
        journal.record("exchange", outcome="no_peer", step=2)
        return any("repeats" in event for event in journals.events())

    wait_until(told, "a line with their number")


# --- Size -------------------------------------------------------------------------------------------------------------


def _bytes_in(folder: Path) -> int:
    """Of all files, while the journal may be renaming one."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def test_the_files_of_a_journal_stay_below_their_limit_and_tell_of_the_present_life(journals):
    journal = journals.start(lambda: {"text": "x" * 900}, metrics_interval_s=0.001, max_bytes=400_000)
    journal.record("start", run="r", incarnation="ab")

    def both_have_turned() -> bool:
        for number in range(100):
            journal.record("exchange", outcome="blended", number=number)
        assert _bytes_in(journals.folder) <= 400_000
        return (journals.folder / "events.1.jsonl").exists() and (journals.folder / "metrics.1.jsonl").exists()

    wait_until(both_have_turned, "further generations", 30)
    journal.close(5)
    assert _bytes_in(journals.folder) <= 400_000
    newest = [_strict(line) for line in (journals.folder / "events.jsonl").read_text().splitlines()]
    assert (newest[0]["event"], newest[0]["incarnation"], newest[0]["continued"]) == ("start", "ab", True)
    kept = [event["number"] for event in journals.events() if event["event"] == "exchange"]
    assert all((before + 1) % 100 == after for before, after in pairwise(kept))


# --- A disk that takes nothing ----------------------------------------------------------------------------------------


def test_a_life_after_a_torn_line_can_be_read(journals):
    journals.folder.mkdir()
    (journals.folder / "events.jsonl").write_text('{"t":1,"event":"exchange","outc')
    journal = journals.start()
    journal.record("start", life=2)
    journal.close(5)
    assert [event["life"] for event in journals.events()] == [2]


def test_a_disk_that_is_full_for_a_while_costs_lines_which_are_counted_and_no_memory(journals, monkeypatch, caplog):
    monkeypatch.setattr(steady_file, "_RETRY_S", 0.02)
    journals.folder.mkdir()
    files = [journals.folder / "events.jsonl", journals.folder / "metrics.jsonl"]
    for file in files:
        file.symlink_to("/dev/full")
    journal = journals.start(lambda: {"step": 1}, metrics_interval_s=0.01)
    journal.record("start", incarnation="ab")
    for number in range(20_000):
        journal.record("exchange", outcome="blended", number=number)
        if number % 1000 == 0:
            wait_until(lambda: len(journal._waiting) < 1000, "the thread goes on")
    assert "No space left on device" in caplog.text, "the fault happened"
    assert caplog.text.count("training continues") == 1
    for file in files:
        file.unlink()
    wait_until(lambda: "is written again" in caplog.text, "writing resumes")
    journal.record("exchange", outcome="blended", number=20_000)
    journal.close(5)
    events = journals.events()
    assert next(event["incarnation"] for event in events if event["event"] == "start") == "ab"
    lost = {event["file"]: event for event in events if event["event"] == "journal_lost"}
    written = [event for event in events if event["event"] == "exchange"]
    assert lost["events.jsonl"]["count"] + len(written) == 1 + 20_001
    assert lost["events.jsonl"]["from"] <= lost["events.jsonl"]["to"] <= written[-1]["t"]
    assert lost["metrics.jsonl"]["count"] > 0
    assert journals.metrics() != []
    assert caplog.text.count("is written again") == 1


def test_a_disk_that_hangs_costs_events_beyond_a_limit_and_no_memory(journals, monkeypatch, caplog):
    hangs, goes_on = threading.Event(), threading.Event()
    write = os.write

    def hanging(descriptor: int, data: bytes) -> int:
        hangs.set()
        goes_on.wait(30)
        return write(descriptor, data)

    monkeypatch.setattr(bounded_file.os, "write", hanging)
    journal = journals.start()
    journal.record("first")
    try:
        assert hangs.wait(5)
        for number in range(20_000):
            journal.record("exchange", outcome="blended", number=number)
    finally:
        goes_on.set()
    journal.close(10)
    events = journals.events()
    (lost,) = [event for event in events if event["event"] == "journal_lost"]
    written = sum(event["event"] == "exchange" for event in events)
    assert lost["count"] + written == 20_000
    assert 8000 < written < 10_000, "what had room to wait is not lost, and the rest takes no memory"
    assert "too slow" in caplog.text


@pytest.mark.seconds
def test_a_full_disk_during_the_training_costs_the_training_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], stdout=subprocess.PIPE, check=True, timeout=60, cwd=TESTS
    )
    said = json.loads(done.stdout)
    assert said["errors"] > 0, "the fault happened"
    assert said["step"] == 300
    assert said["waiting"] < 8193
    events = list(read_records(tmp_path / "nodes" / "w1" / "events.jsonl"))
    (lost,) = [event for event in events if event["event"] == "journal_lost"]
    assert events[-1]["event"] == "close"
    counted = sum(event.get("repeats", 1) for event in events if event["event"] == "exchange")
    assert counted + lost["count"] == said["exchanges"]


FULL_DISK = """
import json, logging, resource, sys
from pathlib import Path
from dpwa.observe import steady_file
from support import Cluster, VectorModel, wait_until

class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []
    def emit(self, record):
        self.lines.append(record.getMessage())

told = Lines()
logging.getLogger("dpwa").addHandler(told)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
cluster = Cluster("in_memory")
models = [VectorModel([0.0]), VectorModel([0.0])]  # other weights would be warned of: one event more
nodes = cluster.start(models, run_dir=Path(sys.argv[1]), metrics_interval_ms=3_600_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
cluster.step_all(100)
wait_until(lambda: sum("cannot be written" in line for line in told.lines) == 2, "both have met the limit")
cluster.step_all(100)
waiting = len(nodes[0]._journal._waiting)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
wait_until(lambda: sum("is written again" in line for line in told.lines) == 2, "writing resumes")
cluster.step_all(100)
cluster.close()
statistics = nodes[0].statistics()
print(json.dumps({"step": statistics.step, "waiting": waiting, "exchanges": sum(statistics.exchanges.values()),
    "errors": sum("cannot be written" in line for line in told.lines)}))
"""
