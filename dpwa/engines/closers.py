"""What this process holds that must be closed when its part of the work is over, before the process itself ends.

An engine that calls a function in a process which lives on, as Ray does, ends it later without a word: a model that
was not saved by then is lost, and peers would wait for a node that is not told to go.

Must not know: what is closed, models. Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

__all__ = ["close_all", "forget_closer", "remember_closer"]

_closers: list[Callable[[], object]] = []


def remember_closer(close: Callable[[], object]) -> None:
    """Have something closed by `close_all`, until it is forgotten."""
    _closers.append(close)


def forget_closer(close: Callable[[], object]) -> None:
    """It is closed by now; nothing happens if it is not known."""
    if close in _closers:
        _closers.remove(close)


def close_all() -> None:
    """Close everything, the newest first; each forgets itself.

    Raises:
        Exception: what one of them has raised; the others are closed all the same.
    """
    with ExitStack() as stack:
        for close in _closers:
            stack.callback(close)
