"""What every benchmark needs: the machine and commit, the spread of samples, ratios, the table and the JSON file.

Must not know: what is measured. Runs in: the main thread of a benchmark's parent process; `pin` in its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpwa.lab.training.machine import commit, machine

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Spread:
    """Samples in short: median, 10th and 90th percentile, how many."""

    median: float
    p10: float
    p90: float
    repetitions: int

    def scaled(self, by: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * by, self.p10 * by, self.p90 * by, self.repetitions)

    def text(self, digits: int = 2) -> str:
        """For a cell of a table."""
        return f"{self.median:.{digits}f} ({self.p10:.{digits}f} to {self.p90:.{digits}f})"


def spread(samples: Sequence[float]) -> Spread:
    """Median and percentiles of samples.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("no samples to summarise")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return Spread(statistics.median(samples), tenths[0], tenths[-1], len(samples))


@dataclass(frozen=True)
class Ratio:
    """One measured thing over another of the same run.

    Attributes:
        value: ratio of the two medians.
        low: 10th percentile of the ratios of the single pairs, each of neighbouring repetitions.
        high: 90th percentile of the same.
        repetitions: how many pairs.
        numerator: what stands above, and its median.
        denominator: what stands below, and its median.
        at_least: what the project wants to reach; None if nothing is stated.
        at_most: the same from the other side.
    """

    value: float
    low: float
    high: float
    repetitions: int
    numerator: dict[str, Any]
    denominator: dict[str, Any]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def aim(self) -> str:
        """The aim in words, and whether it is reached."""
        if self.reached is None:
            return ""
        wanted = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{wanted}: {'yes' if self.reached else 'NO'}"


def ratio(
    above: tuple[str, Sequence[float]],
    below: tuple[str, Sequence[float]],
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Ratio:
    """Compare two measured things of one run.

    Args:
        above: name and samples, in the order of their measurement.
        below: name and samples, in the order of their measurement.
        unit: of both.
        at_least: aim.
        at_most: aim.
    """
    upper, lower = spread(above[1]), spread(below[1])
    pairs = spread([one / other for one, other in zip(above[1], below[1], strict=False)])
    return Ratio(
        upper.median / lower.median,
        pairs.p10,
        pairs.p90,
        pairs.repetitions,
        {"what": above[0], "unit": unit, **asdict(upper)},
        {"what": below[0], "unit": unit, **asdict(lower)},
        at_least=at_least,
        at_most=at_most,
    )


@dataclass
class Result:
    """All that a benchmark found out.

    Attributes:
        name: of the benchmark.
        rows: plain mappings, one for each measured thing; a `Spread` may stand as a value.
        ratios: by name, then by case (a size, a model).
    """

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, Ratio]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add_ratio(self, name: str, case: str, made: Ratio) -> None:
        """Keep a ratio."""
        self.ratios.setdefault(name, {})[case] = made

    def as_json(self) -> dict[str, Any]:
        """What is written to the file."""
        return {
            "name": self.name,
            "machine": machine(),
            "commit": commit(),
            "settings": self.settings,
            "rows": [
                {key: asdict(value) if isinstance(value, Spread) else value for key, value in row.items()}
                for row in self.rows
            ],
            "ratios": {
                name: {case: {**asdict(made), "reached": made.reached} for case, made in cases.items()}
                for name, cases in self.ratios.items()
            },
        }

    def finish(self, json_path: Path | None) -> None:
        """Print the tables and write the file."""
        self._print()
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
            print(f"Written: {json_path}")

    def _print(self) -> None:
        from rich.console import Console  # noqa: PLC0415  workers import this module and shall stay small
        from rich.table import Table  # noqa: PLC0415

        # Wide enough when the output goes to a file, where rich would assume 80 columns and cut numbers.
        console = Console(width=None if os.isatty(1) else 160)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = Table(*columns, title=f"{self.name}: median (10th to 90th percentile)")
        for row in self.rows:
            table.add_row(*[_cell(row.get(column)) for column in columns])
        console.print(table)
        ratios = Table("ratio", "case", "value", "pairs", "of", "to", "aim", title="Ratios within this run")
        for name, cases in self.ratios.items():
            for case, made in cases.items():
                ratios.add_row(name, case, *ratio_cells(made))
        console.print(ratios)


def ratio_cells(made: Ratio) -> list[str]:
    """A ratio as cells of a table: value with spread, number of pairs, both numbers, aim."""
    return [
        f"{made.value:.4g} ({made.low:.4g} to {made.high:.4g})",
        str(made.repetitions),
        *(f"{side['what']} {side['median']:.4g} {side['unit']}" for side in (made.numerator, made.denominator)),
        made.aim,
    ]


def _cell(value: object) -> str:
    if isinstance(value, Spread):
        return value.text()
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def cores(count: int) -> list[int]:
    """A core for each of `count` processes, going round the ones that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return [usable[index % len(usable)] for index in range(count)]


def pin(core: int | None) -> None:
    """Keep every thread of this process, and those that it starts later, on one core; None: leave them free."""
    if core is None:
        return
    # Libraries start threads when they are imported, and the call without a thread's id moves only its caller.
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def arguments(description: str) -> argparse.ArgumentParser:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small and fast: shows that it runs, measures little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    return parser
