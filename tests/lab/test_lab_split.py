"""Studies with many rows and no grid: a few rows in each diagram, in styles that tell them apart."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from dpwa.lab.report.axes import accuracy_axis
from dpwa.lab.report.charts import charts
from dpwa.lab.report.lines import Line, style_of
from dpwa.lab.report.split import places_of_styles, split
from dpwa.lab.report.summary import Band, Summary, summarise
from dpwa.lab.study.study import Study
from lab_report_support import parsed, result_of


def summary_of(rows: int, *, measured: int | None = None) -> Summary:
    """A study of rows "row 0", "row 1" …, of which the first ones have been measured."""
    names = [f"{{name: row {number}, strategy: pull}}" for number in range(rows)]
    study = Study.from_text(f"study: s\ndata: digits\nmodel: mlp\nnodes: 2\nstrategies: [{', '.join(names)}]\n")
    trials = [trial for trial in study.trials() if trial.seed == 0][:measured]
    return summarise(study, [parsed(result_of(trial)) for trial in trials])


@pytest.mark.parametrize(("rows", "sizes"), [(12, []), (13, [4, 4, 5]), (36, [6] * 6), (23, [5, 6, 6, 6])])
def test_many_rows_are_dealt_out_evenly_in_the_order_of_the_study(rows, sizes):
    summary = summary_of(rows)
    parts = split(summary)
    assert [len(part) for part in parts] == sizes
    assert [row.name for part in parts for row in part] == [f"row {number}" for number in range(rows if parts else 0)]


def test_rows_of_one_diagram_look_different():
    summary = summary_of(13)
    styles = places_of_styles(summary)
    assert [styles[row.index] for row in summary.rows] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert list(places_of_styles(summary_of(12)).values()) == list(range(12))


@pytest.mark.seconds
def test_each_diagram_has_its_rows_in_colour_their_names_below_and_all_others_in_grey():
    summary = summary_of(13)
    by_round = next(chart for chart in charts(summary) if chart.name == "accuracy-by-round")
    accuracy, loss = by_round.figure.axes[:3], by_round.figure.axes[3:]
    assert len(loss) == 3
    for axes, part in zip(accuracy, split(summary), strict=True):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [row.name for row in part]
        coloured = {style_of(place).colour for place in range(len(part))}
        assert sum(line.get_color() in coloured for line in axes.lines) == len(part)
        assert len(axes.lines) == len(summary.rows)
    assert len({axes.get_ylim() for axes in accuracy}) == 1, "their heights can be compared"
    assert "grey" in by_round.caption


@pytest.mark.seconds
def test_a_diagram_whose_rows_have_not_been_run_says_so():
    by_round = next(chart for chart in charts(summary_of(13, measured=4)) if chart.name == "accuracy-by-round")
    texts = [[text.get_text() for text in axes.texts] for axes in by_round.figure.axes[:3]]
    assert texts == [[], ["nothing measured"], ["nothing measured"]]


def test_lines_that_have_all_reached_a_hundred_per_cent_can_be_seen():
    axes = Figure().add_subplot()
    values = np.full(3, 100.0)
    accuracy_axis(axes, [Line("x", style_of(0), np.arange(3.0), Band(values, values, values))], None)
    bottom, top = axes.get_ylim()
    assert bottom < 99.5
    assert bottom < top


def test_a_line_has_settled_after_its_first_quarter():
    values = np.array([10.0, 60.0, 80.0, 90.0, 91.0])
    line = Line("x", style_of(0), np.array([0.0, 1.0, 2.0, 3.0, 4.0]), Band(values, values - 1, values + 1))
    assert line.settled.x.tolist() == [1, 2, 3, 4]
    assert line.settled.values.low.tolist() == [59, 79, 89, 90]
    assert line.x.tolist() == [0, 1, 2, 3, 4]
