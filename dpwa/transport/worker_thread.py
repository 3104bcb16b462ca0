"""What the background threads of a node have in common: their start, their error, and an end that is bounded in time.

A thread whose work raises keeps the error, and the trainer's next call raises it. All are daemons: one that is stuck
does not keep the interpreter from ending. In a forked child none of them exists, and nothing of the parent's may be
ended: nobody calls `stop` there, and a doorbell that rings does nothing.

Runs in: `_work` and `_end` in the thread itself; the rest in the trainer's.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

__all__ = ["WorkerThread"]


class WorkerThread(ABC):
    """A thread of one node.

    Args:
        role: what it does, in one word.
        node: the node's name.
    """

    def __init__(self, role: str, node: str) -> None:
        self.error: BaseException | None = None
        """What ended the thread, if that was not `stop`."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"dpwa-{role}-{node}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; True if it ended in time. May be called again, and before `start`."""
        self._stopping = True
        self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._let_go()
        return True

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  the one broad catch of this thread: kept, raised to the trainer
            self.error = error
        finally:
            self._end()

    @abstractmethod
    def _work(self) -> None:
        """Do everything, until `_stopping`."""

    def _end(self) -> None:  # noqa: B027  (not all threads have an end of their own)
        """The work has ended, or failed; `error` is known."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Have the thread see that it is to stop. Any thread."""

    @abstractmethod
    def _let_go(self) -> None:
        """The thread has ended, or never began: close what it was reached by, and drop what nobody will do."""
