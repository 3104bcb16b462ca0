"""Turns the fields of an event, whatever they are, into a line of strict JSON.

Must not know: files, threads. Runs in: the journal's thread; pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from dpwa.observe.plain_values import plain

__all__ = ["LINE_LIMIT_BYTES", "line"]

LINE_LIMIT_BYTES = 512 * 1024
"""Longest line. The names of all peers in the largest cluster fit in it."""

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def line(fields: Mapping[str, object], tell: Callable[[str], None]) -> bytes:
    """One line; if it would be too long, a short one that says so.

    Args:
        fields: `t` and all other fields.
        tell: called with a description of each problem.
    """
    made = _json({name: plain(value, limit_chars=LINE_LIMIT_BYTES, tell=tell) for name, value in fields.items()})
    if len(made) <= LINE_LIMIT_BYTES:
        return made
    problem = f"a line of {len(made)} bytes is too long to be written"
    tell(problem)
    short = {name: fields[name] for name in ("t", "event") if name in fields}
    return _json({name: plain(value, limit_chars=100) for name, value in {**short, "problem": problem}.items()})


def _json(fields: Mapping[str, object]) -> bytes:
    return (_encode(fields) + "\n").encode("ascii")
