"""What makes a run worth little although every exchange succeeds: other initial weights, the same data, no way back.

- Nodes that began with other weights. Each says a checksum of its own in its snapshots. It is believed only where the
  models are far apart, too, when they are first averaged: a script may load the same weights after it made the adapter.
- A node whose peers cannot reach it: see `Reach`.
- Nodes that draw the same batches in the same order. Losses go up and down with the batches; if a peer's go where this
  node's went, step by step, much closer than this node's own go from step to step, the batches are the same.

Each is told once, in words, in the log and the journal. Nothing else hangs on it.

Must not know: how an exchange is made, files. Runs in: the trainer's thread; `begin` in the copy waiter for copies that
a GPU makes.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import ORIGIN_BYTES, UNKNOWN_ORIGIN
from dpwa.exchange.service import Service
from dpwa.methods.exchange import ExchangeResult
from dpwa.node.reach import Reach
from dpwa.snapshot.distance import sum_of_squares
from dpwa.snapshot.layout import Role, Section
from dpwa.snapshot.lineage import Relation
from dpwa.snapshot.staging import section_values

__all__ = ["Doubts", "origin_of"]

_logger = logging.getLogger("dpwa")

# Of each tensor at most about twice so many values are looked at, evenly spread: enough to tell two seeds apart.
_SAMPLES = 512

# Models of two seeds are about 1.4 times as far apart as they are long, less where most weights start as ones; those of
# one start come so far only by training that lets nothing of it remain.
_FAR = 0.3

# Losses of one peer that are compared at one time, and how much closer they must be than this node's own neighbours.
# By chance twenty in a row are so about once in 10^10.
_COMPARED = 20
_CLOSE = 0.2

# Of the compared losses at least so many are above their neighbours, and so many below: a loss that only falls says
# nothing of the batches.
_LEAST_TURNS = 4

# Steps whose losses are remembered, and losses of a peer that wait for this node to come to their step.
_REMEMBERED = 512
_WAITING = 64


@dataclass
class _Seen:
    """Losses of one peer beside this node's."""

    step: int = 0
    waiting: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_WAITING))
    noise: list[float] = field(default_factory=list)
    """This node's loss minus the mean of its neighbours, for each step compared."""
    apart: list[float] = field(default_factory=list)
    """The peer's loss minus this node's, for the same steps."""


class Doubts:
    """Doubts of one node.

    Args:
        node: its name.
        sections: of the model, without what the method sends beside it.
        membership: what peers have said of themselves.
        service: says this node's checksum.
        event: writes a line of the journal.
        reach: looks whether peers reach the node; None: nobody does.
    """

    def __init__(
        self,
        node: str,
        sections: Sequence[Section],
        membership: Membership,
        service: Service,
        event: Callable[..., None],
        reach: Reach | None = None,
    ) -> None:
        self._reach = reach
        self._node = node
        self._sections = tuple(sections)
        self._membership = membership
        self._service = service
        self._event = event
        self._told: set[str] = set()
        self._losses: dict[int, float] = {}
        self._step = 0
        self._seen: dict[str, _Seen] = {}

    def close(self) -> None:
        """Let go of the node: its memory must not wait for the garbage collector."""
        self._event = _ignore

    def begin(self, weights: memoryview) -> None:
        """Take the weights that the training begins with."""
        self._service.origin = origin_of(self._sections, weights)

    def forget_origin(self) -> None:
        """The model is another's now, or one of a checkpoint: what it began with says nothing of it."""
        self._service.origin = UNKNOWN_ORIGIN

    def forget(self, peer: str) -> None:
        """A peer is gone for good."""
        self._seen.pop(peer, None)

    def met(self, result: ExchangeResult) -> None:
        """Look at what an exchange has brought, before its staging is free."""
        peer = result.peer
        if peer is None:
            return
        if result.staging is not None and result.relation is Relation.NEAR and not result.takes_over:
            self._compare_origins(peer, result)
        unreached = None if self._reach is None else self._reach.met(peer)
        if unreached is not None:
            self._tell("unreached", None, unreached)
        loss = self._membership[peer].loss
        if loss is not None and self._losses:
            self._heard_loss(peer, *loss)

    def trained(self, step: int, loss: float) -> None:
        """A step of this node, with its loss."""
        if math.isfinite(loss):
            self._losses[step] = loss
            self._step = step
        self._losses.pop(step - _REMEMBERED, None)

    # --- Initial weights ------------------------------------------------------------------------------------------

    def _compare_origins(self, peer: str, result: ExchangeResult) -> None:
        own, theirs = self._service.origin, self._membership[peer].origin
        if own == theirs or UNKNOWN_ORIGIN in (own, theirs):
            return
        distance = self._distance(result)
        if distance > _FAR:
            self._tell(
                "other_weights",
                peer,
                f"peer {peer} began with other initial weights (the models are {distance:.0%} apart), and the mean of "
                "two such models is worth less than either. Seed before the model is built, alike on every node, or "
                "load the same weights (told once; docs/your-script.md)",
            )

    def _distance(self, result: ExchangeResult) -> float:
        """Of the two models, relative to this node's; infinite where it cannot be known."""
        if result.reference is None or result.share < 1.0:
            return math.inf
        memory = np.frombuffer(result.reference.memory, np.uint8)
        squares, own_squares = 0.0, 0.0
        for values, section in zip(result.values, self._sections, strict=False):
            if section.role is not Role.PARAMETER:
                continue
            own_values = section_values(section, memory)
            for own, came in zip(_samples(section, own_values), _samples(section, values.array), strict=True):
                difference = came if values.is_difference else came - own
                squares += sum_of_squares(difference)
                own_squares += sum_of_squares(own)
        return math.sqrt(squares / own_squares) if own_squares > 0 else math.inf

    # --- The same batches -----------------------------------------------------------------------------------------

    def _heard_loss(self, peer: str, step: int, loss: float) -> None:
        seen = self._seen.setdefault(peer, _Seen())
        if step == seen.step or not math.isfinite(loss) or "same_losses" in self._told:
            return
        seen.step = step
        seen.waiting.append((step, loss))
        while seen.waiting and seen.waiting[0][0] < self._step:
            at, theirs = seen.waiting.popleft()
            before, own, after = (self._losses.get(at + beside) for beside in (-1, 0, 1))
            if before is not None and own is not None and after is not None:
                seen.noise.append(own - (before + after) / 2)
                seen.apart.append(theirs - own)
        if len(seen.noise) >= _COMPARED:
            if _are_close(seen.apart, seen.noise):
                self._tell(
                    "same_losses",
                    peer,
                    f"its losses are those of peer {peer}, step by step: both seem to train on the same batches in the "
                    "same order, so that all work is done twice. Give each node its shard of the data, or seed the "
                    "data differently on each, after the model is made (told once; docs/your-script.md)",
                )
            seen.noise, seen.apart = [], []

    def _tell(self, about: str, peer: str | None, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._event("warning", about=about, peer=peer, text=text)
            _logger.warning("node %s: %s", self._node, text)


def origin_of(sections: Sequence[Section], weights: memoryview) -> bytes:
    """A checksum of a model's parameters, of evenly spread samples of each tensor; never that of an unknown one.

    Running statistics are left out: a batch before the training may have changed them, on each node otherwise.
    """
    memory, checksum = np.frombuffer(weights, np.uint8), 0
    for section in sections:
        if section.role is Role.PARAMETER:
            for sample in _samples(section, section_values(section, memory)):
                checksum = zlib.crc32(np.ascontiguousarray(sample).tobytes(), checksum)
    return (checksum or 1).to_bytes(ORIGIN_BYTES, "big")


def _samples(section: Section, values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for spec, first in section.offsets():
        yield values[first : first + spec.size : max(1, spec.size // _SAMPLES)]


def _are_close(apart: Sequence[float], noise: Sequence[float]) -> bool:
    """Whether losses are the same ones but for little, and rough enough to tell."""
    turns = min(sum(one > 0 for one in noise), sum(one < 0 for one in noise))
    total = sum(map(abs, noise))
    return turns >= _LEAST_TURNS and math.isfinite(total) and sum(map(abs, apart)) <= _CLOSE * total


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
