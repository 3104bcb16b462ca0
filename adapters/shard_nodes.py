"""The node of an island whose processes hold parts of one model: each exchanges its own, and they keep step.

Each process has a node of dpwa for its part, with the same name, whose peers are the processes that hold the same part
on other islands. No process needs another one for an exchange: every element of the model is in one process only. So
parts may be blended with those of different peers in one step, as chunks are by `sparta`. Before each step the first
process tells the others the loss, which is the node's, and whether the node is to leave.

Must not know: how the processes reach each other, how nodes exchange. Runs in: the trainer's thread of each process.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from torch import Tensor

from dpwa import ConfigError, IslandError, Node

from .islands import Island
from .shards import gathered_state, return_to_shards
from .tensors import TorchModel

__all__ = ["ShardNode"]

_logger = logging.getLogger("dpwa")

# How often a process that finishes looks at what its peers have begun; and how often it asks whether the others have.
_ASK_S = 0.5
_MOST_SAID_BYTES = 512


class _Kind(IntEnum):
    """What the processes do next, all of them alike."""

    STEP = 1
    FINISH = 2
    LEAVE = 3


_DOES = {_Kind.STEP: "trains on", _Kind.FINISH: "has finished", _Kind.LEAVE: "leaves"}


class ShardNode:
    """One part's node: does what `Node` does, in step with the nodes of the other parts.

    Args:
        island: of this process.
        model: this process's part.
        node: the node for it.
        save: saves the whole model's state dict; called in the first process, when all can bring the parts together.
    """

    def __init__(
        self, island: Island, model: TorchModel, node: Node, save: Callable[[dict[str, Tensor]], None]
    ) -> None:
        self.is_saved = False
        """Whether the model has been saved."""
        self._island = island
        self._model = model
        self._node = node
        self._save = save
        self._loss: float | None = None
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def start(self) -> None:
        """Start the node; all of the island's have been started then.

        Raises:
            ConfigError: this one, or another one, cannot be started.
            IslandError: another process is gone.
        """
        problem: ConfigError | None = None
        try:
            self._node.start()
        except ConfigError as error:
            problem = error
        said = self._island.texts("" if problem is None else str(problem), _MOST_SAID_BYTES)
        self._island.refuse_alike(problem, said)

    def step(self, loss: float | None = None) -> None:
        """See `Node.step`; with the first process's loss.

        Raises:
            SystemExit: `dpwa leave` has asked the node to go.
            IslandError: another process is gone, or does something else.
        """
        self._agree(_Kind.STEP, loss)
        self._node.step(self._loss)

    def update_send(self, loss: float | None = None) -> None:  # noqa: ARG002 - the loss of the last step is the node's
        """See `Node.update_send`."""
        self._node.update_send(self._loss)

    def update_wait(self, loss: float | None = None) -> None:
        """See `Node.update_wait`. Raises as `step`."""
        self._agree(_Kind.STEP, loss)
        self._node.update_wait(self._loss)

    def finish(self, timeout_s: float | None = None, *, merge: bool | None = None) -> bool:
        """See `Node.finish`: when all parts have finished; what is true of the node is true of each of them.

        At the end all processes have the buffers of the first one, such as BatchNorm's statistics.
        """
        self._agree(_Kind.FINISH, self._loss)
        turns = self._node.finishing(timeout_s, merge=merge)
        answer: bool | None = None
        asked_s = time.monotonic()
        while True:
            if answer is None:
                try:
                    next(turns)
                except StopIteration as end:
                    answer = bool(end.value)
            if answer is None and time.monotonic() - asked_s < _ASK_S:
                self._node.pause()
                continue
            of_all = [json.loads(text) for text in self._island.texts(json.dumps(answer), _MOST_SAID_BYTES)]
            asked_s = time.monotonic()
            if None not in of_all:
                break
        self._island.share_tensors(self._model.buffers)
        self._tell_of_other_merges()
        self._save_whole()
        return all(of_all)

    @property
    def is_asked_to_leave(self) -> bool:
        """See `Node.is_asked_to_leave`. Who asks reaches the first process; the others leave in the same step."""
        is_asked = self._island.is_first and self._node.is_asked_to_leave
        if is_asked and not self._island.is_closed:
            self._island.tell([_Kind.LEAVE, self._steps, math.nan])
            self._save_whole()
        return is_asked

    def close(self) -> None:
        """See `Node.close`."""
        self._island.close()
        self._node.close()

    def _agree(self, kind: _Kind, loss: float | None) -> None:
        """See that all processes do the same next, with the first one's loss."""
        if self._island.is_closed or self._node.is_forked:
            return  # the node says so itself
        if self._island.is_first:
            self._loss = loss
            self._island.tell([kind, self._steps, math.nan if loss is None else loss])
        else:
            said, steps, told = self._island.hear(3)
            if said == _Kind.LEAVE:
                self._save_whole()
                raise SystemExit(0)
            if (said, steps) != (kind, self._steps):
                first, own = self._island.ranks[0], self._island.ranks[self._island.rank]
                raise IslandError(
                    f"node {self._node.name}: after {int(steps)} steps rank {first} {_DOES[_Kind(int(said))]}, and "
                    f"after {self._steps} rank {own}, of the same island, {_DOES[kind]}; give all of them the same "
                    "number of steps"
                )
            self._loss = None if math.isnan(told) else told
        self._steps += kind is _Kind.STEP

    def _save_whole(self) -> None:
        """Bring the parts together in the first process, and save them; all processes do this alike."""
        return_to_shards(self._model.module)
        state = gathered_state(self._model.module, is_wanted=self._island.is_first)
        if self._island.is_first:
            self._save(state)
        self.is_saved = True

    def _tell_of_other_merges(self) -> None:
        merged = self._node.statistics().merged_models
        of_all = [int(text) for text in self._island.texts(str(merged), _MOST_SAID_BYTES)]
        if self._island.is_first and len(set(of_all)) > 1:
            _logger.warning(
                "node %s: the parts of the model are means of %s models, by rank: a node came or went meanwhile",
                self._node.name,
                of_all,
            )
