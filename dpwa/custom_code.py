"""Calls of code that is not dpwa's: rules and methods that a cluster file names.

Must not know: what the code is for. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from dpwa.errors import ConfigError, DpwaError

__all__ = ["blamed"]


class blamed:  # noqa: N801  (used as a statement; a generator would cost every step of the training twice as much)
    """Whatever is raised inside becomes a `ConfigError` that names the class: it is no bug of dpwa.

    Args:
        owner: the class that is called. For one of dpwa's own, the error stays as it is: its traceback is what helps.
        problem: from the error to the words.

    Raises:
        ConfigError: the code raised something.
    """

    __slots__ = ("_owner", "_problem")

    def __init__(self, owner: type, problem: Callable[[str], str]) -> None:
        self._owner = owner
        self._problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, DpwaError):
            return
        if not self._owner.__module__.startswith("dpwa."):
            raise ConfigError(self._problem(repr(error))) from error
