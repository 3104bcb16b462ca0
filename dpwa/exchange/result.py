"""What an exchange is: how it is asked for, and how it ended.

Must not know: sockets, threads, how an exchange is made. Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from dpwa.exchange.lineage import Relation
from dpwa.exchange.messages import NO_EXCHANGE
from dpwa.methods.base import ExchangeKind
from dpwa.snapshot.codecs import Codec
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import State

__all__ = ["Ask", "Exchange", "Outcome"]


class Outcome(str, Enum):
    """How an exchange ended."""

    BLENDED = "blended"
    """Values have come, and are ready to be blended, or have been."""
    PUSHED = "pushed"
    """The peer has taken what was pushed."""
    RETURNED = "returned"
    """The peer did not take what was pushed: the mass is this node's again."""
    ABORTED = "aborted"
    """A pair fell through: neither side has moved."""
    LOST = "lost"
    """The peer vanished at the one moment in which only it knew what became of the exchange. Of a push: the mass is
    gone with it. Of a pair: this node has not moved, the peer may have."""
    TOLD = "told"
    """The peer knows that this node has finished; nothing was exchanged."""
    NOT_MODIFIED = "not_modified"
    """The peer has published nothing since the last exchange with it."""
    NOT_READY = "not_ready"
    """The peer has not published anything yet."""
    BUSY = "busy"
    """The peer serves too many others."""
    NO_PEER = "no_peer"
    """Every peer failed lately, and none is due for another chance."""
    GONE = "gone"
    """The peer had finished its training and has left."""
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    MISMATCH = "mismatch"
    """The peer trains another model."""
    REFUSED = "refused"
    """The peer belongs to another run, or does not know this node."""
    REJECTED = "rejected"
    """The peer's snapshot holds NaN or infinite values."""
    OWN_NOT_FINITE = "own_not_finite"
    """The own model holds NaN or infinite values: nothing can be blended into it, and no peer is to blame."""
    PROTOCOL_ERROR = "protocol_error"
    """The peer sent something illegal and was cut off."""

    @property
    def is_failure(self) -> bool:
        """Whether something is wrong with the peer or the way to it, as opposed to nothing to blend."""
        return self in _FAILURES


_FAILURES = frozenset(
    (
        Outcome.TIMED_OUT,
        Outcome.UNREACHABLE,
        Outcome.MISMATCH,
        Outcome.REFUSED,
        Outcome.REJECTED,
        Outcome.PROTOCOL_ERROR,
        Outcome.LOST,
    )
)


@dataclass(frozen=True)
class Ask:
    """What the trainer hands over to have an exchange made.

    Attributes:
        reference: the own snapshot of the exchange: what is given, and what the peer's is compared with; newer than
            the last blend.
        kind: the way to exchange; None only tells a peer that this node has finished.
        peers: whom to ask, with weights; None: any, with equal weights.
        fraction: share of the parameters to exchange, above 0 up to 1.
        mass: what a push carries.
        wait_s: how long a gathering may take.
        exchange: id of a push or pair.
        joining: the node joins: the whole model is pulled, and that of a peer that is far ahead taken over.
        finished: the trainer has ended its training.
    """

    reference: Snapshot
    kind: ExchangeKind | None = ExchangeKind.PULL
    peers: Mapping[str, float] | None = None
    fraction: float = 1.0
    mass: float = 0.0
    wait_s: float = 0.0
    exchange: bytes = NO_EXCHANGE
    joining: bool = False
    finished: bool = False


@dataclass(frozen=True)
class Exchange:
    """The end of an exchange, of an own one or of a peer's.

    Attributes:
        outcome: how it ended.
        ask: what it was made for; None for a peer's push or pair.
        kind: the way it was made.
        peer: the other node; of a gathering the last one; None after `NO_PEER`.
        exchange: id of a push or pair.
        version: of the peer's snapshot; 0 without one.
        reference: the own snapshot that it was compared with; None where it was not.
        peer_state: the peer's loss, clock, mass and round; None without a snapshot.
        factor: share of the peer by the interpolation (pull), 0 to 1.
        distance: of the two models, relative to the own; None where it was not measured.
        share: share of the parameters that came.
        is_shortened: it is less than was asked for, because the link is slow.
        weight: sum of the masses or weights that came.
        merged: how many snapshots came: several pushes, or the neighbours of a round.
        missed: neighbours whose snapshot of the round did not come in time.
        takes_over: the own model is replaced by the peer's.
        relation: what the peer's model is to the own one.
        elder: the peer whose model is to replace the own one, which takes a pull of all of it; None for nobody.
        staging: holds the values to blend; None without.
        received_bytes: bytes of snapshots received, as they travelled or were read.
        is_shared: they were read from shared memory.
        codec: how they were encoded.
        duration_s: from the choice of the peer to the end.
        reason: what went wrong, or why nothing was blended, for a person to read; empty after a success.
        note: why shared memory was not used although it was offered; empty otherwise.
    """

    outcome: Outcome
    ask: Ask | None
    kind: ExchangeKind | None = ExchangeKind.PULL
    peer: str | None = None
    exchange: bytes = NO_EXCHANGE
    version: int = 0
    reference: Snapshot | None = None
    peer_state: State | None = None
    factor: float = 0.0
    distance: float | None = None
    share: float = 0.0
    is_shortened: bool = False
    weight: float = 0.0
    merged: int = 0
    missed: int = 0
    takes_over: bool = False
    relation: Relation = Relation.SAME
    elder: str | None = None
    staging: Staging | None = None
    received_bytes: int = 0
    is_shared: bool = False
    codec: Codec = Codec.RAW
    duration_s: float = 0.0
    reason: str = ""
    note: str = ""
