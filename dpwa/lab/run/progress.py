"""What `dpwa lab run` shows: a bar in a terminal, otherwise a line now and then.

Runs in: the main thread.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dpwa.lab.run.pace import duration_text

__all__ = ["RunProgress"]

_LINE_EVERY_S = 30.0


class RunProgress:
    """Shows how far a run is; a context manager.

    Args:
        console: where to show it.
        total: number of trials.
        done: how many of them had finished before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._shares: dict[str, float] = {}  # of the trials under way, by title
        self._numbers: dict[str, int] = {}
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
        """Prints a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, title: str, left_s: float | None) -> None:
        """A trial begins.

        Args:
            title: of the trial.
            left_s: seconds until all trials are done; None if unknown, here and below.
        """
        self._last_line_s = time.monotonic()
        self._numbers[title] = self._done + len(self._shares) + 1
        if self._bar is None:
            self.say(f"[{self._numbers[title]}/{self._total}] {title}: started{_left(left_s)}")
        self.update(title, 0.0, left_s)

    def update(self, title: str, share: float, left_s: float | None) -> None:
        """This share of a trial is done, 0..1."""
        self._shares[title] = share
        if self._bar is not None:
            texts = [f"{each}: {done:.0%}" for each, done in self._shares.items()]
            self._bar.update(self._task, description=f"{', '.join(texts)}{_left(left_s)}", completed=self._done)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            for each, done in self._shares.items():
                self.say(f"[{self._numbers[each]}/{self._total}] {each}: {done:.0%}{_left(left_s)}")

    def end(self, title: str, outcome: str, left_s: float | None = None) -> None:
        """A trial has ended, with this outcome."""
        self._done += 1
        self._shares.pop(title, None)
        number = self._numbers.pop(title, self._done)
        self.say(f"[{number}/{self._total}] {title}: {outcome}{_left(left_s)}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)


def _left(left_s: float | None) -> str:
    return f"; about {duration_text(left_s)} left" if left_s else ""
