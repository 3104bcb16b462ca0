"""Studies with many rows, split: a few rows in each diagram, since the lines of dozens in one cannot be told apart.

Those with a grid and still more rows are folded instead; see `dpwa.lab.report.grid`.

Must not know: pictures, Markdown. Runs in: any thread; everything here is pure.
"""

from __future__ import annotations

import math
from itertools import pairwise

from dpwa.lab.report.grid import fold
from dpwa.lab.report.summary import RowSummary, Summary

__all__ = ["places_of_styles", "split"]

# A study with more rows is split.
_MOST_ROWS = 12
_ROWS_OF_A_DIAGRAM = 6


def split(summary: Summary) -> list[list[RowSummary]]:
    """The rows of each diagram, in the order of the study; none for a study with few rows, or one that is folded."""
    count = len(summary.rows)
    if count <= _MOST_ROWS or fold(summary) is not None:
        return []
    parts = math.ceil(count / _ROWS_OF_A_DIAGRAM)
    ends = [count * part // parts for part in range(parts + 1)]
    return [list(summary.rows[begin:end]) for begin, end in pairwise(ends)]


def places_of_styles(summary: Summary) -> dict[int, int]:
    """Which style the line of each row has, by its index in the study: rows of one diagram have different ones."""
    folded = fold(summary)
    if folded is not None:
        return {row.index: folded.entries.index(row.entry) for row in summary.rows}
    parts = split(summary) or [list(summary.rows)]
    return {row.index: place for part in parts for place, row in enumerate(part)}
