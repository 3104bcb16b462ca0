"""SIGTERM ends a training script as Ctrl-C does: `with` blocks are left, the model is saved, and the exit code is 143.

By default SIGTERM ends a process on the spot, and it is what schedulers, `docker stop`, systemd and `kill` send. So
while a node lives, a handler raises SystemExit in the main thread instead, just where Ctrl-C would raise
KeyboardInterrupt. A script that wants something else sets its own handler, before or after: only the default action is
replaced, and only this handler is removed again.

- A forked child gets the default action back: a DataLoader worker dies of SIGTERM as always.
- The exception can get lost, as KeyboardInterrupt can: in a `__del__`, or in an `except:` that goes on. The next step
  of the training raises it again.
- SIGTERM may come twice: from a scheduler to every process, and again from the launcher. The second one must not
  interrupt the saving of the model.
- Workers that the same SIGTERM ends are no longer failures. torch reports those from its handler of SIGCHLD, in the
  middle of whatever the main thread does, so that handler is removed.

However else a process ends, short of SIGKILL, its nodes are closed, too: by the interpreter's end, by that of a
`multiprocessing.Process`, which may come without the interpreter's, or by an engine whose process lives on.

Must not know: models, torch. Runs in: the main thread; in others it has no effect, because Python allows no handlers.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import Finalize
from types import FrameType

from dpwa.engines.closers import forget_closer, remember_closer

__all__ = ["close_at_end", "closing", "end_with_agent", "has_closed", "raise_if_terminated", "watch"]

EXIT_CODE = 128 + signal.SIGTERM

# Another SIGTERM within this time is the same one, by another route.
_SAME_S = 1.0

# Of the header linux/prctl.h: the signal that a process gets when its parent ends.
_SET_DEATH_SIGNAL = 1

# Before daemons among the process's own children are ended, which is what 0 and more mean.
_EXIT_PRIORITY = 10

_finalizers: dict[Callable[[], object], Finalize] = {}

_living: weakref.WeakSet[object] = weakref.WeakSet()


@dataclass
class _State:
    """State of this process, which has one handler for all of its nodes.

    Attributes:
        pid: the process in which the handler was set.
        received_s: when SIGTERM came; None if it has not.
        was_raised: it has been raised as an exception.
        closing: how many nodes are being closed at this moment.
    """

    pid: int = 0
    received_s: float | None = None
    was_raised: bool = False
    closing: int = 0


_state = _State()


def end_with_agent() -> None:
    """Within a node of `dpwa launch`, let this process be killed with the agent of torchrun that has started it.

    The agent gives each of its processes a session of its own: they are not in the group that the launcher ends.
    """
    if os.environ.get("DPWA_NODE") and os.environ.get("TORCHELASTIC_RUN_ID") and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def close_at_end(close: Callable[[], object]) -> None:
    """Call this when the script ends, whatever its process is, until `has_closed`."""
    atexit.register(close)
    remember_closer(close)
    # A forked multiprocessing.Process ends without `atexit`. What a parent has registered does not run in its children.
    _finalizers[close] = Finalize(None, close, exitpriority=_EXIT_PRIORITY)


def has_closed(close: Callable[[], object]) -> None:
    """There is nothing to call any more."""
    atexit.unregister(close)
    forget_closer(close)
    finalizer = _finalizers.pop(close, None)
    if finalizer is not None:
        finalizer.cancel()


def watch(node: object) -> None:
    """From now until the end of `closing`, SIGTERM ends the script as Ctrl-C does, if its action is the default one."""
    _living.add(node)
    if _is_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        _state.pid = os.getpid()
        signal.signal(signal.SIGTERM, _end_script)


@contextmanager
def closing(node: object) -> Iterator[None]:
    """Wrap the closing of a node, which SIGTERM does not interrupt. After the last one the default action is back.

    Raises:
        SystemExit: SIGTERM came meanwhile.
    """
    _state.closing += 1
    try:
        yield
    finally:
        _state.closing -= 1
        _living.discard(node)
        is_pending = _state.received_s is not None and not _state.was_raised
        if not _living:
            _give_back()
    # When the interpreter ends, nothing is left to break off, and what is raised would be printed.
    if is_pending and _is_main_thread() and threading.main_thread().is_alive():
        raise SystemExit(EXIT_CODE)


def raise_if_terminated() -> None:
    """Raise the exception of SIGTERM again, if the script went on after all.

    Raises:
        SystemExit: with exit code 143.
    """
    if _state.received_s is not None and _is_main_thread():
        _state.was_raised = True
        raise SystemExit(EXIT_CODE)


def _end_script(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != _state.pid or not _living:  # forked without Python's knowledge, or closed in another thread
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    now_s = time.monotonic()
    is_known = _state.received_s is not None and now_s - _state.received_s < _SAME_S
    _state.received_s = now_s
    if is_known or _state.closing:
        return
    if callable(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _state.was_raised = True
    raise SystemExit(EXIT_CODE)


def _give_back() -> None:
    _state.received_s, _state.was_raised = None, False
    if _is_main_thread() and signal.getsignal(signal.SIGTERM) is _end_script:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# --- Forks ------------------------------------------------------------------------------------------------------------

# A SIGTERM that a child gets before it has the default action back would be lost: it waits until then.
_masks = threading.local()


def _hold_back() -> None:
    _masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if _living else None


def _let_through() -> None:
    former = getattr(_masks, "former", None)
    if former is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _forget_in_child() -> None:
    _living.clear()
    _state.closing = 0
    _give_back()
    _let_through()


os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_forget_in_child)
