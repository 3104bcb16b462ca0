"""What the background threads of a node have in common."""

from __future__ import annotations

import threading

import pytest

from dpwa.transport.tx import TxThread
from dpwa.transport.worker_thread import WorkerThread
from support import DEADLINE_S


class Works(WorkerThread):
    """Does what a test says, until it is interrupted."""

    def __init__(self, does) -> None:
        super().__init__("test", "w1")
        self._does = does
        self.told = threading.Event()
        self.steps: list[str] = []

    def _work(self) -> None:
        self._does(self)

    def _end(self) -> None:
        self.steps.append(f"end, {self.error!r}")

    def _interrupt(self) -> None:
        self.told.set()

    def _let_go(self) -> None:
        self.steps.append("let go")


def wait_for_the_end(thread: Works) -> None:
    thread.told.wait(DEADLINE_S)


def test_a_stop_interrupts_the_work_and_what_it_was_reached_by_goes_last():
    thread = Works(wait_for_the_end)
    thread.start()
    assert thread.stop(DEADLINE_S)
    assert thread.steps == ["end, None", "let go"]
    assert thread.error is None


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3)])
def test_the_error_that_ends_the_work_is_kept_and_known_at_its_end(error):
    def fail(_: Works) -> None:
        raise error

    thread = Works(fail)
    thread.start()
    assert thread.stop(DEADLINE_S)
    assert thread.error is error
    assert thread.steps == [f"end, {error!r}", "let go"]


def test_a_thread_that_is_stuck_is_said_to_be_and_can_be_stopped_later():
    leave = threading.Event()
    thread = Works(lambda _: leave.wait(DEADLINE_S))
    thread.start()
    assert not thread.stop(0.0)
    assert thread.steps == []
    leave.set()
    assert thread.stop(DEADLINE_S)


def test_a_thread_that_never_began_can_be_stopped():
    thread = Works(wait_for_the_end)
    assert thread.stop(0.0)
    assert thread.stop(0.0)
    assert thread.steps == ["let go", "let go"]


def test_a_thread_that_is_busy_is_woken_once_however_often_others_call():
    thread = TxThread(name="w1", exchanger=None, make_client=None)
    for _ in range(1000):
        thread.wake()
    assert thread._jobs.qsize() == 1
    thread._let_go()
