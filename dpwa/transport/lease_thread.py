"""The thread that asks peers for blocks of data, beside the training and beside the exchanges.

It has connections of its own, so that no question waits for the end of a large pull. It is started when the node
shares out its first data set.

Runs in: the thread named `dpwa-lease-…`; `wake` and `stop` are called by any other. Sockets are made, used and closed
in that thread alone.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable

from dpwa.errors import InternalError, NodeClosed
from dpwa.exchange.leasing import Leasing
from dpwa.transport.client import ZmqClient
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.worker_thread import WorkerThread

__all__ = ["LeaseThread"]


class LeaseThread(WorkerThread):
    """Asks for one node.

    Args:
        name: the node's name, for the thread's name.
        leasing: says what to ask.
        make_client: called in the thread; gets the bell that rings when a question must be given up.
    """

    def __init__(self, *, name: str, leasing: Leasing, make_client: Callable[[Doorbell], ZmqClient]) -> None:
        super().__init__("lease", name)
        self._leasing = leasing
        self._make_client = make_client
        self._bell = Doorbell()
        self._is_due = threading.Event()

    def wake(self) -> None:
        """Have the thread look whether there is something to ask."""
        self._is_due.set()

    def _interrupt(self) -> None:
        self._bell.ring()
        self._is_due.set()

    def _let_go(self) -> None:
        self._bell.close()

    def _work(self) -> None:
        try:
            with contextlib.closing(self._make_client(self._bell)) as client:
                while not self._stopping:
                    self._is_due.clear()
                    due_s = self._leasing.work(client)
                    wait_s = due_s - self._leasing.monotonic_s()
                    if wait_s > 0 and not self._stopping:
                        self._is_due.wait(None if math.isinf(wait_s) else wait_s)
        except NodeClosed as error:
            if not self._stopping:
                raise InternalError(f"thread {self._thread.name} ended although nobody had asked it to") from error
