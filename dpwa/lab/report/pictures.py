"""Draws all charts of a report, as PNG files and as parts of the page.

Runs in: the calling thread. Imports matplotlib: import this module only when charts are wanted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpwa.lab.report.charts import WIDTH_INCHES, Chart, charts
from dpwa.lab.report.class_samples import draw_class_samples
from dpwa.lab.report.final_chart import final_chart
from dpwa.lab.report.lines import style_of
from dpwa.lab.report.page import Picture
from dpwa.lab.report.partition_drawing import draw_partition
from dpwa.lab.report.results import listed
from dpwa.lab.report.split import places_of_styles
from dpwa.lab.report.summary import RowSummary, Summary
from dpwa.lab.report.svg import inline_svg, page_colour
from dpwa.lab.report.worker_chart import worker_charts

__all__ = ["Drawn", "draw"]

DOTS_PER_INCH = 200
MOST_PARTITIONS = 4


@dataclass(frozen=True)
class Drawn:
    """The charts of a report.

    Attributes:
        files: titles and names of the PNG files in the run folder.
        pictures: the same charts for the page.
        keys: for each row an HTML element that shows the style of its lines.
    """

    files: list[tuple[str, str]]
    pictures: list[Picture]
    keys: list[str]


def draw(summary: Summary, folder: Path) -> Drawn:
    """Draws everything and writes the PNG files into a folder.

    Raises:
        OSError: a file cannot be written.
    """
    styles = places_of_styles(summary)
    drawn = Drawn([], [], [_key(styles[row.index]) for row in summary.rows])
    whole = [final_chart(summary), *charts(summary), *worker_charts(summary), *_partitions(summary)]
    for chart in [chart for chart in whole if chart is not None]:
        name = f"{chart.name}.png"
        chart.figure.savefig(folder / name, dpi=DOTS_PER_INCH, facecolor="white")
        svg = inline_svg(chart.figure, name=chart.name, title=chart.title)
        drawn.files.append((chart.title, name))
        is_wide = chart.figure.get_figwidth() > WIDTH_INCHES
        drawn.pictures.append(Picture(chart.title, chart.caption, svg, is_wide=is_wide))
    drawn.files.extend(_classes(folder))
    return drawn


def _classes(folder: Path) -> list[tuple[str, str]]:
    """Some images of each class of the run's data sets, as PNG files only: as SVG they would fill the page."""
    found = []
    for path in sorted(folder.glob("trials/.data/*.safetensors")):
        figure = draw_class_samples(path)
        if figure is not None:
            name = f"classes-{path.stem}.png"
            figure.savefig(folder / name, dpi=DOTS_PER_INCH, facecolor="white")
            found.append((f"Classes of {path.stem}", name))
    return found


def _partitions(summary: Summary) -> list[Chart]:
    """Which node holds what, once for each partition that is not iid."""
    rows: dict[str, list[RowSummary]] = {}
    for row in summary.rows:
        settings = row.settings
        is_dealt_out = settings.partition.kind != "iid" and any(len(r.class_counts) > 1 for r in row.measured)
        if is_dealt_out:
            key = json.dumps([settings.partition.model_dump(), settings.nodes, settings.data])
            rows.setdefault(key, []).append(row)
    made = []
    for number, alike in enumerate(list(rows.values())[:MOST_PARTITIONS], start=1):
        result = next(r for r in alike[0].measured if len(r.class_counts) > 1)
        counts = np.array(result.class_counts, np.int64)
        names = [f"w{node}" for node in range(1, len(counts) + 1)]
        partition = alike[0].settings.partition
        title = f"Samples per node: partition {partition.kind}, {len(counts)} nodes, seed {result.seed}"
        made.append(
            Chart(
                "partition" if number == 1 else f"partition-{number}",
                title,
                f"Samples of each class that each node holds. Rows: {listed(row.name for row in alike)}.",
                draw_partition(counts, names),
            )
        )
    return made


def _key(place: int) -> str:
    """A short piece of a row's line."""
    style = style_of(place)
    dash = "" if style.dash == "solid" else f' stroke-dasharray="{" ".join(str(2 * part) for part in style.dash[1])}"'
    return (
        '<svg class="key" viewBox="0 0 32 13" aria-hidden="true"><path d="M1 7H31" fill="none" stroke-width="3.5" '
        f'style="stroke:{page_colour(style.colour)}"{dash}/></svg>'
    )
