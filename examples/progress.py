"""Shows how far a training is: a bar in a terminal, now and then a plain line elsewhere.

Must not know: models, data, dpwa. Runs in: the training thread (rich draws the bar in a thread of its own).
"""

from __future__ import annotations

import time
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TrainingProgress"]

LINE_INTERVAL_S = 2.0  # several nodes write into one output: more often would be noise
BAR_INTERVAL_S = 0.1


class TrainingProgress:
    """The progress of one training; a context manager.

    Args:
        title: what is trained.
        epochs: how many passes over the data the training has.
    """

    def __init__(self, title: str, epochs: int) -> None:
        self._title = title
        self._epochs = epochs
        self._due_s = time.monotonic()
        self._bar: Progress | None = None
        console = Console()
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(title, total=epochs, state="")

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

    def show(self, epoch: float, loss: torch.Tensor, accuracy: float) -> None:
        """Shows the state after a step; call it as often as you like.

        Args:
            epoch: passes over the data done, with its fraction.
            loss: of the step's batch. It is read only when it is shown, because a GPU would have to be waited for.
            accuracy: the last one measured, 0..1.
        """
        is_full_bar = self._bar is not None and epoch == self._epochs
        if time.monotonic() < self._due_s and not is_full_bar:
            return
        self._due_s = time.monotonic() + (LINE_INTERVAL_S if self._bar is None else BAR_INTERVAL_S)
        state = f"epoch {epoch:.1f} of {self._epochs}, loss {loss.item():.3f}, test accuracy {accuracy:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch, state=state)
        else:
            print(f"{self._title}: {state}", flush=True)
