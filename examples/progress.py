"""Shows how far a training is: a bar in a terminal, now and then a plain line elsewhere.

Must not know: models, data, dpwa. Runs in: the training thread (rich draws the bar in a thread of its own).
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TrainingProgress"]

LINE_INTERVAL_S = 2.0  # several nodes write into one output: more often would be noise


class TrainingProgress:
    """The progress of one training; a context manager.

    Args:
        title: what is trained.
        total_steps: how many steps the training has.
    """

    def __init__(self, title: str, total_steps: int) -> None:
        self._title = title
        self._total_steps = total_steps
        self._line_due_s = time.monotonic()
        self._bar: Progress | None = None
        console = Console()
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(title, total=total_steps, state="")

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, *, epoch: float, loss: float, accuracy: float) -> None:
        """Shows the state after a step.

        Args:
            step: steps done.
            epoch: passes over the shard done, with its fraction.
            loss: of the step's batch.
            accuracy: the last one measured, 0..1.
        """
        state = f"epoch {epoch:.1f}, loss {loss:.3f}, test accuracy {accuracy:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, state=state)
        elif time.monotonic() >= self._line_due_s or step == self._total_steps:
            self._line_due_s = time.monotonic() + LINE_INTERVAL_S
            print(f"{self._title}: step {step} of {self._total_steps}, {state}", flush=True)
