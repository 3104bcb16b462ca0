"""Whether a number that a program handed over is within its limits, in the words of all other messages.

The cluster file has its limits in the models of the config; this is for constructors that a program calls itself.

Must not know: what the numbers mean. Runs in: any thread; a pure function.
"""

from __future__ import annotations

import sys

__all__ = ["number_problems"]


def number_problems(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> list[str]:
    """What is wrong with a number: nothing, or one line with its name, what was expected and what came.

    Args:
        name: what the line calls it.
        value: anything; only a finite int or float can be right.
        least: smallest value allowed.
        above: lower limit that is not allowed itself.
        most: largest value allowed.
        below: upper limit that is not allowed itself.
    """
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max  # False for NaN and infinity, and for an int that no float can hold
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return []
    limits = [(least, "of at least"), (above, "above"), (most, "up to"), (below, "below")]
    words = " and ".join(f"{word} {limit:g}" for limit, word in limits if limit is not None)
    return [f"{name}: expected a finite number {words}".rstrip() + f", got {value!r}"]
