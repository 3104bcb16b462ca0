"""What travels with a snapshot, the range of its numbers, and the names of codecs and stages. Imports no numpy.

Must not know: methods, rules, the wire. Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["MAX_COUNTER", "MAX_MASS", "MERGE_ID_BYTES", "UNMARKED", "Codec", "Mark", "MergeStage", "State"]

MAX_COUNTER: Final = 2**53
"""Versions, steps, nonces: every integer up to here is exact in a float, too; 1,000 a second last 285,000 years."""

MAX_MASS: Final = 2.0**20
"""The masses of a cluster sum up to 1 (GoSGD) or to the number of nodes (SGP)."""


MERGE_ID_BYTES: Final = 8


class MergeStage(IntEnum):
    """How far a node is on the way to the model that all have in common at the end. Append only."""

    APART = 0
    """It trains, or takes no part in the merge."""
    COMING = 1
    """It has finished and will take part; its model may still change."""
    FINAL = 2
    """Its model has been trained and averaged for the last time."""
    MERGED = 3
    """Its model is the mean of final models."""


class Mark(NamedTuple):
    """What a snapshot is to the merge at the end.

    Attributes:
        stage: see there.
        models: of how many final models it is the mean; at the stage `FINAL`: how many its node has fetched to make it.
        merge_id: a hash of which snapshots these are: marks are equal where the models are.
    """

    stage: MergeStage = MergeStage.APART
    models: int = 0
    merge_id: bytes = bytes(MERGE_ID_BYTES)

    def beats(self, other: Mark) -> bool:
        """Whether a node that holds the other one takes this one in its place: the one of more models wins."""
        if self.stage is not MergeStage.MERGED:
            return False
        return other.stage is not MergeStage.MERGED or (self.models, self.merge_id) > (other.models, other.merge_id)


UNMARKED: Final = Mark()


@dataclass(frozen=True)
class State:
    """What travels with a snapshot and a rule may look at.

    Attributes:
        loss: training loss of the model; None while the node has not computed one yet. NaN or infinity means that the
            model has diverged.
        clock: age of the model: the number of training updates that went into it.
        mass: weight of the model in the sum that push methods conserve; 0 with other methods.
        round: how many rounds of exchanges the node has been through.
        lineage: id of the models that this one has been averaged with; see `dpwa.snapshot.lineage`.
    """

    loss: float | None
    clock: float
    mass: float = 0.0
    round: int = 0
    lineage: bytes = field(default=bytes(8), repr=False)  # no number that a rule could use

    @property
    def has_diverged(self) -> bool:
        """Whether the loss is NaN or infinite."""
        return self.loss is not None and not math.isfinite(self.loss)


class Codec(IntEnum):
    """How a snapshot's bytes are encoded. Append only."""

    RAW = 0
    """Each tensor in its own dtype, little-endian, in the order of the layout."""
    FP16 = 1
    """Float16: half the bytes of float32."""
    BF16 = 2
    """Bfloat16: half the bytes, the range of float32, fewer digits."""
    INT8 = 3
    """8-bit integers with a scale per block: a quarter of the bytes."""

    @classmethod
    def known(cls, number: int) -> Codec:
        """The codec of a number; the plain one where a newer peer asks for one that this node does not know."""
        return cls(number) if number in cls.__members__.values() else cls.RAW
