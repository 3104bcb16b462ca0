"""Calls of code that is not dpwa's: rules and methods that a cluster file names.

Must not know: what the code is for. Runs in: any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dpwa.errors import ConfigError, DpwaError

__all__ = ["blamed"]


@contextlib.contextmanager
def blamed(owner: type, problem: Callable[[str], str]) -> Iterator[None]:
    """Whatever is raised inside becomes a `ConfigError` in words, so that nobody takes it for a fault of dpwa.

    Args:
        owner: the class that is called. For one of dpwa's own, the error stays as it is: its traceback is what helps.
        problem: from the error to the words.

    Raises:
        ConfigError: the code raised something.
    """
    try:
        yield
    except DpwaError:
        raise
    except Exception as error:  # the one broad catch of foreign code
        if owner.__module__.startswith("dpwa."):
            raise
        raise ConfigError(problem(repr(error))) from error
