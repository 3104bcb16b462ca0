"""Worker processes of a benchmark, told what to do through a pipe.

A worker is a fresh interpreter, so that none inherits threads or memory of another. When the parent dies, the pipe
breaks and the worker ends by itself.

Must not know: what is measured. Runs in: the parent's main thread; `_run` in the worker's.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

# A reply that takes longer than this means that the worker hangs.
REPLY_DEADLINE_S = 600.0

_END_S = 5.0


class WorkerFailed(RuntimeError):
    """A worker ended by itself or did not reply."""


class Workers:
    """Processes that run one function each; ended together at the end of a `with` block.

    Args:
        target: "module:function", called in each worker with its pipe and its own arguments. A name, and not the
            function, so that the parent need not import what only the workers use.
        arguments: for each worker, the further arguments of `target`.
    """

    def __init__(self, target: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: list[Connection] = []
        self._processes = []
        for own in arguments:
            here, there = context.Pipe()
            process = context.Process(target=_run, args=(target, there, own), daemon=True)
            process.start()
            there.close()  # or the end of the worker would not be seen
            self._lines.append(here)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def process_ids(self) -> list[int]:
        """Of each worker, in order."""
        return [process.pid or 0 for process in self._processes]

    def tell(self, message: object) -> None:
        """Send the same to every worker.

        Raises:
            WorkerFailed: one has ended.
        """
        for index in range(len(self._lines)):
            self.tell_one(index, message)

    def tell_one(self, index: int, message: object) -> None:
        """Send something to one worker.

        Raises:
            WorkerFailed: it has ended.
        """
        try:
            self._lines[index].send(message)
        except OSError:
            raise self._failure(index) from None

    def hear(self, deadline_s: float = REPLY_DEADLINE_S) -> list[Any]:
        """The next reply of each worker, in order.

        Args:
            deadline_s: for each.

        Raises:
            WorkerFailed: one has ended, or does not reply.
        """
        replies = []
        for index, line in enumerate(self._lines):
            if not line.poll(deadline_s):
                raise WorkerFailed(f"worker {index} did not reply within {deadline_s:g} s")
            try:
                replies.append(line.recv())
            except (EOFError, OSError):
                raise self._failure(index) from None
        return replies

    def _failure(self, index: int) -> WorkerFailed:
        process = self._processes[index]
        process.join(_END_S)
        return WorkerFailed(f"worker {index} ended by itself (exit code {process.exitcode}); what it said stands above")


def _run(target: str, line: Connection, own: tuple[Any, ...]) -> None:
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(line, *own)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the parent is gone, or does not want to hear the rest
