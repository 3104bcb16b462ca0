"""The numbers of a study's report: means, intervals, curves, what failed, what is missing, what is not equal."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from dpwa.errors import ConfigError
from dpwa.lab.report.content import content_of
from dpwa.lab.report.fairness import findings
from dpwa.lab.report.final_chart import final_chart
from dpwa.lab.report.make import make_report
from dpwa.lab.report.results import Round, TrialResult, read_results
from dpwa.lab.report.statistics import estimate
from dpwa.lab.report.summary import MOST_BATCH_POINTS, MOST_POINTS, Summary, TimeToTarget, summarise, time_to
from dpwa.lab.report.text import (
    Heading,
    bytes_text,
    caption,
    columns,
    seconds_text,
    status_text,
    terminal_table,
    to_target_text,
)
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial
from lab_report_support import RunFolder, failed, parsed, result_of

STUDY = """\
study: small
title: A small study
question: What is best?
data: digits
model: mlp
nodes: 2
n_epochs: 4
seeds: 3
target_accuracy: 90
literature: {pull: 87.14, ddp: 90}
strategies: [single, pull, ddp]
"""


def summary_of(text: str = STUDY, change=lambda _, result: result) -> Summary:
    """The summary of a study all of whose trials have a result; None in its place leaves a trial out."""
    study = Study.from_text(text)
    results = [change(trial, result_of(trial)) for trial in study.trials()]
    return summarise(study, [parsed(result) for result in results if result is not None])


def cells_of(summary: Summary, row: str) -> dict[str, str]:
    """The table's cells of a row, by the columns' titles."""
    (found,) = (each for each in summary.rows if each.name == row)
    return {column.title: column.text(found) for column in columns(summary)}


def test_the_interval_of_three_numbers_is_the_closed_form():
    found = estimate([1.0, 2.0, 3.0])
    # With two degrees of freedom the quantile is (2 p - 1) / sqrt(2 p (1 - p)), and s is 1.
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(quantile / math.sqrt(3), rel=1e-12)


def test_fewer_than_three_numbers_have_no_interval_and_none_has_no_mean():
    assert estimate([4.0]).half_width is None
    assert estimate([4.0, 6.0]).half_width is None
    assert estimate([4.0, 6.0]).mean == 5.0
    assert estimate([]) is None


def test_a_row_shows_mean_interval_literature_worst_worker_and_costs():
    def change(trial, result):
        accuracy = {0: 0.90, 1: 0.91, 2: 0.92}[trial.seed]
        workers = [{"name": "w1", "accuracy": accuracy - 0.02}, {"name": "w2", "accuracy": accuracy - 0.01}]
        return {**result, "final_accuracy": accuracy, "workers": workers, "bytes_sent": 1_234_000, "training_s": 12.0}

    cells = cells_of(summary_of(change=change), "pull")
    assert cells["accuracy, %"] == "91.00 ± 2.48"
    assert cells["literature"] == "87.14 (ours +3.86)"
    assert cells["worst worker, %"] == "89.00"
    assert (cells["training"], cells["sent"], cells["samples seen"]) == ("12.0 s", "1.23 MB", "240,000")
    assert (cells["processes x threads"], cells["status"]) == ("2 x 1", "done")
    assert cells_of(summary_of(change=change), "single")["literature"] == "-"


def test_one_seed_has_no_interval_but_says_so():
    summary = summary_of(STUDY.replace("seeds: 3", "seeds: 1"))
    assert cells_of(summary, "pull")["accuracy, %"].endswith("(1 seed)")
    assert ": one number per seed (seed 0); fewer than 3 give no interval." in content_of(summary, "").caption


def test_two_seeds_are_shown_as_they_are_without_an_interval_in_table_and_picture():
    def change(trial, result):
        return {**result, "final_accuracy": {0: 0.751, 1: 0.76}[trial.seed]}

    summary = summary_of(STUDY.replace("seeds: 3", "seeds: 2"), change)
    assert cells_of(summary, "pull")["accuracy, %"] == "75.10, 76.00"
    assert "±" not in content_of(summary, "").caption
    chart = final_chart(summary)
    assert chart is not None
    assert chart.caption.startswith("Of the aggregated model. Small dots are single seeds. Fewer than 3 seeds give no")
    assert not chart.figure.axes[0].containers, "no bar of an interval"
    whole = final_chart(summary_of(change=lambda _, result: result))
    assert whole is not None
    assert len(whole.figure.axes[0].containers) == len(summary.rows)
    assert "95 % confidence intervals" in whole.caption
    left, right = whole.figure.axes[0].get_xlim()
    for row in summary_of(change=lambda _, result: result).rows:
        assert row.accuracy is not None
        assert row.accuracy.half_width is not None
        assert left < row.accuracy.mean - row.accuracy.half_width, "an interval that is cut off looks like a line"
        assert row.accuracy.mean + row.accuracy.half_width < right
    mixed = summary_of(change=lambda trial, result: result if (trial.row, trial.seed) != ("ddp", 2) else None)
    assert "of rows with fewer than 3 seeds one number per seed, without an interval" in content_of(mixed, "").caption


def test_what_was_trained_stands_in_one_line_with_all_values_where_rows_differ():
    text = (
        "study: s\ndata: digits\nn_epochs: 2\nseeds: [0, 4]\n"
        "strategies: [single, {strategy: pull, partition: {kind: dirichlet, alpha: 0.3}}, "
        "{strategy: gosgd, nodes: 2}]\n"
    )
    assert content_of(summary_of(text), "").trained == (
        "Data digits; network light_cnn; nodes 4 or 2; partition dirichlet (alpha 0.3) or iid; epochs 2; "
        "batch size 128; seeds 0, 4."
    )


def test_a_number_of_another_recipe_is_shown_and_not_compared():
    other = "literature: {pull: 87.14, ddp: 90}\nliterature_recipe: other"
    summary = summary_of(STUDY.replace("literature: {pull: 87.14, ddp: 90}", other))
    assert cells_of(summary, "pull")["literature"] == "87.14 (another recipe)"
    assert "the two numbers cannot be compared" in caption(summary)
    times = summary_of(STUDY.replace("literature: {pull: 87.14, ddp: 90}", f"{other}\nliterature_unit: s"))
    assert cells_of(times, "pull")["literature"] == "87.14 s (another recipe)"


def test_times_of_a_row_in_memory_say_that_they_are_virtual():
    summary = summary_of(
        STUDY.replace("strategies: [", "strategies: [{name: mem, strategy: pull, engine: in_memory}, ")
    )
    assert cells_of(summary, "mem")["training"].endswith(" s virtual")
    assert not cells_of(summary, "pull")["training"].endswith("virtual")
    (row,) = [row for row in summary.rows if row.name == "mem"]
    some = replace(row, to_target=TimeToTarget(estimate([12.0, 13.0]), seeds=3))
    assert to_target_text(some) == "12.5 s virtual (2 of 3 seeds)"


def test_the_best_round_is_named_with_its_epoch():
    def change(_, result):
        rounds = [{**found, "accuracy": 0.97 if found["round"] == 1 else 0.5} for found in result["rounds"]]
        return {**result, "rounds": rounds}

    assert cells_of(summary_of(change=change), "pull")["best round, %"] == "97.00 (1)"


def test_a_literature_of_times_stands_beside_the_time_of_an_epoch():
    text = STUDY.replace("literature: {pull: 87.14, ddp: 90}", "literature: {pull: 46.18}\nliterature_unit: s")
    summary = summary_of(text, lambda _, result: {**result, "training_s": 20.0})
    cells = cells_of(summary, "pull")
    assert (cells["literature"], cells["one epoch"], cells["training"]) == ("46.18 s", "5.00 s", "20.0 s")


def test_the_target_is_reached_at_the_end_of_the_first_round_at_or_above_it_without_interpolation():
    accuracies = [(0.0, 0.1), (1.5, 0.89), (3.0, None), (4.5, 0.90), (6.0, 0.95)]
    rounds = [
        Round(round=at, epoch=at, time_s=time_s, accuracy=accuracy) for at, (time_s, accuracy) in enumerate(accuracies)
    ]
    assert time_to(rounds, 0.9) == 4.5
    assert time_to(rounds, 0.96) is None
    assert time_to(rounds, 0.1) == 0.0


def test_a_target_that_only_some_seeds_reach_says_how_many():
    def change(trial, result):
        reaches = trial.row == "pull" and trial.seed < 2
        rounds = [{**each, "accuracy": 0.95 if reaches and each["round"] > 1 else 0.5} for each in result["rounds"]]
        return {**result, "rounds": rounds}

    summary = summary_of(change=change)
    assert cells_of(summary, "pull")["to 90 %"].endswith("(2 of 3 seeds)")
    assert cells_of(summary, "single")["to 90 %"] == "not reached"


def test_a_failed_row_says_when_and_why_and_keeps_its_curve():
    change = lambda trial, result: failed(result, 2, "exit code 9") if trial.row == "ddp" else result  # noqa: E731
    summary = summary_of(change=change)
    row = summary.rows[2]
    assert status_text(row).startswith("seeds 0, 1, 2 failed, the first after round 2 of 4 (")
    assert status_text(row).endswith("exit code 9")
    assert cells_of(summary, "ddp")["accuracy, %"] == "-"
    assert row.curves.epoch.tolist() == [0, 1, 2]
    assert not row.curves.is_whole
    assert any(warning.startswith("ddp: ") for warning in content_of(summary, "").warnings)


def test_a_row_of_which_one_seed_failed_is_the_mean_of_the_others():
    def change(trial, result):
        if (trial.row, trial.seed) == ("pull", 1):
            return failed(result, 0, "out of memory")
        return {**result, "final_accuracy": 0.9}

    summary = summary_of(change=change)
    assert summary.rows[1].accuracy.values == (90.0, 90.0)
    assert status_text(summary.rows[1]) == "2 of 3 seeds done; seed 1 failed in its first round: out of memory"
    assert summary.rows[1].curves.seeds == 2


def test_a_trial_of_which_nothing_but_its_failure_is_known_changes_no_finding():
    def change(trial, result):
        nothing = {"trial": trial.to_json(), "status": "failed", "reason": "no memory"}
        return nothing if trial.row == "ddp" else result

    found = findings(summary_of(change=change))
    assert all(finding.is_equal for finding in found if "commit" in finding.text or "weights" in finding.text)
    assert any("commit" in finding.text for finding in found)


def test_a_skipped_row_says_what_to_install():
    def change(trial, result):
        skipped = {"trial": trial.to_json(), "status": "skipped", "reason": "install dpwa[mpi]"}
        return skipped if trial.row == "ddp" else result

    summary = summary_of(change=change)
    assert status_text(summary.rows[2]) == "skipped: install dpwa[mpi]"
    assert summary.rows[2].curves is None


def test_a_row_that_is_done_keeps_its_remark():
    summary = summary_of(change=lambda _, result: {**result, "reason": "w2 was killed; the others went on"})
    assert status_text(summary.rows[1]) == "done; w2 was killed; the others went on"


def test_trials_that_were_not_run_and_rows_that_are_not_asked_for_are_reported():
    study = Study.from_text(STUDY)
    trials = study.trials()
    stranger = result_of(trials[0])
    stranger["trial"] = {**stranger["trial"], "row": "old name"}
    summary = summarise(
        study, [parsed(result_of(trials[0])), parsed(stranger)], ["trials/x/result.json cannot be read"]
    )
    assert summary.notes == (
        "trials/x/result.json cannot be read",
        'Results of "old name" are left out: the study has no such row.',
        "Not run yet: single (seeds 1, 2); pull, ddp (seeds 0, 1, 2).",
    )
    assert status_text(summary.rows[0]) == "1 of 3 seeds done; not run yet (seeds 1, 2)"
    assert status_text(summary.rows[1]) == "not run yet"


def test_results_of_other_settings_than_the_study_file_has_now_are_left_out_and_reported():
    study = Study.from_text(STUDY)
    old = [parsed(result_of(trial)) for trial in Study.from_text(STUDY.replace("n_epochs: 4", "n_epochs: 2")).trials()]
    new = [parsed(result_of(trial)) for trial in study.trials() if trial.seed == 0]
    summary = summarise(study, [*new, *(result for result in old if result.seed != 0)])
    assert any("made before settings changed (n_epochs)" in note for note in summary.notes)
    assert {result.seed for result in summary.results} == {0}
    assert all(row.missing == tuple(seed for seed in study.seeds if seed != 0) for row in summary.rows)


def test_seeds_that_only_some_rows_were_asked_for_are_missing_in_the_others():
    study = Study.from_text(STUDY)
    (first, *_) = study.rows
    results = [parsed(result_of(trial)) for trial in study.trials()]
    more = [parsed(result_of(Trial(study.name, first.label, 99, first.settings)))]
    summary = summarise(study, [*results, *more])
    assert summary.rows[0].missing == ()
    assert all(row.missing == (99,) for row in summary.rows[1:])


def test_a_file_that_cannot_be_used_is_one_line_and_the_others_are_read(tmp_path):
    run = RunFolder(tmp_path, STUDY)
    run.write_all()
    run.write(run.trial("pull", 1), '{"trial": ')
    run.write(run.trial("ddp", 2), {"trial": 3, "status": "done"})
    results, problems = read_results(tmp_path)
    assert len(results) == 7
    assert [problem.split(" cannot be read")[0] for problem in problems] == [
        "trials/ddp-s2/result.json",
        "trials/pull-s1/result.json",
    ]
    assert all("\n" not in problem for problem in problems)


def test_curves_are_means_over_seeds_between_the_lowest_and_the_highest():
    def change(trial, result):
        return {**result, "rounds": [{**each, "accuracy": 0.5 + 0.1 * trial.seed} for each in result["rounds"]]}

    curves = summary_of(change=change).rows[0].curves
    assert curves.accuracy.mean.tolist() == pytest.approx([60.0] * 5)
    assert curves.accuracy.low.tolist() == pytest.approx([50.0] * 5)
    assert curves.accuracy.high.tolist() == pytest.approx([70.0] * 5)


def test_lines_have_no_more_points_than_can_be_seen_and_thinning_keeps_the_mean():
    text = STUDY.replace("n_epochs: 4", "n_epochs: 500")
    curves = summary_of(text).rows[0].curves
    assert (len(curves.epoch), len(curves.batch_samples)) == (MOST_POINTS, MOST_BATCH_POINTS)
    assert (curves.epoch[0], curves.epoch[-1]) == (0, 500)
    losses = result_of(Study.from_text(text).trials()[0])["batches"]["loss"]
    assert curves.batch_loss.mean.mean() == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_rounds_without_an_evaluation_and_losses_that_are_no_numbers_leave_gaps():
    def change(_, result):
        rounds = [
            {**each, "accuracy": each["accuracy"] if each["round"] == 4 else None, "loss": math.inf}
            for each in result["rounds"]
        ]
        batches = {**result["batches"], "loss": [math.nan] * 400}
        return {**result, "rounds": rounds, "batches": batches, "final_loss": math.nan}

    summary = summary_of(change=change)
    curves = summary.rows[0].curves
    assert [math.isfinite(value) for value in curves.accuracy.mean] == [False] * 4 + [True]
    text = json.dumps(content_of(summary, "").to_json(), allow_nan=False)
    assert '"loss": {"mean": null' in text


def test_equal_rows_are_found_equal_in_everything_but_the_cores():
    found = findings(summary_of(STUDY.replace("[single, pull, ddp]", "[pull, ddp]")))
    assert all(finding.is_equal for finding in found)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"initial_weights": "f" * 64}, ("Initial weights differ", "seed 0: 00000000 in", "ffffffff in ddp")),
        ({"samples_seen": 200_000}, ("different numbers of training samples", "200,000 (-16.7%) in ddp")),
        ({"final_loss": math.nan}, ("Models became NaN or infinite", "says nothing: ddp")),
        ({"commit": "fedcba"}, ("by different commits", "fedcba in ddp")),
        ({"machine": {"processor": "Other", "cores": 2}}, ("different machines", "Other, 2 cores in ddp")),
        ({"threads_per_process": 1, "processes": 1}, ("different numbers of cores", "1 core in single, ddp")),
    ],
)
def test_a_row_that_differs_is_warned_of(changed, words):
    summary = summary_of(change=lambda trial, result: {**result, **changed} if trial.row == "ddp" else result)
    warnings = " ".join(content_of(summary, "").warnings)
    assert all(word in warnings for word in words), warnings


def test_of_many_rows_that_differ_in_the_same_way_some_are_named_and_the_others_counted():
    rows = ", ".join(f"{{name: row {number}, strategy: pull}}" for number in range(20))
    few = [f"row {number}" for number in range(9)]
    text = STUDY.replace("[single, pull, ddp]", f"[single, pull, ddp, {rows}]")

    def change(trial, result):
        return {**result, "samples_seen": 200_000} if trial.row in few else result

    warnings = " ".join(content_of(summary_of(text, change=change), "").warnings)
    assert "usually 240,000, but 200,000 (-16.7%) in row 0, row 1, row 2 and 6 more rows." in warnings


def test_threads_beyond_the_cores_do_not_make_a_row_unfair():
    text = STUDY.replace("[single, pull, ddp]", "[single, {strategy: pull, nodes: 6}]").replace(", ddp: 90", "")
    change = lambda trial, result: {**result, "threads_per_process": 2} if trial.row == "single" else result  # noqa: E731
    found = findings(summary_of(text, change))
    assert any(f.is_equal and f.text.startswith("All rows compute on 2 cores") for f in found)


def test_seeds_by_different_commits_are_reported_once_and_not_for_each_row():
    change = lambda _, result: {**result, "commit": "aaaa" if result["trial"]["seed"] == 0 else "bbbb"}  # noqa: E731
    warnings = content_of(summary_of(change=change), "").warnings
    assert "Rows were made by different commits: aaaa (seed 0); bbbb (seeds 1, 2) in all rows." in warnings


def test_seeds_of_different_machines_are_reported_with_the_seeds_of_each():
    def change(_, result):
        return {**result, "machine": {"processor": "Old" if result["trial"]["seed"] == 0 else "New", "cores": 2}}

    warnings = " ".join(content_of(summary_of(change=change), "").warnings)
    assert "with different versions: Old, 2 cores (seed 0); New, 2 cores (seeds 1, 2) in all rows." in warnings


def test_a_commit_with_changed_files_is_warned_of():
    summary = summary_of(change=lambda _, result: {**result, "commit": "0123-dirty"})
    assert any("not a clean commit" in warning for warning in content_of(summary, "").warnings)


def test_settings_that_differ_are_reported_apart_from_shared_ones_and_unused_ones_are_left_out():
    text = STUDY.replace("[single, pull, ddp]", "[single, {strategy: fedprox, mu: 0.5}, pull, ddp]")
    content = content_of(summary_of(text), "")
    assert set(content.different) >= {"strategy", "mu"}
    assert content.shared["data"] == "digits"
    assert "lambda" not in content.shared
    values = dict(zip(content.different, content.settings_of(content.summary.rows[0]), strict=True))
    assert (values["strategy"], values["mu"]) == ("single", "")


def test_a_terminal_shows_the_columns_for_which_it_has_room_and_the_most_telling_first():
    rows = [Heading("row", rank=0, is_number=False), Heading("best round, %"), Heading("sent by all", rank=1)]
    cells = [("gosgd", "91.70 (8)", "1.2 GB"), ("pull", "90.1 (7)", "90 MB")]

    def titles(width: int) -> list[str]:
        return [" ".join(str(column.header).split()) for column in terminal_table(rows, cells, width).columns]

    # Each column has a border on its left, spaces on both sides, and its longest cell or word of the title.
    assert titles(1) == titles(1 + 8 + 8) == ["row"]
    assert titles(1 + 8 + 9) == titles(1 + 8 + 9 + 11) == ["row", "sent by all"]
    assert titles(1 + 8 + 9 + 12) == ["row", "best round, %", "sent by all"]
    console = Console(width=1 + 8 + 9 + 12, file=StringIO())
    console.print(terminal_table(rows, cells, console.width))
    assert "91.70 (8)" in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) == 30


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (1.66e6, "1.66 MB"), (2.5e12, "2.5 TB")]
)
def test_bytes_have_three_digits(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.50 s"), (46.18, "46.2 s"), (1234.4, "1,234 s")])
def test_seconds_have_about_three_digits(seconds, text):
    assert seconds_text(seconds) == text


def test_a_result_with_more_keys_than_are_known_is_read():
    study = Study.from_text(STUDY)
    assert isinstance(parsed({**result_of(study.trials()[0]), "new": 1}), TrialResult)


def test_a_folder_without_a_study_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="dpwa lab run"):
        make_report(tmp_path)


def test_a_run_without_results_is_no_report_but_says_what_to_run(tmp_path, capsys):
    run = RunFolder(tmp_path / "run", STUDY)
    assert make_report(run.path) == 1
    printed = capsys.readouterr().out
    assert "dpwa lab run" in printed
    assert "not run yet" in printed
    assert not (run.path / "report.html").exists()
