"""`dpwa verify` over run folders: whole ones, killed ones, and what is none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from dpwa.cli import main
from dpwa.observe.bounded_file import older_generation
from dpwa.observe.invariants import check_run
from dpwa.observe.run_folder import read_run
from dpwa.observe.verdict import verify
from support import Cluster, VectorModel


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of three nodes in memory, with checksums; big enough that a pull comes in several pieces."""
    cluster = Cluster("in_memory")
    models = [VectorModel([float(n)] * 100_000) for n in range(3)]
    cluster.start(models, run_dir=tmp_path / "run", journal_checksums=True, factor_max=0.5)
    cluster.step_all(20)
    cluster.close()
    return tmp_path / "run"


def _lines(run_dir: Path, node: str) -> list[str]:
    return (run_dir / "nodes" / node / "events.jsonl").read_text().splitlines(keepends=True)


def _write(run_dir: Path, node: str, lines: list[str]) -> None:
    (run_dir / "nodes" / node / "events.jsonl").write_text("".join(lines))


def _run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_whole_run_holds_and_says_over_how_much(run_dir):
    code, output = _run(run_dir)
    assert code == 0, output
    held = {line.split()[0]: line for line in output.splitlines() if " held " in line}
    assert {"I1", "I2", "I3", "I4", "I5"} <= set(held)
    assert int(held["I1"].split(": ")[1].split()[0]) >= 20
    assert "I9  not checkable" in output
    assert "no fault is on record" in output


def test_a_byte_that_changes_on_the_way_is_found(run_dir):
    """A checksum in one journal is not that of the peer's."""
    lines = _lines(run_dir, "w2")
    place = next(n for n, line in enumerate(lines) if '"checksum"' in line and '"blended"' in line)
    record = json.loads(lines[place])
    record["checksum"] ^= 1
    lines[place] = json.dumps(record) + "\n"
    _write(run_dir, "w2", lines)
    code, output = _run(run_dir)
    assert code == 1
    assert "I1  violated" in output
    assert f"I1: w2 and {record['peer']}, " in output
    assert f"version {record['version']} has checksum {record['checksum']}" in output


def test_what_a_kill_leaves_behind_is_no_violation(run_dir):
    """Half a last line, a node without a journal, one without metrics, and a byte that is no text."""
    lines = _lines(run_dir, "w2")
    _write(run_dir, "w2", [*lines[:-1], lines[-1][: len(lines[-1]) // 2]])
    with (run_dir / "nodes" / "w1" / "events.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"event":"exch')
    (run_dir / "nodes" / "w1" / "metrics.jsonl").unlink()
    (run_dir / "nodes" / "w3" / "events.jsonl").unlink()
    (run_dir / "nodes" / "w9").mkdir()
    (run_dir / "config.yaml").write_text("nodes: [")
    code, output = _run(run_dir)
    assert code == 0, output
    assert "I2  held" in output


def test_both_generations_of_a_journal_are_read(run_dir):
    lines = _lines(run_dir, "w1")
    path = run_dir / "nodes" / "w1" / "events.jsonl"
    half = len(lines) // 2
    older_generation(path).write_text("".join(lines[:half]))
    start = {**json.loads(lines[0]), "continued": True}
    path.write_text("".join([json.dumps(start) + "\n", *lines[half:]]))
    (life,) = read_run(run_dir).lives["w1"]
    assert len(life.blends) == sum('"blended"' in line and '"version"' in line for line in lines)
    assert _run(run_dir)[0] == 0


def test_a_run_that_wrote_no_checksums_says_how_to_get_them(tmp_path):
    cluster = Cluster("in_memory")
    cluster.start([VectorModel([0.0]), VectorModel([1.0])], run_dir=tmp_path / "run")
    cluster.step_all(5)
    cluster.close()
    code, output = _run(tmp_path / "run")
    assert code == 0
    assert "I1  not checkable" in output
    assert "`journal_checksums: true`" in output


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, Path.touch])
def test_what_is_no_run_folder_is_refused(tmp_path, make):
    make(tmp_path / "run")
    code, output = _run(tmp_path / "run")
    assert code == 2
    assert "expected the folder of a run" in output


def test_a_run_without_any_journal_has_nothing_to_check(tmp_path):
    (tmp_path / "nodes" / "w1").mkdir(parents=True)
    code, output = _run(tmp_path)
    assert code == 2
    assert "nothing to check" in output


def test_a_journal_that_cannot_be_read_is_named_in_one_line(run_dir):
    journal = run_dir / "nodes" / "w2" / "events.jsonl"
    journal.unlink()
    journal.mkdir()
    code, output = _run(run_dir)
    assert code == 2
    assert f"{journal}: cannot be read (Is a directory)" in " ".join(output.split())


def test_a_terminal_gets_a_table(run_dir):
    shown = io.StringIO()
    assert verify(run_dir, Console(file=shown, force_terminal=True, width=100)) == 0
    assert "what must hold" in shown.getvalue()
    assert "not checkable" in shown.getvalue()


@pytest.mark.parametrize("settings", [{"shared_memory": "off", "codec": "raw"}, {"shared_memory": "auto"}])
def test_checksums_agree_over_real_sockets_whichever_way_a_snapshot_takes(zeromq, tmp_path, settings):
    models = [VectorModel([float(n)] * 200_000) for n in range(2)]
    zeromq.start(models, run_dir=tmp_path / "run", journal_checksums=True, **settings)
    zeromq.step_all(10)
    zeromq.close()
    run = read_run(tmp_path / "run")
    ways = {blend["via"] for life in run.all_lives() for blend in life.blends}
    assert ways == ({"stream"} if settings["shared_memory"] == "off" else {"shared_memory"})
    first = check_run(run)[0]
    assert (first.verdict, first.findings) == ("held", ())
    assert first.observations >= 10


def test_a_snapshot_that_is_not_finite_is_marked_where_it_is_published(in_memory, tmp_path):
    nodes = in_memory.start(
        [VectorModel([0.0]), VectorModel([float("nan")])], run_dir=tmp_path / "run", journal_checksums=True
    )
    in_memory.step_all(3)
    in_memory.close()
    assert nodes[0].statistics().blended == 0
    (_, life) = read_run(tmp_path / "run").all_lives()
    assert {snapshot.get("not_finite") for snapshot in life.snapshots.values()} == {"vector"}
