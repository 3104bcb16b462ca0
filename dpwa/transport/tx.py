"""The Tx thread: makes this node's exchanges, one at a time, beside the training.

The trainer puts an ask into a mailbox of one and later takes the finished exchange out of another. Neither side ever
waits for the other unless the trainer says so.

Must not know: what an exchange consists of. Runs in: the thread named `dpwa-tx-…`; `ask`, `take` and `stop` are called
by the trainer's thread. Sockets are made, used and closed in the Tx thread alone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from dpwa.errors import NodeClosed
from dpwa.exchange import Ask, Exchange, Exchanger
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
        self._asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()  # at most one ask, and the mark to stop
        self._results: queue.SimpleQueue[Exchange] = queue.SimpleQueue()  # at most one
        self._bell = Doorbell()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-tx-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask(self, ask: Ask) -> None:
        """Have an exchange made. The caller has taken the result of the former one."""
        self._asks.put(ask)

    def take(self, wait_s: float) -> Exchange | None:
        """The finished exchange, or None if there is none within the wait."""
        try:
            return self._results.get(timeout=wait_s) if wait_s > 0 else self._results.get_nowait()
        except queue.Empty:
            return None

    def stop(self, timeout_s: float) -> bool:
        """End the thread, giving up an exchange under way; True if it ended in time. May be called again."""
        self._asks.put(None)
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._bell.close()
        return True

    # --- Tx thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with contextlib.closing(self._make_client(self._bell)) as client, contextlib.suppress(NodeClosed):
                while (ask := self._asks.get()) is not None:
                    self._results.put(self._exchanger.perform(ask, client))
                    del ask  # its snapshot's buffer must come back while this thread waits for the next
        except Exception as error:  # noqa: BLE001  the one broad catch of this thread: kept, and raised to the trainer
            self.error = error
