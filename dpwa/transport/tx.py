"""The Tx thread: makes this node's exchanges, one at a time, beside the training.

The trainer puts an ask into a mailbox of one and later finds the finished exchange among the results. Neither side ever
waits for the other unless the trainer says so. Between asks the thread goes on with what peers have proposed.

Must not know: what an exchange consists of. Runs in: the thread named `dpwa-tx-…`; `ask` and `stop` are called by
the trainer's thread, `wake` by any. Sockets are made, used and closed in the Tx thread alone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from dpwa.errors import InternalError, NodeClosed
from dpwa.exchange.exchanger import Exchanger
from dpwa.methods.exchange import ExchangeRequest
from dpwa.transport.client import ZmqClient
from dpwa.transport.doorbell import Doorbell

__all__ = ["TxThread"]


class TxThread:
    """Runs exchanges for one node.

    Args:
        name: the node's name, for the thread's name.
        exchanger: does the work.
        make_client: called in the thread; gets the bell that rings when a pull must be given up.
    """

    def __init__(self, *, name: str, exchanger: Exchanger, make_client: Callable[[Doorbell], ZmqClient]) -> None:
        self.error: BaseException | None = None
        self._exchanger = exchanger
        self._make_client = make_client
        self._jobs: queue.SimpleQueue[ExchangeRequest | None] = queue.SimpleQueue()  # at most one request; None: look
        self._stopping = False
        self._bell = Doorbell()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-tx-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask(self, request: ExchangeRequest) -> None:
        """Have an exchange made. The caller has taken the result of the former one."""
        self._jobs.put(request)

    def wake(self) -> None:
        """Have the thread look at the proposals."""
        self._jobs.put(None)

    def stop(self, timeout_s: float) -> bool:
        """End the thread, giving up an exchange under way; True if it ended in time. May be called again."""
        self._stopping = True
        self._jobs.put(None)
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._jobs = queue.SimpleQueue()  # a request that was not begun holds a snapshot
        self._bell.close()
        return True

    # --- Tx thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with contextlib.closing(self._make_client(self._bell)) as client:
                while not self._stopping:
                    self._do_next(client)
        except NodeClosed as error:
            if not self._stopping:
                self.error = InternalError(f"thread {self._thread.name} ended although nobody had asked it to")
                self.error.__cause__ = error
        except BaseException as error:  # noqa: BLE001  the one broad catch of this thread: kept, raised to the trainer
            self.error = error

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
