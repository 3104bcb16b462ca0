"""What `dpwa lab run` shows: a bar in a terminal, else a line now and then.

Must not know: processes, files. Runs in: the main thread.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dpwa.lab.run.cost import shown_duration

__all__ = ["RunProgress"]

_LINE_EVERY_S = 30.0


class RunProgress:
    """Shows how far a run is; a context manager.

    Args:
        console: where to.
        total: how many trainings there are in all.
        done: how many of them were finished before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._name = ""
        self._last_line_s = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.completed:.0f} of {task.total:.0f}"),
                BarColumn(30),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, left_s: float) -> None:
        """A training begins.

        Args:
            name: of the training.
            left_s: seconds until all are done, about.
        """
        self._name = name
        self._last_line_s = time.monotonic()
        if self._bar is None:
            self.say(f"[{self._done + 1}/{self._total}] {name}: begins; {shown_duration(left_s)} left in all")
        self.tell(0.0, left_s)

    def tell(self, share: float, left_s: float) -> None:
        """The training goes on.

        Args:
            share: of it that is done, 0..1.
            left_s: seconds until all are done, about.
        """
        text = f"{self._name}: {share:.0%}; {shown_duration(left_s)} left in all"
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=self._done)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            self.say(f"[{self._done + 1}/{self._total}] {text}")

    def end(self, name: str, text: str) -> None:
        """A training has ended.

        Args:
            name: of the training.
            text: how.
        """
        self._done += 1
        self.say(f"[{self._done}/{self._total}] {name}: {text}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
