"""The benchmarks run, write what the documents say, and compute what they claim. Their numbers are not judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.heavy

BENCHMARKS = ROOT / "benchmarks"

SPREAD = {"median", "p10", "p90", "repetitions"}


def _run(folder: Path, script: str, *arguments: str, timeout_s: float = 100) -> dict:
    """Run a benchmark in its quick mode; what it wrote."""
    written = folder / f"{script}.json"
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--quick", "--json", str(written), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Ratios within this run" in done.stdout
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["name"] == script
    assert {"processor", "cores", "memory_gb", "packages"} <= found["machine"].keys()
    assert isinstance(found["commit"], str)
    assert found["rows"]
    for cases in found["ratios"].values():
        for made in cases.values():
            assert made["value"] >= 0.0
            assert made["repetitions"] >= 1
            assert made["low"] <= made["high"]
            assert {"what", "unit", "median"} <= made["numerator"].keys() & made["denominator"].keys()
    return found


@pytest.fixture
def module(monkeypatch):
    """Import a module of the benchmarks as a script there would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.slow
def test_exchange_compares_every_transport_and_codec_with_the_limit_and_its_rivals(tmp_path):
    found = _run(tmp_path, "exchange", "--sizes", "0.2", "--repetitions", "2")
    rows = {row["by"]: row for row in found["rows"]}
    ours = {"shared_memory", "ipc", "tcp", "curve", "fp16", "bf16", "int8"}
    assert rows.keys() == ours | {"lerp", "raw_tcp", "gloo_send", "gloo_all_reduce"}
    assert all(row["blended_ms"].keys() == SPREAD and row["blended_ms"]["repetitions"] == 2 for row in rows.values())
    assert all(rows[name]["received_ms"]["median"] < rows[name]["blended_ms"]["median"] for name in ours)
    wanted = {"shared_memory_over_limit", "tcp_over_raw_tcp", "tcp_over_gloo", "shared_memory_over_gloo"}
    assert wanted <= found["ratios"].keys()
    assert all(cases.keys() == {"0.2 MB"} for cases in found["ratios"].values())


@pytest.mark.slow
def test_overhead_times_steps_with_and_without_dpwa_and_splits_the_trainers_time(tmp_path):
    found = _run(tmp_path, "overhead", "--cases", "digits", "--pairs", "2", "--steps", "20")
    without, with_dpwa = found["rows"]
    assert (without["dpwa"], with_dpwa["dpwa"]) == ("without", "with")
    assert with_dpwa["exchanges_per_step"]["median"] > 0
    parts = [with_dpwa[f"{part}_ms"]["median"] for part in ("publish", "apply", "bookkeeping")]
    assert 0 < sum(parts) < with_dpwa["step_ms"]["p90"]
    assert found["ratios"]["step_time"]["digits"]["at_most"] == 1.10


@pytest.mark.slow
def test_method_overhead_compares_each_method_with_pull(tmp_path):
    found = _run(tmp_path, "method_overhead", "--methods", "gosgd", "sgp")
    pull, gosgd, sgp = found["rows"]
    assert [row["method"] for row in (pull, gosgd, sgp)] == ["pull", "gosgd", "sgp"]
    assert all(0 < row["trainer_ms"]["median"] < row["step_ms"]["median"] for row in found["rows"])
    assert (
        found["ratios"]["step_time"]["gosgd"]["at_most"] == found["ratios"]["trainer_time"]["gosgd"]["at_most"] == 1.01
    )
    assert found["ratios"]["step_time"]["sgp"]["at_most"] is None
    more = found["ratios"]["trainer_time"]["sgp"]["numerator"]["median"] - pull["step_ms"]["median"]
    assert more == pytest.approx(sgp["trainer_ms"]["median"] - pull["trainer_ms"]["median"])


@pytest.mark.slow
def test_straggler_compares_dpwa_and_lock_step_with_free_running_nodes(tmp_path):
    found = _run(tmp_path, "straggler", "--seconds", "0.5")
    assert [row["training"] for row in found["rows"]] == ["free-running", "dpwa", "gloo DistributedDataParallel"]
    assert found["ratios"].keys() == {"dpwa_over_free", "ddp_over_free"}
    free, _, lock_step = found["rows"]
    # The slowed node pauses four times as long. Alone that holds nobody else up; in lock-step it holds up all.
    assert free["step_ms_of_w1"]["median"] < free["step_ms_of_slowed"]["median"]
    assert lock_step["step_ms_of_w1"]["median"] > 79


def test_many_nodes_are_counted_in_one_process(tmp_path):
    found = _run(tmp_path, "many_nodes")
    assert [row["nodes"] for row in found["rows"]] == [4, 8]
    assert all(row["start_ms"] > 0 and row["step_us"] > 0 and row["node_kb"] > 1 for row in found["rows"])
    assert found["rows"][1]["ring_rounds"] == 32  # a thousandth by 1/3 + 2/3 cos(2 pi / 8) a round
    assert found["ratios"]["growth"].keys() == found["rows"][0].keys() - {"nodes"}


def test_all_members_know_each_other_in_time_and_their_messages_stay_small(module):
    joining = module("many_nodes").joining
    few, many = joining(10), joining(40)
    assert 9 <= few["join_steps"] < 20
    assert 39 <= many["join_steps"] < 80
    assert few["told_bytes"] < many["told_bytes"] <= 4096


@pytest.mark.slow
def test_unequal_trains_a_users_script_and_keeps_each_run(tmp_path):
    folder = ("--folder", str(tmp_path / "runs"))
    found = _run(tmp_path, "unequal", *folder)
    assert [row["training"] for row in found["rows"]] == ["pull, equal", "pull, one slow"]
    assert found["ratios"].keys() == {"time_over_least", "time_over_equal_nodes"}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(kept) == 2
    assert _run(tmp_path, "unequal", *folder)["rows"] == found["rows"]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # nothing was trained again


def test_a_run_that_the_machine_has_held_up_is_made_again_and_the_most_punctual_is_taken(module):
    unequal = module("unequal")
    made = iter([[{"late_s": 2.0}], [{"late_s": 0.7}], [{"late_s": 0.9}], [{"late_s": 0.0}]])
    assert [unequal.late_s(nodes) for nodes in unequal.until_punctual(made)] == [2.0, 0.7, 0.9, 0.0]
    made = iter([[{"late_s": 2.0}, {"late_s": 0.0}], [{"late_s": 0.4}], [{"late_s": 0.0}]])
    assert [unequal.late_s(nodes) for nodes in unequal.until_punctual(made)] == [2.0, 0.4]


def test_the_study_of_unequal_machines_compares_with_what_speeds_allow_and_seed_by_seed(module):
    unequal, rows = module("unequal"), module("unequal").ROWS[:2]

    def run(seconds: float, accuracy: float) -> dict:
        nodes = [
            {"began_s": 1.0, "ended_s": 1.0 + seconds, "late_s": 0.0, "waited_s": 0.1, "steps": 9} for _ in range(4)
        ]
        nodes[0]["accuracy"] = accuracy
        return {"nodes": nodes}

    found = {rows[0].name: [run(10.0, 0.9), run(10.0, 0.8)], rows[1].name: [run(13.0, 0.91), run(13.0, 0.82)]}
    result = module("measure").Result("unequal")
    unequal.report(result, rows, found, least_s=39.0)
    assert result.ratios["time_over_least"]["pull, equal"].value == pytest.approx(10 / (39 / 4))
    assert result.ratios["time_over_least"]["pull, one slow"].value == pytest.approx(13 / (39 / 3.25))
    assert result.ratios["time_over_equal_nodes"]["pull, one slow"].value == pytest.approx(13 * 3.25 / 4 / 10)
    assert [row["minus_equal_nodes"] for row in result.rows] == ["", "+1.50"]


def test_scale_looks_at_real_node_processes(tmp_path):
    found = _run(tmp_path, "scale", "--counts", "2", "--looks", "1", "--settle", "0.5")
    (row,) = found["rows"]
    assert row["nodes"] == 2
    assert row["exchanges_per_node"]["median"] > 0
    assert row["uss_mb"]["median"] > 5
    assert row["threads"]["median"] >= 3  # trainer, Rx and Tx
    assert found["ratios"]["success"]["2 nodes"]["numerator"]["median"] > 0


def test_growth_is_the_slope_per_added_node_in_shares_of_the_smallest_cluster(module):
    scale = module("scale")
    result = module("measure").Result("scale")
    looks = {
        count: [scale.Look(uss_mb=50.0 + count / 2, pss_mb=60.0, descriptors=25.0, threads=6.0, cpu=0.01)] * 3
        for count in (8, 16, 32, 64)
    }
    scale.report_growth(result, looks)
    growth = result.ratios["growth"]
    assert growth["uss_mb"].value == pytest.approx(0.5 / 54.0)
    assert growth["descriptors"].value == 0.0
    assert growth["uss_mb"].repetitions == 3


def test_a_ratio_is_that_of_the_medians_with_the_spread_of_the_pairs(module):
    made = module("measure").ratio(("a", [1.0, 2.0, 9.0]), ("b", [1.0, 1.0, 3.0]), "ms", at_most=1.9)
    assert made.value == 2.0
    assert (made.low, made.high, made.repetitions) == (pytest.approx(1.2), pytest.approx(2.8), 3)
    assert made.reached is False


def test_a_trial_over_slow_links_is_told_up_to_the_round_that_reached_the_target(module):
    results = module("dpwa.lab.report.results")
    found = results.TrialResult.model_validate(
        {
            "trial": {"study": "poor-links", "row": "pull, raw", "seed": 0},
            "status": "done",
            "training_s": 30.0,
            "asked_per_step": 1.0,
            "exchanges_per_step": 0.25,
            "workers": [{"name": f"w{number}", "steps": 300} for number in range(1, 5)],
            "rounds": [
                {"round": number, "epoch": number, "time_s": 10.0 * number, "accuracy": accuracy}
                for number, accuracy in enumerate([0.1, 0.8, 0.9, 0.89])
            ],
        }
    )
    link = {"points": [[0.0, 0], [15.0, 30_000_000], [25.0, 70_000_000], [30.0, 96_000_000]], "lost": 7}
    told = {
        "to_target_s": 20.0,
        "best_percent": pytest.approx(90.0),
        "step_ms": pytest.approx(100.0),
        "mb_per_node": pytest.approx(12.5),
        "kb_per_step": pytest.approx(80.0),
        "asked": 1.0,
        "real": 0.25,
        "lost_packets": 7,
        "status": "done",
    }
    row_of = module("poor_links").row_of
    assert row_of(found, link, 0.88) == told
    assert row_of(found, link, 0.95) == {**told, "to_target_s": None, "mb_per_node": pytest.approx(24.0)}


def test_rows_over_slow_links_are_drawn_whether_they_reached_the_target_or_not(tmp_path, module):
    rows = [
        {"mbit": mbit, "row": row, "seed": 0, "to_target_s": reached_s, "best_percent": 87.0, "status": "done"}
        for mbit in (1000.0, 20.0)
        for row, reached_s in (("ddp", 40.0 if mbit > 20 else None), ("pull, raw", 30.0))
    ]
    rows.append({"mbit": 20.0, "row": "fedavg", "seed": 0, "status": "not done within 10 min"})
    picture = tmp_path / "poor_links.png"
    module("report").draw({"name": "poor_links", "rows": rows, "settings": {"target_percent": 88.0}}, picture)
    assert picture.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_poor_links_goes_on_where_it_was_stopped_and_has_its_links(tmp_path, module):
    if missing := module("poor_links_trial").needs():
        pytest.skip(missing)
    own = ["--run-dir", str(tmp_path / "runs"), "--only", "row=pull, int8"]
    first = _run(tmp_path, "poor_links", *own, timeout_s=280)
    again = _run(tmp_path, "poor_links", *own, timeout_s=280)
    assert first["rows"] == again["rows"]
    (row,) = first["rows"]
    assert (row["mbit"], row["row"], row["status"]) == (100.0, "pull, int8", "done")
    assert row["step_ms"] > 50.0
    assert 0.0 < row["real"] <= row["asked"] == 1.0
    links = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("runs/*/trials/*/link.json")]
    assert [link["queued"] > 0 for link in links] == [True]
    assert (tmp_path / "poor_links.png").stat().st_size > 1000


def test_a_worker_that_fails_ends_the_benchmark_with_its_own_words(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers('os:close', [()]) as workers:\n"
        "        workers.hear(30.0)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "TypeError" in done.stderr
    assert "worker 0 ended by itself (exit code 1)" in done.stderr


def test_the_report_renews_what_stands_between_the_markers_and_nothing_else(tmp_path, module):
    measure = module("measure")
    result = measure.Result("straggler")
    result.rows.append({"training": "dpwa", "samples_per_s": measure.Spread(3.0, 2.0, 4.0, 20)})
    result.add_ratio("dpwa_over_free", "4 nodes", measure.ratio(("dpwa", [3.0]), ("free", [4.0]), "samples/s"))
    result.finish(tmp_path / "straggler.json")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- straggler:begin -->\nold\n<!-- straggler:end -->\nafter\n", encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path / "straggler.json"), "--page", str(page)]
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    for _ in range(2):  # a second time changes nothing more
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=60)
        text = page.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- straggler:begin -->\n\nMeasured at commit")
        assert text.endswith("<!-- straggler:end -->\nafter\n")
        assert "old" not in text
        assert text.count("| dpwa_over_free | 4 nodes | **0.75** (0.75 to 0.75) | 1 |") == 1
    assert (tmp_path / "page-straggler.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_run_of_some_cases_does_not_replace_one_of_all_but_gets_a_page_of_its_own(tmp_path, module):
    measure = module("measure")
    page = tmp_path / "page.md"
    page.write_text("<!-- straggler:begin -->\n<!-- straggler:end -->\n", encoding="utf-8")

    def reported(cases: list[str], to: Path) -> subprocess.CompletedProcess[str]:
        result = measure.Result("straggler")
        result.rows.append({"training": "dpwa", "samples_per_s": measure.Spread(3.0, 2.0, 4.0, 20)})
        for case in cases:
            result.add_ratio("dpwa_over_free", case, measure.ratio(("dpwa", [3.0]), ("free", [4.0]), "samples/s"))
        result.finish(tmp_path / "straggler.json")
        command = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path / "straggler.json"), "--page", str(to)]
        environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)

    assert reported(["4 nodes", "8 nodes"], page).returncode == 0
    before = page.read_bytes()
    refused = reported(["4 nodes"], page)
    assert refused.returncode == 1
    assert "has results of straggler for 8 nodes, which this file would replace by nothing; measure" in refused.stderr
    assert page.read_bytes() == before
    own = tmp_path / "mine.md"
    assert reported(["4 nodes"], own).returncode == 0
    assert own.read_text(encoding="utf-8").count("| dpwa_over_free | 4 nodes |") == 1
    assert reported(["4 nodes", "8 nodes"], own).returncode == 0
    own.write_text(
        own.read_text(encoding="utf-8").replace("dpwa_over_free | 8", "dpwa_over_other | 8"), encoding="utf-8"
    )
    assert f"straggler: no longer on {own}: dpwa_over_other\n" in reported(["4 nodes", "8 nodes"], own).stdout


def test_a_table_marks_rows_that_exchange_less_than_they_ask_for(module):
    rows = [{"asked": 1.0, "real": 0.5}, {"asked": 1.0, "real": 0.95}, {"asked": None, "real": None}]
    machine = {"packages": {}, "cores": 2, "processor": "x", "memory_gb": 1, "system": "x", "python": "3"}
    block = module("report").block_of(
        {"name": "poor_links", "commit": "c", "machine": machine, "ratios": {}, "rows": rows}, "picture.png"
    )
    assert [line for line in block.splitlines() if line.startswith("| 1 ")] == ["| 1 | 0.5 ! |", "| 1 | 0.95 |"]


def test_the_page_has_a_place_for_every_benchmark(module):
    report = module("report")
    for name in report.PICTURES:
        page = report.page_of(name).read_text(encoding="utf-8")
        assert report.between_markers(page, name, "new").count("\n\nnew\n\n") == 1
        assert (BENCHMARKS / f"{name}.py").exists()
