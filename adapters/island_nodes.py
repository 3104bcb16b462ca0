"""The node of an island: the first process leads, and all others follow it, step by step, to the bit.

The first process alone exchanges models with other nodes. Behind each step boundary it tells the others a word: what
became of the step, and the numbers that scripts ask for, such as the clock. If the boundary has changed the model, the
exchanged tensors follow, as they are in the first process then. So all processes of an island blend at the same step,
and train on from the same bits.

Must not know: how the processes reach each other, how nodes exchange. Runs in: the trainer's thread of each process.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from dpwa import ConfigError, Inventory, IslandError, Node, NodeClosed, NodeStatistics

from .checkpoint_files import Found
from .island_start import give_checkpoint, given_checkpoint
from .islands import Island
from .random_state import random_text, set_random_text
from .tensors import TorchModel

__all__ = ["Follower", "Leader", "telling_failure"]

# How often a node that finishes tells the others that it still waits: until then a follower does not notice SIGTERM, or
# that the node is gone.
_STILL_THERE_S = 1.0

# What the state of a process's random numbers takes, and more.
_MOST_RANDOM_BYTES = 1 << 16


class _Kind(IntEnum):
    """What a word says."""

    STEPPED = 1
    WAITING = 2
    FINISHED = 3
    LEFT = 4
    FAILED = 5


_DOES = {
    _Kind.STEPPED: "trains on",
    _Kind.WAITING: "has finished",
    _Kind.FINISHED: "has finished",
}


class _Word(NamedTuple):
    """What the first process tells. All are numbers that a float64 holds exactly; NaN is none."""

    kind: float
    has_changed: float = 0.0
    answer: float = 0.0
    step: float = 0.0
    clock: float = 0.0
    loss: float = math.nan
    asked: float = 0.0
    completed: float = 0.0
    blended: float = 0.0
    failures: float = 0.0
    merged_models: float = 0.0
    is_kept: float = 0.0


@contextlib.contextmanager
def telling_failure(island: Island | None) -> Iterator[None]:
    """Tell the others when the first process cannot do what they wait for, for whatever reason."""
    has_ended = False
    try:
        yield
        has_ended = True
    finally:
        if not (has_ended or island is None or island.is_closed):
            with contextlib.suppress(IslandError):
                island.tell(_Word(_Kind.FAILED))


class Leader:
    """The node in the first process of an island: does what `Node` does, and tells the others.

    Args:
        island: of this process.
        model: the model that the node changes.
        node: the node.
    """

    def __init__(self, island: Island, model: TorchModel, node: Node) -> None:
        self._island = island
        self._model = model
        self._node = node
        self._shared = -1  # the first word of all brings the tensors, whatever they are
        self._random: list[str] | None = None
        self.is_checkpoint_due: Callable[[], bool] = _never
        """Asked once in each step: whether a checkpoint is taken behind it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def begin(self, found: Found | None) -> None:
        """The node has been started, and its model is what training begins with.

        Args:
            found: the checkpoint that it goes on from.
        """
        self._island.tell(_Word(_Kind.STEPPED))
        give_checkpoint(self._island, found)
        self._tell(_Kind.STEPPED)

    def step(self, loss: float | None = None) -> None:
        """See `Node.step`."""
        with self._telling(_Kind.STEPPED):
            self._node.step(loss)

    def update_wait(self, loss: float | None = None) -> None:
        """See `Node.update_wait`."""
        with self._telling(_Kind.STEPPED):
            self._node.update_wait(loss)

    def finish(self, timeout_s: float | None = None, *, merge: bool | None = None) -> bool:
        """See `Node.finish`. What peers bring meanwhile goes to the others once, at the end."""
        with self._telling(_Kind.FINISHED) as word:
            turns, told_s = self._node.finishing(timeout_s, merge=merge), time.monotonic()
            while True:
                try:
                    next(turns)
                except StopIteration as end:
                    word["answer"] = answer = bool(end.value)
                    return answer
                self._node.pause()
                if time.monotonic() - told_s >= _STILL_THERE_S:
                    self._island.tell(_Word(_Kind.WAITING))
                    told_s = time.monotonic()

    def state_dict(self, timeout_s: float = 0.0) -> dict[str, Any]:
        """See `Node.state_dict`. Waits for no push: what it brought would change the model between two steps."""
        return self._node.state_dict(timeout_s)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Node.load_state_dict`. The next word brings the model, should only this process have loaded it."""
        self._node.load_state_dict(state)
        self._shared = -1

    def random_of_island(self) -> list[str] | None:
        """The random numbers of all processes, by rank, if a checkpoint is taken behind this step; else None."""
        return self._random

    @property
    def is_asked_to_leave(self) -> bool:
        """See `Node.is_asked_to_leave`; the others leave in this step, too."""
        is_asked = self._node.is_asked_to_leave
        if is_asked and not self._island.is_closed:
            self._tell(_Kind.LEFT)
        return is_asked

    def close(self) -> None:
        """See `Node.close`."""
        self._island.close()
        self._node.close()

    @contextlib.contextmanager
    def _telling(self, kind: _Kind) -> Iterator[dict[str, float]]:
        """Tell the others what becomes of a step, also if that is an error."""
        word = {"answer": 0.0}
        with telling_failure(self._island):
            yield word
        self._tell(kind, **word)

    def _tell(self, kind: _Kind, answer: float = 0.0) -> None:
        did, blends = self._node.statistics(), self._model.blends
        # At the end they are all the same, BatchNorm's statistics too, which each process has of its own batches.
        has_changed = blends != self._shared or kind is _Kind.FINISHED
        is_kept = kind is _Kind.STEPPED and self.is_checkpoint_due()
        self._island.tell(
            _Word(
                kind,
                has_changed,
                answer,
                did.step,
                did.clock,
                math.nan if did.loss is None else did.loss,
                did.asked,
                did.completed,
                did.blended,
                did.failures,
                did.merged_models,
                is_kept,
            )
        )
        if has_changed:
            self._island.share_tensors(self._model.tensors)
            self._shared = blends
        self._random = self._island.texts(random_text(), _MOST_RANDOM_BYTES) if is_kept else None


class Follower:
    """What stands for the node in the other processes of an island: takes over what the first one tells.

    Args:
        island: of this process.
        model: the same as in the first process.
        name: of the node.
    """

    def __init__(self, island: Island, model: TorchModel, name: str) -> None:
        self._island = island
        self._model = model
        self._name = name
        self._pid = os.getpid()
        self._word = _Word(_Kind.STEPPED)
        self.is_asked_to_leave = False
        """It hears of that in a step."""

    def begin(self) -> Found | None:
        """Wait until the node has been started; the checkpoint that it goes on from, if there is one.

        Raises:
            ConfigError: it could not be started.
            IslandError: it is gone.
        """
        try:
            self._hear()
        except _Failed as error:
            raise ConfigError(
                f"node {self._name}: rank {self._island.ranks[0]}, the first process of this island, could not start "
                "it; its own output says why"
            ) from error
        return given_checkpoint(self._island)

    def follow_start(self, random_of_island: Sequence[str] = ()) -> None:
        """Take the model that training begins with.

        Args:
            random_of_island: what a checkpoint has of the random numbers of all processes, by rank.

        Raises:
            IslandError: the first process is gone.
            ValueError: the checkpoint is damaged.
        """
        self._follow(_Kind.STEPPED)
        if len(random_of_island) == self._island.size:
            set_random_text(random_of_island[self._island.rank])

    @property
    def is_forked(self) -> bool:
        """See `Node.is_forked`."""
        return self._pid != os.getpid()

    def step(self, loss: float | None = None) -> None:  # noqa: ARG002 - the first process's counts
        """Take over what the first process made of this step.

        Raises:
            NodeClosed: after `close`.
            SystemExit: `dpwa leave` has asked the node to go.
            IslandError: the first process failed in this step, or has finished; or another one is gone.
        """
        self._follow(_Kind.STEPPED)

    def update_send(self, loss: float | None = None) -> None:
        """The model does not change here."""

    def update_wait(self, loss: float | None = None) -> None:
        """See `step`."""
        self.step(loss)

    def finish(self, timeout_s: float | None = None, *, merge: bool | None = None) -> bool:  # noqa: ARG002
        """Wait until the first process has finished, and take its model and its answer.

        Raises:
            NodeClosed: after `close`.
            IslandError: as `step`.
        """
        while self._follow(_Kind.FINISHED, _Kind.WAITING) is _Kind.WAITING:
            pass
        return bool(self._word.answer)

    def log(self, **values: object) -> None:
        """The metrics are the first process's."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the first process has it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the first process has it."""

    def statistics(self) -> NodeStatistics:
        """What the first process has told of the node; counts of bytes and peers are known there alone."""
        word = self._word
        inventory: Inventory = self._model.inventory
        return NodeStatistics(
            step=int(word.step),
            clock=word.clock,
            loss=None if math.isnan(word.loss) else word.loss,
            exchanges={},
            asked=word.asked,
            completed=int(word.completed),
            blended=int(word.blended),
            failures=int(word.failures),
            last_peer=None,
            last_factor=None,
            bytes_in=0,
            bytes_out=0,
            served=0,
            published=0,
            publish_skipped=0,
            protocol_errors=0,
            scores={},
            method={},
            merged_models=int(word.merged_models),
            **vars(inventory),
        )

    def close(self) -> None:
        """Follow no more."""
        self._island.close()

    def _follow(self, *expected: _Kind) -> _Kind:
        """Hear a word, and do what it says; which kind it was."""
        word, kind = self._hear()
        if kind not in (*expected, _Kind.LEFT):
            first, own = self._island.ranks[0], self._island.ranks[self._island.rank]
            raise IslandError(
                f"node {self._name}: after {int(self._word.step)} steps rank {first} {_DOES[kind]}, and rank {own}, of "
                f"the same island, {_DOES[expected[0]]}; give all of them the same number of steps"
            )
        if kind is _Kind.WAITING:
            return kind
        self._word = word
        if word.has_changed:
            self._island.share_tensors(self._model.tensors)
        if word.is_kept:
            self._island.texts(random_text(), _MOST_RANDOM_BYTES)
        if kind is _Kind.LEFT:
            raise SystemExit(0)
        return kind

    def _hear(self) -> tuple[_Word, _Kind]:
        if self.is_forked or self._island.is_closed:
            what = "lives in another process" if self.is_forked else "is closed"
            raise NodeClosed(f"node {self._name} {what}, expected running")
        word = _Word(*self._island.hear(len(_Word._fields)))
        kind = _Kind(int(word.kind))
        if kind is _Kind.FAILED:
            raise _Failed(
                f"node {self._name}: rank {self._island.ranks[0]}, the first process of this island, did not end its "
                "step; its own output says why"
            )
        return word, kind


def _never() -> bool:
    return False


class _Failed(IslandError):
    """The first process has failed."""
