"""The Tx thread: makes this node's exchanges, one at a time, beside the training.

The trainer puts a request into a mailbox of one and later finds the result in its own. Neither side ever waits for the
other unless the trainer says so. Between requests the thread goes on with what peers have proposed.

Runs in: the thread named `dpwa-tx-…`; `ask` and `stop` are called by the trainer's thread, `wake` by any. Sockets are
made, used and closed in the Tx thread alone.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable

from dpwa.errors import InternalError, NodeClosed
from dpwa.exchange.exchanger import Exchanger
from dpwa.methods.exchange import ExchangeRequest
from dpwa.transport.client import ZmqClient
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.worker_thread import WorkerThread

__all__ = ["TxThread"]


class TxThread(WorkerThread):
    """Runs exchanges for one node.

    Args:
        name: the node's name, for the thread's name.
        exchanger: does the work.
        make_client: called in the thread; gets the bell that rings when a pull must be given up.
    """

    def __init__(self, *, name: str, exchanger: Exchanger, make_client: Callable[[Doorbell], ZmqClient]) -> None:
        super().__init__("tx", name)
        self._exchanger = exchanger
        self._make_client = make_client
        self._jobs: queue.SimpleQueue[ExchangeRequest | None] = queue.SimpleQueue()  # at most one request; None: look
        self._bell = Doorbell()

    def ask(self, request: ExchangeRequest) -> None:
        """Have an exchange made. The caller has taken the result of the former one."""
        self._jobs.put(request)

    def wake(self) -> None:
        """Have the thread look at the proposals. Once is enough, however often this is called before it does."""
        if self._jobs.empty():
            self._jobs.put(None)

    def _interrupt(self) -> None:
        """See `WorkerThread`. An exchange under way is given up."""
        self._jobs.put(None)
        self._bell.ring()

    def _let_go(self) -> None:
        self._jobs = queue.SimpleQueue()  # a request that was not begun holds a snapshot
        self._bell.close()

    # --- Tx thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with contextlib.closing(self._make_client(self._bell)) as client:
                while not self._stopping:
                    self._do_next(client)
        except NodeClosed as error:
            if not self._stopping:
                raise InternalError(f"thread {self._thread.name} ended although nobody had asked it to") from error

    def _do_next(self, client: ZmqClient) -> None:
        """Do one job. A function, so that a thread that waits holds no snapshot's buffer."""
        request = self._next_job()
        if request is not None:
            self._exchanger.perform(request, client)
        if not self._stopping:
            self._exchanger.work(client)

    def _next_job(self) -> ExchangeRequest | None:
        deadline_s = self._exchanger.next_deadline_s()
        if deadline_s is None:
            return self._jobs.get()
        try:
            return self._jobs.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            return None
