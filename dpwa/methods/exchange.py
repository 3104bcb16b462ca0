"""What an exchange is: a method's plan, the request that the node makes of it, and the result.

These three records are the whole of what the trainer, the exchanging thread and a method say to each other. They stand
beside the methods, which know nothing above them: a method writes the plan and reads the result.

Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from dpwa.snapshot.lineage import Relation
from dpwa.snapshot.state import UNMARKED, Codec, Mark, State

if TYPE_CHECKING:  # numpy, which a launcher does not need: it reads the cluster file's keys from the methods
    from dpwa.snapshot.layout import Snapshot
    from dpwa.snapshot.staging import Staging, Values

__all__ = ["NO_EXCHANGE", "ExchangeKind", "ExchangeRequest", "ExchangeResult", "Outcome", "Plan"]

NO_EXCHANGE: Final = bytes(16)
"""The `exchange_id` of what has none: a pull or a gathering."""

_UNKNOWN_STATE = State(loss=None, clock=0.0)


class ExchangeKind(str, Enum):
    """The ways to exchange; each is a protocol between two nodes."""

    PULL = "pull"
    """Fetch the newest snapshot of one peer. Nothing changes there."""
    GATHER = "gather"
    """Fetch the snapshots of one round from all in-neighbours."""
    PUSH = "push"
    """Give this node's snapshot and a mass to one peer, exactly once or not at all."""
    PAIR = "pair"
    """Change places with one peer's snapshot: both sides move by the same two snapshots, or neither."""


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
    """This node's model holds NaN or infinite values: nothing can be blended into it, and no peer is to blame."""
    PROTOCOL_ERROR = "protocol_error"
    """The peer sent something illegal and was cut off."""

    @property
    def is_failure(self) -> bool:
        """Whether something is wrong with the peer or the way to it, as opposed to nothing to blend."""
        return self in _FAILURES

    @property
    def has_snapshot(self) -> bool:
        """Whether a snapshot was fetched, whatever it was worth."""
        return self in (Outcome.BLENDED, Outcome.REJECTED, Outcome.OWN_NOT_FINITE)


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
class Plan:
    """An exchange to begin.

    Attributes:
        kind: the way to exchange; None only tells a peer that this node has finished.
        peers: whom to ask: names with weights, by which one is chosen (GATHER: all, and the weights are those of the
            blend). None: any peer, all with equal weight.
        fraction: share of the parameters to exchange, above 0 up to 1.
        mass: what a push carries.
        wait_s: how long a gathering may take, and how long the next step may wait for the exchange to end.
    """

    kind: ExchangeKind | None
    peers: Mapping[str, float] | None = None
    fraction: float = 1.0
    mass: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True)
class ExchangeRequest:
    """What the trainer hands over to have an exchange made.

    Attributes:
        plan: the method's.
        reference: this node's snapshot of the exchange: what is given, and what the peer's is compared with; newer than
            the last blend.
        exchange_id: of a push or pair.
        joining: the node joins: the whole model is pulled, and that of a peer that is far ahead taken over.
        finished: the trainer has ended its training.
        merging: the whole of a final or merged model is wanted as it is, and nothing else.
        copying: the node has made no step yet, and joins a cluster that trains: any trained model replaces its own.
    """

    plan: Plan
    reference: Snapshot
    exchange_id: bytes = NO_EXCHANGE
    joining: bool = False
    finished: bool = False
    merging: bool = False
    copying: bool = False

    def ended(self, outcome: Outcome, peer: str | None = None, reason: str = "") -> ExchangeResult:
        """The result without values."""
        return ExchangeResult(outcome, self.plan.kind, self, peer, self.exchange_id, reason=reason)


@dataclass(frozen=True)
class ExchangeResult:
    """What came of an exchange, of this node's own or of a peer's, and how it ended.

    Attributes:
        outcome: how it ended. A method sees only `BLENDED`.
        kind: the way it was made.
        request: what it was made for; None for a peer's push or pair.
        peer: the other node; of a gathering the last one; None after `NO_PEER`.
        exchange_id: of a push or pair.
        version: of the peer's snapshot; 0 without one.
        incarnation: the life of the peer that made that snapshot; empty without one.
        checksum: of the snapshot as it came, if it came whole, as it is, and checksums are asked for; else None.
        peer_state: state of the peer's snapshot, of the last one when several were merged; says nothing without values.
        said: state of the peer's snapshot as the peer gave it; `peer_state` is what of it is believed.
        believed_share: share of the step towards the peer that the guard lets pass.
        reference: this node's snapshot that differences were made against; None where values are absolute, or there
            are none.
        staging: holds the values to blend; None without.
        factor: share of the peer by the interpolation (PULL), else 0.
        distance: of the two models, relative to this node's; None where it was not measured.
        share: share of the parameters that came.
        weight: sum of the masses (PUSH) or weights (GATHER) that came.
        merged: how many snapshots came: more than one are several pushes, or the neighbours of a round.
        missed: neighbours whose snapshot of the round did not come in time.
        takes_over: the peer's model replaces this node's.
        relation: of the peer's model to this node's.
        mark: what the peer's snapshot is to the merge at the end.
        elder: the peer whose model is to replace this node's, which takes a pull of all of it; None: nobody's is.
        received_bytes: bytes of snapshots received, as they travelled or were read.
        is_shared: they were read from shared memory.
        codec: how they were encoded.
        duration_s: from the choice of the peer to the end.
        reason: what went wrong, or why nothing was blended, for a person to read; empty after a success.
        note: why shared memory was not used although it was offered; empty otherwise.
    """

    outcome: Outcome
    kind: ExchangeKind | None
    request: ExchangeRequest | None = None
    peer: str | None = None
    exchange_id: bytes = NO_EXCHANGE
    version: int = 0
    incarnation: bytes = b""
    checksum: int | None = None
    peer_state: State = _UNKNOWN_STATE
    said: State = _UNKNOWN_STATE
    believed_share: float = 1.0
    reference: Snapshot | None = None
    staging: Staging | None = None
    factor: float = 0.0
    distance: float | None = None
    share: float = 0.0
    weight: float = 0.0
    merged: int = 0
    missed: int = 0
    takes_over: bool = False
    relation: Relation = Relation.SAME
    mark: Mark = UNMARKED
    elder: str | None = None
    received_bytes: int = 0
    is_shared: bool = False
    codec: Codec = Codec.RAW
    duration_s: float = 0.0
    reason: str = ""
    note: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether another peer, or a later step, may have what was asked for: room for a pair, or a model that is new.

        Only of what a method plans while it trains: not of a pull to join, to merge or to part.
        """
        if self.kind is ExchangeKind.PAIR:
            return self.outcome is Outcome.BUSY
        request = self.request
        is_of_training = request is not None and not (request.joining or request.merging or request.finished)
        return self.kind is ExchangeKind.PULL and is_of_training and self.outcome is Outcome.NOT_MODIFIED

    @property
    def values(self) -> Sequence[Values]:
        """Section by section: differences from the reference, or the peer's values. A method may change them."""
        return () if self.staging is None else self.staging.values
