"""Studies with a grid and many rows: what their report folds, and that nothing is lost by it."""

from __future__ import annotations

import re

import pytest

from dpwa.lab.report.charts import charts
from dpwa.lab.report.content import content_of
from dpwa.lab.report.final_chart import final_chart
from dpwa.lab.report.grid import fold
from dpwa.lab.report.markdown import markdown
from dpwa.lab.report.summary import Summary, summarise
from dpwa.lab.study.study import Study
from lab_report_support import parsed, result_of

GRID = """
study: s
data: digits
model: mlp
n_epochs: 2
seeds: 1
grid:
  learning_rate: [0.1, 0.05, 0.01]
  nodes: [2, 4, 8]
strategies: [single, pull, gosgd, param_avg, {name: four, strategy: pull, nodes: 4}]
"""


def summary_of(text: str = GRID, seeds: int = 1) -> Summary:
    study = Study.from_text(text)
    trials = [trial for trial in study.trials() if trial.seed < seeds]
    return summarise(study, [parsed(result_of(trial)) for trial in trials])


def test_rows_that_differ_in_the_last_key_stand_beside_each_other_and_each_has_its_place():
    summary = summary_of()
    assert len(summary.rows) == 3 * (1 + 3 * 3 + 1)
    found = fold(summary)
    assert found.titles == ("nodes: -", "nodes=2", "nodes=4", "nodes=8")
    assert found.entries == ("single", "pull", "gosgd", "param_avg", "four")
    assert [row.name for row in found.rows[:6]] == [
        "single, learning_rate=0.1",
        "pull, learning_rate=0.1",
        "gosgd, learning_rate=0.1",
        "param_avg, learning_rate=0.1",
        "four, learning_rate=0.1",
        "single, learning_rate=0.05",
    ]
    names = [[cell and cell.name for cell in row.cells] for row in found.rows]
    assert names[0] == ["single, learning_rate=0.1", None, None, None]
    assert names[1] == [None, *(f"pull, learning_rate=0.1, nodes={nodes}" for nodes in (2, 4, 8))]
    assert names[4] == [None, None, "four, learning_rate=0.1", None]
    cells = [cell for row in found.rows for cell in row.cells if cell is not None]
    assert sorted(cell.index for cell in cells) == list(range(len(summary.rows)))


@pytest.mark.parametrize(
    "text",
    [
        GRID.replace("[0.1, 0.05, 0.01]", "[0.1]"),  # few rows
        re.sub(r"grid:\n.*\n.*\n", "", GRID).replace("[single, ", "[single, sgp, "),  # no grid
        GRID.replace("nodes: [2, 4, 8]", "nodes: [2]"),
    ],
)
def test_other_studies_are_left_as_they_are(text):
    summary = summary_of(text)
    assert fold(summary) is None
    assert "<details>" not in markdown(content_of(summary, "command"), ())


def test_the_short_table_has_the_values_of_the_whole_one_which_can_be_opened():
    summary = summary_of()
    text = markdown(content_of(summary, "command"), ())
    short, _, rest = text.partition("<details>")
    whole, _, after = rest.partition("</details>")
    assert "| row | accuracy, %; nodes: - | accuracy, %; nodes=2 |" in short
    assert "training; nodes=8 |" in short
    row = next(row for row in summary.rows if row.name == "gosgd, learning_rate=0.05, nodes=4")
    (line,) = [line for line in short.splitlines() if line.startswith(r"| gosgd, learning\_rate=0.05 |")]
    assert line.split(" | ")[1] == "-"
    assert line.split(" | ")[3] == f"{row.accuracy.mean:.2f} (1 seed)"
    assert whole.count("\n| ") == len(summary.rows) + 2
    assert r"gosgd, learning\_rate=0.05, nodes=4 |" in whole
    assert "How it was made" in after


def test_columns_without_any_value_are_left_out_of_the_short_table():
    text = GRID.replace("single, ", "").replace(", {name: four, strategy: pull, nodes: 4}", "")
    summary = summary_of(text.replace("n_epochs: 2", "n_epochs: 2\neval_acc: false"), seeds=0)
    assert len(summary.rows) == 27
    headings, cells = content_of(summary, "command").folded
    assert [heading.title for heading in headings] == ["row"]
    assert len(cells) == 9


def test_a_diagram_for_each_point_of_the_grid_with_one_key_for_all():
    summary = summary_of()
    by_round = next(chart for chart in charts(summary) if chart.name == "accuracy-by-round")
    found = fold(summary)
    axes = by_round.figure.axes
    assert len(axes) == 2 * len(found.places) * len(found.titles)
    assert axes[0].get_title(loc="left") == "learning_rate=0.1\nnodes: -"
    assert [text.get_text() for text in by_round.figure.legends[0].get_texts()] == list(found.entries)
    assert len(axes[1].lines) == 3  # pull, gosgd, param_avg with two nodes
    assert len(axes[2].lines) == 4  # and "four"
    colours = [[line.get_color() for line in axes[at].lines] for at in (1, 2)]
    assert colours[0] == colours[1][:3], "an entry looks alike at all points"


def test_the_final_accuracies_of_a_line_have_colours_and_a_key():
    summary = summary_of()
    chart = final_chart(summary)
    (axes,) = chart.figure.axes
    assert len(axes.get_yticks()) == len(fold(summary).rows)
    assert [text.get_text() for text in chart.figure.legends[0].get_texts()] == list(fold(summary).titles)
    assert len(axes.lines) == len(summary.rows), "a dot for each row"
    assert len({line.get_color() for line in axes.lines}) == 4


def test_what_all_rows_lack_is_said_once():
    summary = summary_of(GRID.replace("seeds: 1", "seeds: 3"))
    assert summary.notes == ("Not run yet: all rows (seeds 1, 2).",)


def test_the_noise_of_many_groups_is_a_range_and_some_of_their_names():
    text = GRID.replace("strategies:", "same_updates: [[pull, twin]]\nstrategies:").replace(
        "[single, pull,", "[single, pull, {name: twin, strategy: pull, data_order: 1},"
    )
    caption = content_of(summary_of(text), "command").caption
    assert re.search(r"The noise floor is \d\.\d\d points \(\d\.\d\d to \d\.\d\d, each for its own rows;", caption)
    assert '"pull, learning_rate=0.1, nodes=2", "twin, learning_rate=0.1, nodes=2"; ' in caption
    assert "; and 5 more such groups)." in caption
