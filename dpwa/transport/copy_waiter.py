"""The copy waiter: hands out snapshots whose bytes are still on their way from a GPU.

A copy from a GPU ends when the GPU has done the work that was queued before it: a step later, perhaps. The trainer does
not wait for it, and no other thread can. The Rx thread serves other peers meanwhile. The Tx thread may be in a pull
that waits for a peer's next publish, and that peer for this one: each would hold up the other.

It is started by the first such copy, so models in the processor's memory never have it.

Must not know: GPUs, what a snapshot is. Runs in: the thread named `dpwa-publish-…`; `defer` and `stop` are called by
the trainer's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["CopyWaiter"]

Job = tuple[Callable[[], None], Callable[[], None]]


class CopyWaiter:
    """Waits for one thing after the other, and does what is to follow each.

    Args:
        name: the node's name, for the thread's name.
    """

    def __init__(self, name: str) -> None:
        self.error: BaseException | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # no more than there are snapshot buffers
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"dpwa-publish-{name}", daemon=True)

    def defer(self, ready: Callable[[], None], then: Callable[[], None]) -> None:
        """Have `ready` called, which blocks, and `then` after it; in the order of the calls. Never waits."""
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put((ready, then))

    def stop(self, timeout_s: float) -> bool:
        """End the thread; nothing follows what it waits for. True if it ended in time. May be called again.

        It still waits for all copies: whoever else waits for one of them must not wait for ever.
        """
        self._stopping = True
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._jobs = queue.SimpleQueue()  # each job that was not begun holds a snapshot
        return True

    # --- Copy waiter -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._did_next():
            pass
        while not self._jobs.empty():  # of what is deferred after an error, nobody waits for the end
            self._did_next()

    def _did_next(self) -> bool:
        """Do one job; False if it failed or there are no more.

        A function, so that an idle thread holds no snapshot's buffer.
        """
        job = self._jobs.get()
        if job is None:
            return False
        ready, then = job
        try:
            ready()
            if not self._stopping and self.error is None:
                then()
        except BaseException as error:  # noqa: BLE001  the one broad catch of this thread: kept, raised to the trainer
            self.error = self.error or error
        return self.error is None
