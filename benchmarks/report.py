"""Puts measured results into the docs: tables between marker comments, and a picture for each benchmark.

    python benchmarks/report.py benchmarks/results/*.json

Each goes to the page of its benchmark (`_PAGES`), docs/benchmarks.md if it has none of its own. A page keeps everything
outside of its markers, `<!-- NAME:begin -->` and `<!-- NAME:end -->`. A run of a part of the cases is not put in the
place of one of all:

    python benchmarks/report.py exchange.json --page mine.md

Must not know: how anything is measured. Runs in: the main thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from measure import ROOT
from rich.console import Console

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Found = dict[str, Any]

_PAGES = {"poor_links": "results.md", "many_nodes": "scaling.md"}

RATIO_COLUMNS = ["ratio", "case", "value (10th to 90th percentile)", "pairs", "of", "to", "aim"]

_BLUE, _GREY, _RED = "#2a6fbb", "#b0b0b0", "#c0504d"
OTHERS_OVER_LINKS = ("ddp", "local SGD", "fedavg")
"""Rows of `poor_links.py` that are not dpwa's, by what stands before a comma."""
_RIVALS_OF_OTHERS = ("lerp", "raw_tcp", "gloo_send", "gloo_all_reduce", "hivemind")


def main() -> None:
    """Renew the pages."""
    parser = argparse.ArgumentParser(description="Puts measured results into the docs.")
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="JSON files of the benchmarks")
    parser.add_argument(
        "--page", type=Path, help="the page to renew, or to begin (default: the one of each benchmark in docs)"
    )
    given = parser.parse_args()
    for path in given.results:
        found: Found = json.loads(path.read_text(encoding="utf-8"))
        name = found["name"]
        page: Path = given.page or page_of(name)
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        if given.page is not None and begin_of(name) not in before:
            before += f"{begin_of(name)}\n{end_of(name)}\n"
        lost = lost_ratios(before, found)
        measured = {case for cases in found["ratios"].values() for case in cases}
        if missing := dict.fromkeys(case for _, case in lost if case not in measured):
            sys.exit(
                f"{path}: {page} has results of {name} for {', '.join(missing)}, which this file would replace by "
                f"nothing; measure them too, or put this file into a page of its own: --page mine.md"
            )
        if lost:
            names = ", ".join(dict.fromkeys(ratio for ratio, _ in lost))
            Console().print(f"{name}: no longer on {page}: {names}", soft_wrap=True)
        picture = page.with_name(f"{page.stem}-{name}.png")
        draw(found, picture)
        page.write_text(between_markers(before, name, block_of(found, picture.name)), encoding="utf-8")
        Console().print(f"{name}: table and picture in {page} and {picture.name}", soft_wrap=True)


def page_of(name: str) -> Path:
    """The page on which the results of a benchmark stand."""
    return ROOT / "docs" / _PAGES.get(name, "benchmarks.md")


def begin_of(name: str) -> str:
    """The line before the results of a benchmark."""
    return f"<!-- {name}:begin -->"


def end_of(name: str) -> str:
    """The line after the results of a benchmark."""
    return f"<!-- {name}:end -->"


def lost_ratios(text: str, found: Found) -> list[tuple[str, str]]:
    """The ratios between the markers of a page that the new results do not have, by name and case."""
    block = text.partition(begin_of(found["name"]))[2].partition(end_of(found["name"]))[0]
    table = block.partition(f"| {' | '.join(RATIO_COLUMNS)} |")[2].partition("\n\n")[0]
    there = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    return [(name, case) for name, case in there if case not in found["ratios"].get(name, {})]


def between_markers(text: str, name: str, block: str) -> str:
    """The page with another block between the markers of `name`.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = begin_of(name), end_of(name)
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page needs the lines {begin} and {end}, in this order, for the results of {name}")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def block_of(found: Found, picture: str) -> str:
    """Origin, picture, ratios and rows as markdown."""
    machine = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    origin = (
        f"Measured at commit `{found['commit']}` on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, {packages}."
    )
    ratios = [
        [name, case, *_ratio_cells(made)] for name, cases in found["ratios"].items() for case, made in cases.items()
    ]
    rows = found["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return "\n\n".join(
        [
            origin,
            f"![{found['name']}]({picture})",
            _table(RATIO_COLUMNS, ratios),
            _table(columns, [[_cell_of(row, column) for column in columns] for row in rows]),
        ]
    )


def _cell_of(row: Mapping[str, Any], column: str) -> str:
    """A value of a row; exchanges that are less than nine tenths of those asked for are marked, as in the lab."""
    text = _cell(row.get(column))
    asked, real = row.get("asked"), row.get("real")
    falls_short = column == "real" and None not in (asked, real) and real < 0.9 * asked
    return f"{text} !" if falls_short else text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio_cells(made: Found) -> list[str]:
    value = f"**{made['value']:.4g}** ({made['low']:.4g} to {made['high']:.4g})"
    sides = [
        f"{side['what']} {side['median']:.4g} {side['unit']}".strip()
        for side in (made["numerator"], made["denominator"])
    ]
    return [value, str(made["repetitions"]), *sides, _aim(made)]


def _aim(made: Found) -> str:
    if made["reached"] is None:
        return ""
    wanted = f"at least {made['at_least']:g}" if made["at_least"] is not None else f"at most {made['at_most']:g}"
    return f"{wanted}: {'reached' if made['reached'] else 'missed'}"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        if "median" in value:
            return f"{value['median']:.4g} ({value['p10']:.4g} to {value['p90']:.4g})"
        return ", ".join(f"{key} {number}" for key, number in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


# --- Pictures -----------------------------------------------------------------------------------------------------


def draw(found: Found, path: Path) -> None:
    """The picture of one benchmark."""
    PICTURES[found["name"]](found)
    plt.savefig(path, dpi=120, bbox_inches="tight")
    plt.close("all")


def _bars(axes: Axes, names: list[str], values: list[Found], colours: list[str]) -> None:
    """Horizontal bars of medians with whiskers from the 10th to the 90th percentile; the first name on top."""
    medians = [value["median"] for value in values]
    below = [value["median"] - value["p10"] for value in values]
    above = [value["p90"] - value["median"] for value in values]
    axes.barh(names, medians, xerr=[below, above], color=colours, error_kw={"lw": 1, "capsize": 2})
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_exchange(found: Found) -> None:
    sizes = list(dict.fromkeys(row["size_mb"] for row in found["rows"]))
    _, grid = plt.subplots(1, len(sizes), figsize=(4.5 * len(sizes), 4), squeeze=False)
    for axes, size in zip(grid[0], sizes, strict=True):
        rows = [row for row in found["rows"] if row["size_mb"] == size]
        names = [row["by"] for row in rows]
        colours = [_GREY if name in _RIVALS_OF_OTHERS else _BLUE for name in names]
        _bars(axes, names, [row["blended_ms"] for row in rows], colours)
        axes.set_title(f"{size:g} MB")
        axes.set_xlabel("ms from request to blended")
    plt.tight_layout()


def _draw_overhead(found: Found) -> None:
    cases = list(dict.fromkeys(row["case"] for row in found["rows"]))
    _, grid = plt.subplots(1, len(cases), figsize=(4 * len(cases), 2), squeeze=False)
    for axes, case in zip(grid[0], cases, strict=True):
        rows = [row for row in found["rows"] if row["case"] == case]
        names = [f"{row['dpwa']} dpwa" for row in rows]
        _bars(axes, names, [row["step_ms"] for row in rows], [_GREY, _BLUE])
        axes.set_title(f"{case}: {found['ratios']['step_time'][case]['value']:.3f}")
        axes.set_xlabel("ms of a step")
    plt.tight_layout()


def _draw_straggler(found: Found) -> None:
    _, axes = plt.subplots(figsize=(7, 2))
    rows = found["rows"]
    colours = {"dpwa": _BLUE, "free-running": _GREY}
    names = [row["training"] for row in rows]
    _bars(axes, names, [row["samples_per_s"] for row in rows], [colours.get(name, _RED) for name in names])
    axes.set_xlabel("samples per second of all nodes")
    plt.tight_layout()


def _draw_unequal(found: Found) -> None:
    _, axes = plt.subplots(figsize=(7, 2.5))
    rows = found["rows"]
    names = [row["training"] for row in rows]
    _bars(axes, names, [row["seconds"] for row in rows], [_BLUE] * len(names))
    for place, row in enumerate(rows):
        axes.plot([row["least_s"]] * 2, [place - 0.4, place + 0.4], color=_RED)
    axes.set_xlabel("seconds; red: what the speeds allow")
    plt.tight_layout()


def _draw_scale(found: Found) -> None:
    quantities = {
        "uss_mb": "memory of a node alone, MB",
        "descriptors": "descriptors of a node",
        "threads": "threads of a node",
        "cpu": "processor seconds per second of a node",
    }
    _, grid = plt.subplots(1, len(quantities), figsize=(4 * len(quantities), 3))
    counts = [row["nodes"] for row in found["rows"]]
    for axes, (quantity, title) in zip(grid, quantities.items(), strict=True):
        medians = [row[quantity]["median"] for row in found["rows"]]
        axes.plot(counts, medians, "o-", color=_BLUE)
        axes.set_ylim(0, 1.3 * max(medians))
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("nodes")
        axes.grid(alpha=0.3)
    plt.tight_layout()


def _draw_many_nodes(found: Found) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    counts = [row["nodes"] for row in found["rows"]]
    for quantity, unit in {"start_ms": "ms", "step_us": "us", "node_kb": "kB"}.items():
        left.plot(counts, [row[quantity] for row in found["rows"]], "o-", label=f"{quantity.split('_')[0]}, {unit}")
    left.set_title("bookkeeping of a node", fontsize=10)
    for graph in ("ring", "torus", "exponential", "pull"):
        label = "random peer (pull)" if graph == "pull" else graph
        right.plot(counts, [row[f"{graph}_rounds"] for row in found["rows"]], "o-", label=label)
    right.set_title("rounds until the distance is a thousandth", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("nodes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    plt.tight_layout()


def _draw_method_overhead(found: Found) -> None:
    _, axes = plt.subplots(figsize=(7, 3))
    names = [row["method"] for row in found["rows"]]
    _bars(axes, names, [row["trainer_ms"] for row in found["rows"]], [_GREY, *[_BLUE] * (len(names) - 1)])
    axes.set_xlabel("ms of the trainer's thread inside dpwa, per step")
    plt.tight_layout()


def _draw_poor_links(found: Found) -> None:
    names = list(dict.fromkeys(row["row"] for row in found["rows"]))
    rates = list(dict.fromkeys(row["mbit"] for row in found["rows"]))
    figure, grid = plt.subplots(
        1, len(rates), figsize=(2.4 + 2.6 * len(rates), 0.9 + 0.27 * len(names)), sharey=True, squeeze=False
    )
    longest_s = max([row["to_target_s"] for row in found["rows"] if row.get("to_target_s")], default=1.0)
    for axes, rate in zip(grid[0], rates, strict=True):
        for place, name in enumerate(names):
            rows = [row for row in found["rows"] if (row["row"], row["mbit"]) == (name, rate)]
            times_s = [row["to_target_s"] for row in rows if row.get("to_target_s")]
            colour = _GREY if name.partition(",")[0] in OTHERS_OVER_LINKS else _BLUE
            if times_s:
                middle_s = statistics.median(times_s)
                axes.barh(place, middle_s, color=colour)
                axes.text(middle_s, place, f" {middle_s:.0f}", va="center", fontsize=8)
            elif rows:
                best = max((row.get("best_percent") or 0.0 for row in rows), default=0.0)
                axes.text(0, place, f" not reached ({best:.1f} %)", va="center", fontsize=8, color=_RED)
        axes.set_xlim(0, 1.2 * longest_s)
        axes.set_title(f"{rate / 1000:g} Gbit/s" if rate >= 1000 else f"{rate:g} Mbit/s", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    grid[0][0].set_yticks(range(len(names)), names, fontsize=9)
    grid[0][0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(
        f"seconds until {found['settings']['target_percent']:g} % of the test images are right", fontsize=9
    )
    plt.tight_layout()


PICTURES: dict[str, Callable[[Found], None]] = {
    "exchange": _draw_exchange,
    "overhead": _draw_overhead,
    "straggler": _draw_straggler,
    "unequal": _draw_unequal,
    "scale": _draw_scale,
    "many_nodes": _draw_many_nodes,
    "method_overhead": _draw_method_overhead,
    "poor_links": _draw_poor_links,
}


if __name__ == "__main__":
    main()
