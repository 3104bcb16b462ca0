"""The copy waiter: hands out snapshots whose bytes are still on their way from a GPU.

A copy from a GPU ends when the GPU has done the work that was queued before it: a step later, perhaps. The trainer does
not wait for it, and no other thread can. The Rx thread serves other peers meanwhile. The Tx thread may be in a pull
that waits for a peer's next publish, and that peer for this one: each would hold up the other.

It is started by the first such copy, so models in the processor's memory never have it.

Runs in: the thread named `dpwa-publish-…`; `defer` and `stop` are called by
the trainer's thread.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from dpwa.transport.worker_thread import WorkerThread

__all__ = ["CopyWaiter"]

Job = tuple[Callable[[], None], Callable[[], None]]


class CopyWaiter(WorkerThread):
    """Waits for one thing after the other, and does what is to follow each.

    Args:
        name: the node's name, for the thread's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__("publish", name)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # no more than there are snapshot buffers

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        """Have `ready` called, which blocks, and `then` after it; in the order of the calls. Never waits."""
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put((ready, then))

    def _interrupt(self) -> None:
        """See `WorkerThread`. It still waits for all copies: whoever else waits for one must not wait forever."""
        self._jobs.put(None)

    def _let_go(self) -> None:
        self._jobs = queue.SimpleQueue()  # each job that was not begun holds a snapshot

    # --- Copy waiter -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._did_next():
            pass

    def _did_next(self) -> bool:
        """Do one job; False if there are no more.

        A function, so that an idle thread holds no snapshot's buffer.
        """
        job = self._jobs.get()
        if job is None:
            return False
        ready, then = job
        ready()
        if not self._stopping:
            then()
        return True

    def _end(self) -> None:
        """See `WorkerThread`. Copies that are still under way are waited for, and nothing follows them."""
        while not self._jobs.empty():
            job = self._jobs.get()
            try:
                if job is not None:
                    job[0]()
            except BaseException as error:  # noqa: BLE001  as in the base: kept, raised to the trainer
                self.error = self.error or error
