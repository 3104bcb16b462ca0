"""Differences between rows, paired by seed, and the noise below which a difference says nothing.

Rows of one seed share data, partition and initial weights, so that the difference of two rows varies less than either.
Rows that make the same updates, or the same in another order, differ by chance alone: by how much is the noise floor of
the study.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpwa.lab.report.results import listed
from dpwa.lab.report.statistics import Estimate, estimate
from dpwa.lab.report.summary import NONE, RowSummary, Summary

# Groups of rows that the caption names one by one.
_MOST_GROUPS = 4

__all__ = ["base_of", "comparison_texts", "difference", "difference_text", "has_own_bases", "noise_floor"]


def difference(row: RowSummary, base: RowSummary) -> Estimate | None:
    """Accuracy of a row minus that of another, in points, over the seeds that both have; None without any."""
    ours, theirs = _by_seed(row), _by_seed(base)
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def base_of(row: RowSummary, summary: Summary) -> RowSummary | None:
    """The row that this one is compared with; None if there is none."""
    return next((other for other in summary.rows if other.name == row.compare_with), None)


def has_own_bases(summary: Summary) -> bool:
    """Whether rows are compared with different rows."""
    return any(row.compare_with not in ("", summary.study.compare_with) for row in summary.rows)


def noise_floor(summary: Summary, compared: Sequence[str] = ()) -> float | None:
    """The largest difference, in points, that chance makes between rows with the same updates.

    Of each pair of them it is the end of the 95 % interval around their difference that lies further from 0, and with
    fewer than three seeds the largest difference of any seed. None if the study names no such rows, or none is done.

    Args:
        summary: of the study.
        compared: names of rows: their own noise alone counts, where the study has it. Empty: that of all.
    """
    rows = {row.name: row for row in summary.rows}
    groups = summary.study.same_updates
    found = []
    for group in [group for group in groups if set(group) & set(compared)] or groups:
        for at, name in enumerate(group):
            found += [difference(rows[name], rows[other]) for other in group[at + 1 :]]
    return max((_furthest(pair) for pair in found if pair is not None), default=None)


def difference_text(row: RowSummary, summary: Summary) -> str:
    """The difference from the row that it is compared with, such as "+0.31 ± 0.20", and whether it is noise."""
    base = base_of(row, summary)
    found = None if base is None else difference(row, base)
    if base is None or found is None:
        return NONE
    text = f"{found.mean:+.2f}" if found.half_width is None else f"{found.mean:+.2f} ± {found.half_width:.2f}"
    return f"{text} (noise)" if _is_noise(found, noise_floor(summary, (row.name, base.name))) else text


def comparison_texts(summary: Summary) -> list[str]:
    """What the caption of the table says of differences and noise."""
    study, parts = summary.study, []
    if any(row.compare_with for row in summary.rows):
        base = "its base" if has_own_bases(summary) else study.compare_with
        parts.append(
            f"Minus {base} is the difference of accuracies in points, paired by seed, with its 95 % "
            "interval; (noise) says that the interval holds 0, or that the difference is below the noise floor."
        )
    floor = noise_floor(summary)
    if floor is not None:
        named = [listed(group) for group in study.same_updates]
        more = f"; and {len(named) - _MOST_GROUPS} more such groups" if len(named) > _MOST_GROUPS else ""
        parts.append(
            f"The noise floor is {floor:.2f} points{_of_groups(summary)}: by so much, as far as these seeds tell, rows "
            "may differ that make the same updates, or the same in another order "
            f"({'; '.join(named[:_MOST_GROUPS])}{more})."
        )
    return parts


def _of_groups(summary: Summary) -> str:
    """The noise of each group, where there are several; each counts for its own rows."""
    floors = [noise_floor(summary, group) for group in summary.study.same_updates]
    measured = [floor for floor in floors if floor is not None]
    if len(measured) < 2:
        return ""
    shown = ", ".join(f"{floor:.2f}" for floor in measured)
    if len(measured) > _MOST_GROUPS:
        shown = f"{min(measured):.2f} to {max(measured):.2f}"
    return f" ({shown}, each for its own rows; the largest for all others)"


def _by_seed(row: RowSummary) -> dict[int, float]:
    return {result.seed: 100 * result.final_accuracy for result in row.done if result.final_accuracy is not None}


def _furthest(found: Estimate) -> float:
    if found.half_width is None:
        return max(abs(value) for value in found.values)
    return abs(found.mean) + found.half_width


def _is_noise(found: Estimate, floor: float | None) -> bool:
    holds_zero = found.half_width is not None and abs(found.mean) <= found.half_width
    return holds_zero or (floor is not None and abs(found.mean) <= floor)
