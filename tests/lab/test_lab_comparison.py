"""What a report concludes: real rates beside the ones asked for, differences paired by seed, and the noise floor."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import mean, stdev

import pytest
from scipy.stats import t

from dpwa.errors import ConfigError
from dpwa.lab.report.comparison import difference, noise_floor
from dpwa.lab.report.content import content_of
from dpwa.lab.report.fairness import findings
from dpwa.lab.report.make import make_report
from dpwa.lab.report.summary import Summary, summarise
from dpwa.lab.report.text import caption, columns
from dpwa.lab.study.study import Study
from lab_report_support import RunFolder, parsed, result_of

STUDY = """
study: s
data: digits
model: mlp
nodes: 2
seeds: 3
compare_with: pull
same_updates: [[pull, twin]]
strategies: [pull, {name: twin, strategy: pull}, gosgd, single]
"""

ACCURACIES = {
    "pull": (0.90, 0.91, 0.92),
    "twin": (0.901, 0.909, 0.922),
    "gosgd": (0.95, 0.97, 0.96),
    "single": (0.90, 0.93, 0.90),
}


def changed(trial, result):
    return {
        **result,
        "final_accuracy": ACCURACIES[trial.row][trial.seed],
        "workers": [{"name": f"w{number}", "steps": 40 + number, "accuracy": 0.5 + number / 10} for number in (1, 2)],
        "asked_per_step": None if trial.row == "single" else 0.5,
        "exchanges_per_step": {"single": None, "gosgd": 0.44, "twin": 0.46}.get(trial.row, 0.5),
    }


def summary_of(text: str = STUDY, change=changed) -> Summary:
    study = Study.from_text(text)
    return summarise(study, [parsed(change(trial, result_of(trial))) for trial in study.trials()])


def cells_of(summary: Summary, row: str) -> dict[str, str]:
    (found,) = [one for one in summary.rows if one.name == row]
    return {column.title: column.text(found) for column in columns(summary)}


def half_width(values: list[float]) -> float:
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def test_differences_are_paired_by_seed_with_the_interval_of_the_differences():
    summary = summary_of()
    rows = {row.name: row for row in summary.rows}
    found = difference(rows["gosgd"], rows["pull"])
    expected = [5.0, 6.0, 4.0]
    assert found is not None
    assert found.values == pytest.approx(expected)
    assert (found.mean, found.half_width) == pytest.approx((mean(expected), half_width(expected)))
    assert cells_of(summary, "gosgd")["minus pull"] == f"+5.00 ± {half_width(expected):.2f}"


def test_the_noise_floor_is_how_far_rows_with_the_same_updates_may_be_apart():
    summary = summary_of()
    differences = [0.1, -0.1, 0.2]
    floor = abs(mean(differences)) + half_width(differences)
    assert noise_floor(summary) == pytest.approx(floor)
    assert f"The noise floor is {floor:.2f} points" in caption(summary)
    assert cells_of(summary, "twin")["minus pull"].endswith("(noise)")
    assert not cells_of(summary, "gosgd")["minus pull"].endswith("(noise)")


def test_a_difference_whose_interval_holds_zero_is_noise_whatever_the_floor():
    assert cells_of(summary_of(), "single")["minus pull"].endswith("(noise)")


def test_with_two_seeds_the_floor_is_the_largest_difference_of_one():
    summary = summary_of(STUDY.replace("seeds: 3", "seeds: 2"))
    assert noise_floor(summary) == pytest.approx(0.1)
    assert cells_of(summary, "gosgd")["minus pull"] == "+5.50"


def test_the_row_that_others_are_compared_with_has_no_difference():
    assert cells_of(summary_of(), "pull")["minus pull"] == "-"


def test_a_row_that_exchanges_less_than_nine_tenths_of_what_it_asks_for_is_marked_and_warned_of():
    summary = summary_of()
    assert cells_of(summary, "gosgd")["exchanges per step"] == "0.44 of 0.5 !"
    assert cells_of(summary, "twin")["exchanges per step"] == "0.46 of 0.5"
    assert cells_of(summary, "single")["exchanges per step"] == "-"
    (text,) = [found.text for found in findings(summary) if "less often" in found.text]
    assert "gosgd 0.44 of 0.5" in text
    assert "twin" not in text
    assert text in content_of(summary, "again").warnings


def test_what_merging_is_worth_and_how_many_updates_a_node_made_stand_in_the_table():
    cells = cells_of(summary_of(), "gosgd")
    assert cells["merged minus mean of nodes"] == "+31.00"  # 96 % merged, 65 % the mean of 60 and 70
    assert cells["updates per node"] == "42"


def test_what_merging_is_worth_is_told_of_nodes_that_merge_by_themselves():
    def merged(trial, result):
        made = changed(trial, result)
        final = made["final_accuracy"]
        own = [{**each, "accuracy": final, "accuracy_before_merge": final - 0.1} for each in made["workers"]]
        return {**made, "workers": own}

    cells = cells_of(summary_of(change=merged), "gosgd")
    assert (cells["merged minus mean of nodes"], cells["worst worker, %"]) == ("+10.00", "96.00")


def test_the_numbers_of_a_comparison_are_in_the_json():
    values = content_of(summary_of(), "again").to_json()
    assert values["compare_with"] == "pull"
    (row,) = [row for row in values["rows"] if row["row"] == "gosgd"]
    assert row["difference_points"]["values"] == pytest.approx([5.0, 6.0, 4.0])
    assert row["exchanges_per_step"]["mean"] == pytest.approx(0.44)
    assert json.dumps(values)


def test_rows_with_a_noise_of_their_own_are_held_against_that_alone():
    text = STUDY.replace("[[pull, twin]]", "[[pull, twin], [single, other]]").replace(
        "gosgd, single]",
        "{strategy: gosgd, compare_with: gosgd again}, {name: gosgd again, strategy: gosgd}, single, "
        "{name: other, strategy: single, data_order: 1}]",
    )
    accuracies = {**ACCURACIES, "gosgd again": (0.945, 0.96, 0.955), "other": (0.8, 0.83, 0.8)}

    def with_another(trial, result):
        known = trial.row if trial.row in ACCURACIES else "pull"
        shown = changed(replace(trial, row=known), result)
        return {**shown, "final_accuracy": accuracies[trial.row][trial.seed]}

    summary = summary_of(text, with_another)
    assert noise_floor(summary) == pytest.approx(10)
    assert noise_floor(summary, ("twin", "gosgd")) < 0.5
    assert cells_of(summary, "twin")["minus its base"].endswith("(noise)")
    assert cells_of(summary, "gosgd")["minus its base"].endswith("(noise)"), "neither has one: the largest counts"
    assert "10.00, each for its own rows; the largest for all others)" in caption(summary)


def test_times_of_processes_and_of_virtual_time_are_not_compared_in_silence():
    text = STUDY.replace("{name: twin, strategy: pull}", "{name: twin, strategy: pull, engine: in_memory}")
    assert any("virtual" in found.text for found in findings(summary_of(text)))


def test_a_row_may_be_compared_with_another_one_than_the_rest():
    text = STUDY.replace("gosgd, single]", "{strategy: gosgd, compare_with: single}, single]")
    summary = summary_of(text)
    cells = {row: cells_of(summary, row) for row in ("pull", "gosgd", "single")}
    assert [cells[row]["base"] for row in cells] == ["-", "single", "pull"]
    expected = [5.0, 4.0, 6.0]
    assert cells["gosgd"]["minus its base"] == f"+5.00 ± {half_width(expected):.2f}"
    assert cells["pull"]["minus its base"] == "-"
    assert "Minus its base is the difference" in caption(summary)
    with pytest.raises(
        ConfigError, match=r"strategies\[2\].compare_with.*there is no such row, did you mean \"single\""
    ):
        Study.from_text(text.replace("compare_with: single", "compare_with: singel"))


GRID = """
study: s
data: digits
model: mlp
grid: {nodes: [2, 3], cluster.pull_probability: [0.1, 1]}
compare_with: pull
same_updates: [[pull, twin]]
strategies:
  - pull
  - {name: twin, strategy: pull, data_order: 1}
  - {name: two, strategy: pull, nodes: 2}
  - {name: four, strategy: pull, nodes: 4}
  - {strategy: param_avg, compare_with: single}
  - single
"""


def test_the_name_of_an_entry_means_the_row_of_the_same_point_of_the_grid():
    study = Study.from_text(GRID)
    bases = {row.label: row.compare_with for row in study.rows}
    points = [f"nodes={nodes}, pull_probability={p}" for nodes in (2, 3) for p in ("0.1", "1")]
    assert [bases[f"twin, {point}"] for point in points] == [f"pull, {point}" for point in points]
    assert [bases[f"param_avg, nodes={nodes}"] for nodes in (2, 3)] == ["single", "single"]
    assert [bases[f"two, pull_probability={p}"] for p in ("0.1", "1")] == [f"pull, {point}" for point in points[:2]]
    assert bases["four, pull_probability=1"] == ""  # there is none with four nodes
    assert bases["single"] == ""  # it is of no point: four rows are meant, so none is
    assert study.same_updates == tuple((f"pull, {point}", f"twin, {point}") for point in points)


def test_a_label_in_a_group_keeps_it_to_the_points_of_the_grid_that_are_its_own():
    study = Study.from_text(
        GRID.replace("[[pull, twin]]", '[[param_avg, "twin, nodes=2, pull_probability=1", single]]')
    )
    assert study.same_updates == (("param_avg, nodes=2", "twin, nodes=2, pull_probability=1", "single"),)


@pytest.mark.parametrize(
    ("was", "line", "place"),
    [
        (
            "strategy: param_avg, compare_with: single",
            "strategy: param_avg, compare_with: twin",
            r"strategies\[4\].*twin",
        ),
        ("nodes: 4", "nodes: 4, compare_with: two", r"strategies\[3\].*two, pull_probability=1"),
        ("[[pull, twin]]", "[[param_avg, four]]", r"same_updates\[0\]\[1\].*four, pull_probability=1"),
        ("compare_with: pull", "compare_with: twim", "compare_with.*did you mean .*twin"),
    ],
)
def test_a_name_that_means_several_rows_or_none_is_told(was, line, place):
    with pytest.raises(ConfigError, match=rf"(?s){place}"):
        Study.from_text(GRID.replace(was, line))


@pytest.mark.parametrize("line", ["compare_with: pul", "same_updates: [[pull, twim]]"])
def test_a_row_that_there_is_not_cannot_be_compared(line):
    key = line.split(":")[0]
    text = "\n".join(line if one.startswith(key) else one for one in STUDY.splitlines())
    with pytest.raises(ConfigError, match=rf"{key}.*there is no such row, did you mean"):
        Study.from_text(text)


@pytest.mark.seconds
def test_results_of_several_commits_are_no_report_unless_that_is_wanted(tmp_path, capsys):
    run = RunFolder(tmp_path, STUDY)
    for trial in run.study.trials():
        run.write(trial, result_of(trial, commit=f"{trial.seed % 2}" * 12))
    with pytest.raises(ConfigError, match="2 commits"):
        make_report(tmp_path)
    assert make_report(tmp_path, mixed=True) == 0
    assert run.study.title in capsys.readouterr().out
