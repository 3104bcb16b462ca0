"""Which rows a study means where it names some: in `compare_with`, `same_updates` and `literature`.

With a grid an entry of `strategies` makes several rows, whose labels end with their values of the grid. The name of the
entry alone means, for each row, the one of the same point of the grid.

Must not know: settings. Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dpwa.lab.study.layers import mapping
from dpwa.options import Place, Problem

__all__ = ["NamedRow", "groups_meant", "name_problems", "row_meant"]


@dataclass(frozen=True)
class NamedRow:
    """What rows are found by.

    Attributes:
        label: unique in the study.
        name: of its entry; without a grid, the label.
        point: its keys of the grid, with their values.
    """

    label: str
    name: str
    point: Mapping[str, Any]


def row_meant(said: str, point: Mapping[str, Any], rows: Sequence[NamedRow]) -> str | None:
    """The label of the row that is meant at a point of the grid; None: there is none, or there are several.

    Args:
        said: a label, or the name of an entry.
        point: of the row that is spoken of.
        rows: of the study.
    """
    if any(row.label == said for row in rows):
        return said
    found = [row.label for row in rows if row.name == said and _is_near(row.point, point)]
    return found[0] if len(found) == 1 else None


def groups_meant(groups: Sequence[Sequence[str]], rows: Sequence[NamedRow]) -> tuple[tuple[str, ...], ...]:
    """Groups of labels from groups of labels and names: one for each point of the grid that a name has.

    Points that are not those of the group's labels, and where a name means no row, are left out.
    """
    found: dict[tuple[str, ...], None] = {}
    for group in groups:
        of_labels = [row.point for row in rows if row.label in group]
        points = [row.point for row in rows if row.name in group and row.label not in group] or [{}]
        for point in points:
            if not all(_is_near(one, point) for one in of_labels):
                continue
            labels = tuple(label for said in group if (label := row_meant(said, point, rows)) is not None)
            if len(labels) == len(group):
                found[labels] = None
    return tuple(found)


def name_problems(values: Mapping[str, Any], rows: Sequence[NamedRow]) -> Iterator[Problem]:
    """Labels and names of rows that there are not, and names that mean no single row.

    Args:
        values: keys and plain values of the study file, which may be wrong.
        rows: of the study.
    """
    labels = [row.label for row in rows]
    for place, said in _said(values):
        if not rows or not isinstance(said, str) or said in labels:
            continue
        names = [] if place[0] == "literature" else sorted({row.name for row in rows})
        if said not in names:
            near = get_close_matches(said, [*labels, *names], n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"the rows: {'; '.join(labels)}"
            yield Problem(place, f"there is no such row, {hint}", at_key=place[0] == "literature")
        elif not _means_rows(said, place, values, rows):
            several = "; ".join(row.label for row in rows if row.name == said)
            yield Problem(
                place, f'expected one row for each that it is compared with, got "{said}", which is {several}'
            )


def _means_rows(said: str, place: Place, values: Mapping[str, Any], rows: Sequence[NamedRow]) -> bool:
    """Whether a name means a row, for at least one of those that speak of it."""
    if place[0] == "same_updates":
        return bool(groups_meant([values["same_updates"][place[1]]], rows))
    speaking = rows
    if place[0] == "strategies":
        entry = values["strategies"][place[1]]
        speaking = [row for row in rows if row.name == str(entry.get("name") or entry.get("strategy"))]
    return any(row_meant(said, row.point, rows) not in (None, row.label) for row in speaking)


def _said(values: Mapping[str, Any]) -> Iterator[tuple[Place, object]]:
    """Where a study names rows, and how."""
    for label in mapping(values.get("literature")):
        yield ("literature", label), label
    if values.get("compare_with"):
        yield ("compare_with",), values["compare_with"]
    for index, entry in enumerate(_list(values.get("strategies"))):
        if mapping(entry).get("compare_with"):
            yield ("strategies", index, "compare_with"), entry["compare_with"]
    for index, group in enumerate(_list(values.get("same_updates"))):
        for number, label in enumerate(_list(group)):
            yield ("same_updates", index, number), label


def _is_near(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points are the same in all keys that both have."""
    return all(other[key] == value for key, value in point.items() if key in other)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
