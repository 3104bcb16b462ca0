"""Studies with a grid and many rows, folded: what differs only in the grid's last key stands beside each other.

Dozens of rows below each other, or as lines in one diagram, cannot be read.

Must not know: pictures, Markdown. Runs in: any thread; everything here is frozen or pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dpwa.lab.report.summary import NONE, RowSummary, Summary
from dpwa.lab.study.study_rows import shown_setting

__all__ = ["Fold", "FoldedRow", "fold"]

# A study with more rows is folded, if it has a grid.
_MOST_ROWS = 24


@dataclass(frozen=True)
class FoldedRow:
    """Rows that differ only in the grid's last key.

    Attributes:
        name: of the entry of `strategies`, with the values of the other keys.
        entry: the name alone.
        place: the other keys with their values, as text; empty without any.
        cells: one row for each of the fold's values; None where the study has none.
    """

    name: str
    entry: str
    place: str
    cells: tuple[RowSummary | None, ...]


@dataclass(frozen=True)
class Fold:
    """The rows of a folded study.

    Attributes:
        entries: the names of the entries, in the order of the study.
        titles: of the values of the grid's last key, such as "batch_size=32".
        rows: place by place, and there in the order of the study: those of one place are to be compared.
    """

    entries: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[FoldedRow, ...]

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The values of the other keys, each once."""
        return tuple(dict.fromkeys(row.place for row in self.rows))


def fold(summary: Summary) -> Fold | None:
    """The rows of a study, folded; None where it has few rows, or no grid."""
    if len(summary.rows) <= _MOST_ROWS or not summary.study.grid:
        return None
    *others, last = summary.study.grid
    titles = tuple(dict.fromkeys(_title(row, last) for row in summary.rows))
    if len(titles) < 2:
        return None
    found: dict[tuple[str, str], dict[str, RowSummary]] = {}
    for row in summary.rows:
        place = ", ".join(_setting(row, key) for key in others if key in row.point)
        found.setdefault((row.entry, place), {})[_title(row, last)] = row
    places = list(dict.fromkeys(place for _, place in found))
    rows = [
        FoldedRow(f"{entry}, {place}" if place else entry, entry, place, tuple(map(cells.get, titles)))
        for (entry, place), cells in found.items()
    ]
    entries = tuple(dict.fromkeys(row.entry for row in summary.rows))
    return Fold(entries, titles, tuple(sorted(rows, key=lambda row: places.index(row.place))))


def _title(row: RowSummary, key: str) -> str:
    """A value of a key; of a row whose strategy does not use it, that it has none."""
    return _setting(row, key) if key in row.point else f"{key.rpartition('.')[2]}: {NONE}"


def _setting(row: RowSummary, key: str) -> str:
    return f"{key.rpartition('.')[2]}={shown_setting(row.point[key])}"
