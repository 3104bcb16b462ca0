"""The files of a study's report: page, pictures, Markdown, JSON."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.lab.report.lines import GRID, INK, spread, style_of
from dpwa.lab.report.make import make_report
from lab_report_support import RunFolder, failed, result_of

pytestmark = pytest.mark.seconds

STRATEGIES = [
    "single",
    "pull",
    "gosgd",
    "sgp",
    "adpsgd",
    "dpsgd",
    "noloco",
    "elastic",
    "sparta",
    "ddp",
    "fedavg",
    "param_avg",
]
STUDY = f"""\
study: large
title: "<b>Which</b> & why? | `x`"
question: Is "a" < "b" & \\$c\\$?
data: fashion_mnist
model: mcmahan_cnn
nodes: 4
n_epochs: 25
seeds: 3
target_accuracy: 90
strategies:
  - {{strategy: single, name: "<script>alert(1)</script> | $x^2$ & `y`"}}
  - {{strategy: pull, partition: classes}}
  - {", ".join(STRATEGIES[2:]).replace(", ", chr(10) + "  - ")}
literature: {{pull: 87.14}}
"""
VOID = {"meta", "br", "link", "img", "input"}
CHARTS = ["accuracy", "accuracy-by-round", "accuracy-by-time", "accuracy-by-bytes", "loss", "consensus", "partition"]


class Checked(HTMLParser):
    """Takes a page apart, and finds tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report of 12 rows, 3 seeds and 25 rounds."""
    run = RunFolder(tmp_path_factory.mktemp("report") / "run", STUDY)
    run.write_all()
    run.write(run.trial("ddp"), failed(result_of(run.trial("ddp")), 7, "exit code <9>"))
    skipped = {"trial": run.trial("param_avg").to_json(), "status": "skipped", "reason": "install dpwa[mpi]"}
    run.write(run.trial("param_avg"), skipped)
    assert make_report(run.path) == 0
    return run.path


@pytest.fixture(scope="module")
def page(report) -> str:
    return (report / "report.html").read_text(encoding="utf-8")


def test_all_files_are_written_and_the_page_is_less_than_a_megabyte(report):
    assert {f"{name}.png" for name in CHARTS} <= {path.name for path in report.iterdir()}
    assert (report / "report.html").stat().st_size < 1_000_000


def test_the_page_is_well_formed_and_its_ids_are_unique(page):
    checked = Checked(page)
    assert (checked.wrong, checked.open) == ([], [])
    ids = [attributes["id"] for _, attributes in checked.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) > 0
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert used <= set(ids)


def test_the_page_needs_nothing_from_elsewhere_and_has_no_scripts(page):
    checked = Checked(page)
    tags = {tag for tag, _ in checked.tags}
    assert not tags & {"script", "link", "iframe", "object", "img"}
    links = [str(value) for _, attributes in checked.tags for key, value in attributes.items() if "href" in key]
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_words_of_the_study_are_escaped_everywhere(page):
    words = "".join(Checked(page).words)
    assert "<b>Which</b> & why?" in words
    assert "<script>alert(1)</script> | $x^2$ & `y`" in words
    assert "exit code <9>" in words
    assert "<script" not in page


def test_text_in_pictures_is_text_and_pictures_have_the_ink_and_ground_of_the_page_in_both_themes(page):
    words = "".join(Checked(page).words)
    assert words.count("accuracy (% of the test set)") == 4
    assert page.count("<svg ") == 12 + len(CHARTS)
    assert "prefers-color-scheme:dark" in page
    figures = page[page.index("<figure") : page.rindex("</figure>")]
    assert figures.count("fill: var(--text)") > 50
    for colour in (INK, GRID, "stroke: #000000"):
        assert colour not in figures
    grounds = re.findall(r'id="[^"]*-patch_1">\s*<path[^>]*style="([^"]*)"', figures)
    assert len(grounds) == len(CHARTS)
    assert set(grounds) == {"fill: none"}


def test_pictures_are_narrow_enough_for_letters_that_can_be_read_on_a_phone(page):
    """An SVG scaled to 390 pixels has letters of at least 8, and nothing makes it wider than the page."""
    widths = [float(width) for width in re.findall(r'<svg xmlns[^>]*viewBox="0 0 ([0-9.]+) ', page)]
    letters = [float(size) for size in re.findall(r"font-size: ([0-9.]+)px", page)]
    assert len(widths) == len(CHARTS)
    assert 390 / max(widths) * sorted(letters)[len(letters) // 20] >= 8
    assert "min-width" not in re.findall(r"figure svg\{([^}]*)\}", page)[0]


def test_the_settings_stand_below_the_question(page, report):
    line = (
        "Data fashion_mnist; network mcmahan_cnn; nodes 4; partition classes (classes_per_node 2) or iid; epochs 25; "
    )
    assert page.index("<h1>") < page.index(line) < page.index("<h2>Results")
    markdown = (report / "results.md").read_text(encoding="utf-8")
    assert markdown.index("Is ") < markdown.index("network mcmahan") < markdown.index("| row |")


def test_the_table_names_each_row_once_with_its_line_and_status(page):
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    assert table.count("<tr>") == table.count('class="key"') == 12
    assert "87.14 (ours" in table
    assert "seed 0 failed after round 7 of 25" in table
    assert "skipped: install dpwa[mpi]" in table


def test_markdown_holds_the_table_with_words_escaped_and_pictures_by_relative_names(report):
    text = (report / "results.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 12 + 2
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "\\<script\\>" in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert pictures == [f"{name}.png" for name in CHARTS]
    assert "dpwa lab run" in text


def test_the_json_file_holds_everything_without_numbers_that_json_does_not_know(report):
    def refuse(word):
        raise AssertionError(word)

    found = json.loads((report / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["row"] for row in found["rows"]][1:] == STRATEGIES[1:]
    assert found["commits"] == ["0123456789ab"]
    assert found["machines"][0]["processor"] == "Some Processor"
    assert found["rows"][1]["accuracy_percent"]["half_width_95"] > 0
    assert len(found["rows"][1]["rounds"]["epoch"]) == 26


def test_making_the_report_again_changes_nothing(report):
    before = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    assert make_report(report) == 0
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == before


def test_a_study_with_one_row_and_one_seed_and_nothing_sent_has_a_report(tmp_path):
    run = RunFolder(
        tmp_path, "study: tiny\ndata: digits\nmodel: mlp\nn_epochs: 1\neval_acc: false\nstrategies: [single]\n"
    )
    result = result_of(run.trial("single"))
    result["rounds"][0]["accuracy"] = result["rounds"][0]["loss"] = None
    run.write(run.trial("single"), {**result, "batches": {}})
    assert make_report(run.path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "accuracy-by-round.png"} <= names
    assert not names & {"consensus.png", "loss.png", "partition.png"}


def test_a_model_that_was_destroyed_and_one_that_is_perfect_can_be_drawn(tmp_path):
    run = RunFolder(tmp_path, "study: tiny\ndata: digits\nmodel: mlp\nn_epochs: 2\nstrategies: [single, pull]\n")
    for trial, accuracy, loss in ((run.trial("single"), 1.0, 0.0), (run.trial("pull"), 0.0, float("nan"))):
        result = result_of(trial)
        rounds = [{**each, "accuracy": accuracy, "loss": loss, "consensus": 0.0} for each in result["rounds"]]
        run.write(trial, {**result, "rounds": rounds})
    assert make_report(run.path) == 0
    assert (tmp_path / "accuracy-by-time.png").exists()


def test_rows_have_styles_of_their_own():
    assert len({style_of(index) for index in range(28)}) == 28


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_names_beside_lines_do_not_overlap_and_stay_in_the_picture(wanted):
    heights = [1 / 16] * len(wanted)
    places = spread(wanted, heights)
    ordered = sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert all(above - below >= 1 / 16 - 1e-9 for below, above in pairwise(ordered))


def test_names_that_have_room_stand_where_their_lines_end():
    assert spread([0.2, 0.8, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.2, 0.8, 0.5])
