"""Snapshots whose bytes come later, as from a GPU: the training does not wait for them, and nobody reads them early."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest

from dpwa.errors import InternalError
from dpwa.transport.copy_waiter import CopyWaiter
from support import DEADLINE_S, VectorModel, step_until, wait_until


class LateModel(VectorModel):
    """Its copies are NaN until a function has been called that waits for leave: whoever looks too early is noticed."""

    def __init__(self, vector, *, held: bool = False) -> None:
        super().__init__(vector)
        self.leave = threading.Event()
        self.waiting = threading.Event()
        self.error: Exception | None = None
        if not held:
            self.leave.set()

    def copy_into(self, buffer):
        values, view = self.vector.copy(), buffer.view(np.float64)
        view[:] = np.nan

        def ready() -> None:
            self.waiting.set()
            assert self.leave.wait(DEADLINE_S)
            if self.error is not None:
                raise self.error
            view[:] = values

        return ready


def publish_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpwa-publish-")]


def test_late_copies_give_the_same_blends_as_copies_made_at_once(in_memory):
    def run(model_class) -> np.ndarray:
        in_memory.nodes.clear()
        in_memory.models.clear()
        in_memory.start([model_class(np.full(5, value)) for value in (0.0, 4.0, 9.0)], seed=3)
        in_memory.step_all(30, update=lambda index, model: model.vector.__iadd__(0.1 * index))
        vectors = in_memory.vectors()
        in_memory.close()
        return vectors

    late, at_once = run(LateModel), run(VectorModel)
    assert np.isfinite(late).all()
    assert late.tolist() == at_once.tolist()


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_nodes_with_late_copies_come_to_consensus_and_never_show_a_copy_too_early(zeromq, shared_memory):
    nodes = zeromq.start(
        [LateModel(np.full(1000, value)) for value in (0.0, 4.0)],
        constant={"value": 0.5},
        shared_memory=shared_memory,
    )

    def agree() -> bool:
        zeromq.step_all(1)
        return np.ptp(zeromq.vectors(), axis=0).max() < 1e-3

    wait_until(agree, "consensus")
    for node in nodes:
        statistics = node.statistics()
        assert "rejected" not in statistics.exchanges  # NaN was never pulled or compared with
        assert statistics.failures == 0


def test_an_idle_publish_thread_holds_no_snapshot():
    thread = CopyWaiter("w1")
    done: list[int] = []
    snapshot = np.zeros(1)
    gone = weakref.ref(snapshot)
    for number in range(3):
        thread.defer(lambda: None, lambda number=number, snapshot=snapshot: done.append(number + len(snapshot)))
    del snapshot
    wait_until(lambda: gone() is None, "nobody holds the snapshot")
    assert done == [1, 2, 3]
    assert thread.stop(DEADLINE_S)
    assert thread.stop(DEADLINE_S)


def test_a_model_that_is_copied_at_once_needs_no_publish_thread(zeromq):
    zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    zeromq.step_all(5)
    assert publish_threads() == []


def held_node(zeromq, **settings):
    """A node that has met its peer, and whose next copy will not end before `leave`."""
    model = LateModel([8.0])
    first, second = zeromq.start([model, VectorModel([0.0])], wait_ms=0, constant={"value": 0.25}, **settings)

    def both_have_blended() -> bool:
        second.step(1.0)
        return first.statistics().blended > 0 and second.statistics().blended > 0

    step_until(first, both_have_blended, "both have joined")
    model.leave.clear()
    model.waiting.clear()
    step_until(first, lambda: second.step(1.0) or model.waiting.is_set(), "a copy that does not end")
    return first, second, model


def test_the_trainer_goes_on_while_a_copy_has_not_ended(zeromq):
    first, _, model = held_node(zeromq)
    before = first.statistics().step
    start_s = time.monotonic()
    for _ in range(100):
        first.step(1.0)
    assert time.monotonic() - start_s < 2.0
    assert first.statistics().step == before + 100
    model.leave.set()


def test_peers_are_served_the_former_snapshot_until_the_next_is_complete(zeromq):
    first, second, model = held_node(zeromq)
    served = first._service.serving.snapshot
    answered = sum(second.statistics().exchanges.values())
    # The peer is answered meanwhile, though the node's newest copy has not ended.
    step_until(second, lambda: sum(second.statistics().exchanges.values()) >= answered + 3, "answers")
    assert first._service.serving.snapshot is served
    assert second.statistics().failures == 0
    model.leave.set()
    wait_until(lambda: first._service.serving.snapshot is not served, "the next snapshot is served")
    assert first._service.serving.snapshot.version > served.version
    assert np.isfinite(first._service.serving.snapshot.memory.cast("d")[0])


def test_an_exchange_begins_only_when_the_snapshot_that_it_refers_to_is_complete(zeromq):
    model = LateModel([8.0], held=True)
    first, second = zeromq.start([model, VectorModel([0.0])], wait_ms=0, constant={"value": 0.25})
    step_until(second, lambda: second._service.serving.snapshot is not None, "the peer can be asked")
    first.step(1.0)
    assert model.waiting.wait(DEADLINE_S)
    for _ in range(20):
        first.step(1.0)
        second.step(1.0)
    assert first.statistics().exchanges == {}
    assert model.vector.tolist() == [8.0]
    model.leave.set()
    step_until(first, lambda: second.step(1.0) or first.statistics().blended == 1, "the first blend")
    assert "rejected" not in first.statistics().exchanges
    assert model.vector[0] < 8.0


@pytest.mark.seconds
def test_closing_while_a_copy_does_not_end_takes_less_than_two_seconds_and_says_what_hangs(zeromq):
    first, _, model = held_node(zeromq)
    start_s = time.monotonic()
    with pytest.raises(InternalError, match=r"node w1: the copy waiter did not end within 1\.5 s"):
        first.close()
    assert time.monotonic() - start_s < 2.0
    first.close()
    served = first._service.serving.snapshot
    model.leave.set()
    wait_until(lambda: not publish_threads(), "the thread ends when the copy does")
    assert first._service.serving.snapshot is served  # nothing is handed out any more


def test_closing_waits_for_a_copy_that_ends_in_time(zeromq):
    first, _, model = held_node(zeromq)
    timer = threading.Timer(0.2, model.leave.set)
    timer.start()
    first.close()
    timer.join()
    assert publish_threads() == []


@pytest.mark.parametrize("method", ["sgp", "gosgd"])
def test_a_trainer_that_waits_for_a_copy_that_fails_gets_the_error(zeromq, method):
    model = LateModel([8.0])
    first, second = zeromq.start([model, VectorModel([0.0])], method=method, wait_ms=0)
    step_until(first, lambda: second.step(1.0) or first.statistics().blended > 1, "both exchange")
    model.error = RuntimeError("the GPU is gone")
    ended: list[BaseException] = []

    def train() -> None:
        try:
            while True:
                first.step(1.0)
        except InternalError as error:
            ended.append(error)

    trainer = threading.Thread(target=train, daemon=True)
    trainer.start()
    trainer.join(DEADLINE_S)
    assert not trainer.is_alive(), "it waits for ever"
    assert "the GPU is gone" in str(ended[0])
    with pytest.raises(InternalError, match="the GPU is gone"):
        first.close()


def test_of_two_copies_of_which_the_first_fails_the_second_is_waited_for_too():
    thread, waited = CopyWaiter("w1"), threading.Event()
    leave, followed = threading.Event(), []

    def fail() -> None:
        assert leave.wait(DEADLINE_S)
        raise RuntimeError("the GPU is gone")

    thread.defer(fail, lambda: followed.append(1))
    thread.defer(waited.set, lambda: followed.append(2))
    leave.set()
    assert waited.wait(DEADLINE_S)
    assert thread.stop(DEADLINE_S)
    assert followed == []
    assert "the GPU is gone" in str(thread.error)


def test_a_copy_that_fails_is_an_error_of_the_trainers_next_call(zeromq):
    first, _, model = held_node(zeromq)
    model.error = RuntimeError("the GPU is gone")
    model.leave.set()
    wait_until(lambda: not publish_threads(), "the thread has ended")
    with pytest.raises(InternalError, match=r"a background thread of node w1 ended by itself: .*the GPU is gone"):
        first.step(1.0)
    with pytest.raises(InternalError, match="the GPU is gone"):
        first.close()
