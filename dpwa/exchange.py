"""One exchange from the choice of a peer to values ready to blend.

Must not know: sockets, threads, the trainer. Runs in: the Tx thread, or the trainer's own under the in-memory
transport; the same code in both, so that what a test shows of one holds for the other.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from dpwa.blending import Staging
from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError, TransportError
from dpwa.interpolation import Interpolator, State
from dpwa.peers.flow_control import FlowControl
from dpwa.peers.membership import Membership
from dpwa.snapshot import Layout, Snapshot
from dpwa.transport.client import WINDOW, Client, Pulled
from dpwa.transport.wire import INCARNATION_BYTES, Busy, Codec, Mismatch, NotModified, Offer, Pull, Refused

__all__ = ["Ask", "Exchange", "Exchanger", "Outcome"]

_logger = logging.getLogger("dpwa")

# Updates that a peer must be ahead for a joining node to take its model whole. Half of a few dozen early updates is
# no loss to either side; half of an untrained model would be one to every peer that blends it later.
_JOIN_LEAD = 50

_NO_INCARNATION = bytes(INCARNATION_BYTES)


class Outcome(str, Enum):
    """How an exchange ended."""

    BLENDED = "blended"
    """The peer's snapshot is ready, or has been blended."""
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
    """The peer's snapshot, or the own, holds NaN or infinite values."""
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
    )
)

_OUTCOME_OF_ERROR: dict[type[TransportError], Outcome] = {
    PeerTimeout: Outcome.TIMED_OUT,
    PeerUnreachable: Outcome.UNREACHABLE,
    ModelMismatch: Outcome.MISMATCH,
    RemoteProtocolError: Outcome.PROTOCOL_ERROR,
}


@dataclass(frozen=True)
class Ask:
    """What the trainer hands over to have an exchange made.

    Attributes:
        reference: the own snapshot that the peer's is compared with; newer than the last blend.
        joining: this is the node's first exchange; a peer that is far ahead is then taken over whole.
        finished: the trainer has ended its training.
    """

    reference: Snapshot
    joining: bool = False
    finished: bool = False


@dataclass(frozen=True)
class Exchange:
    """The result of one exchange.

    Attributes:
        outcome: how it ended.
        peer: the peer asked; None after `NO_PEER`.
        ask: what it was made for.
        version: of the peer's snapshot; 0 without one.
        peer_state: the peer's loss and clock; None without a snapshot.
        factor: share of the peer in the blend, 0 to 1.
        received_bytes: bytes of the peer's snapshot.
        duration_s: from the choice of the peer to here.
        reason: what went wrong, for a person to read; empty after a success.
    """

    outcome: Outcome
    ask: Ask
    peer: str | None = None
    version: int = 0
    peer_state: State | None = None
    factor: float = 0.0
    received_bytes: int = 0
    duration_s: float = 0.0
    reason: str = ""


class Exchanger:
    """Makes exchanges for one node, one at a time.

    Args:
        run_id: of this run.
        node: own name.
        incarnation: random id of this life of the node.
        layout: of the own model.
        staging: receives the peer's bytes and holds the values to blend.
        interpolator: computes the factor.
        flow_control: chooses the peer.
        membership: who is there; told what peers say of themselves.
        monotonic_s: the clock; a simulation passes its own.
    """

    def __init__(
        self,
        *,
        run_id: str,
        node: str,
        incarnation: bytes,
        layout: Layout,
        staging: Staging,
        interpolator: Interpolator,
        flow_control: FlowControl,
        membership: Membership,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._run_id = run_id
        self._node = node
        self._incarnation = incarnation
        self._layout = layout
        self._staging = staging
        self._interpolator = interpolator
        self.flow_control = flow_control
        self._membership = membership
        self._monotonic_s = monotonic_s
        # A random start, so that a restarted node cannot take an answer to its former life for one to its own.
        self._nonce = secrets.randbits(32)
        self._blended: dict[str, tuple[bytes, int]] = {}  # incarnation and version last blended of each peer
        self._incarnations: dict[str, bytes | None] = {}
        self._warned: set[tuple[str, Outcome]] = set()

    def perform(self, ask: Ask, client: Client) -> Exchange:
        """Choose a peer, pull its snapshot and prepare the blend.

        Peer trouble is an outcome, never an exception.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        self._forgive_restarted_peers()
        start_s = self._monotonic_s()
        peer = self.flow_control.choose(start_s)
        if peer is None:
            return Exchange(Outcome.NO_PEER, ask, reason="every peer failed lately")
        try:
            exchange = self._pull(peer, ask, client)
        except (PeerTimeout, PeerUnreachable, ModelMismatch, RemoteProtocolError) as error:
            outcome = _OUTCOME_OF_ERROR[type(error)]
            if outcome is Outcome.UNREACHABLE and self._membership[peer].finished:
                outcome = Outcome.GONE
            exchange = Exchange(outcome, ask, peer, reason=str(error))
        now_s = self._monotonic_s()
        if exchange.outcome.is_failure:
            self.flow_control.failed(peer, now_s)
            self._warn_once(peer, exchange)
        elif exchange.outcome is Outcome.GONE:
            self.flow_control.failed(peer, now_s)  # it may come back, but is not worth asking often
        elif exchange.outcome is Outcome.BLENDED:
            self.flow_control.succeeded(peer)
        else:
            self.flow_control.answered(peer)
        return replace(exchange, duration_s=now_s - start_s)

    def _forgive_restarted_peers(self) -> None:
        for peer in self._membership.peers:
            incarnation = self._membership[peer].incarnation
            if incarnation != self._incarnations.get(peer):
                self._incarnations[peer] = incarnation
                self.flow_control.restarted(peer)

    def _pull(self, peer: str, ask: Ask, client: Client) -> Exchange:
        have_incarnation, have_version = self._blended.get(peer, (_NO_INCARNATION, 0))
        self._nonce += 1
        pulled = client.pull(
            peer,
            Pull(
                nonce=self._nonce,
                run=self._run_id,
                node=self._node,
                incarnation=self._incarnation,
                fingerprint=self._layout.fingerprint,
                have_incarnation=have_incarnation,
                have_version=have_version,
                codec=Codec.RAW,
                window=WINDOW,
                finished=ask.finished,
            ),
            self._staging.memory,
        )
        return self._examine(peer, ask, pulled)

    def _examine(self, peer: str, ask: Ask, pulled: Pulled) -> Exchange:
        answer = pulled.answer
        if isinstance(answer, Offer):
            self._note(peer, answer.incarnation, finished=answer.finished)
            self._blended[peer] = (answer.incarnation, answer.version)
            return self._prepare(peer, ask, answer)
        if isinstance(answer, NotModified):
            self._note(peer, answer.incarnation, finished=answer.finished)
            return Exchange(Outcome.NOT_MODIFIED, ask, peer)
        if isinstance(answer, Mismatch):
            difference = self._layout.first_difference(pulled.peer_layout)
            raise ModelMismatch(peer, f"trains another model; {difference}. All nodes must build the same model")
        if isinstance(answer, Refused):
            return Exchange(Outcome.REFUSED, ask, peer, reason=f"peer {peer} refused: {answer.reason}")
        return Exchange(Outcome.BUSY if isinstance(answer, Busy) else Outcome.NOT_READY, ask, peer)

    def _prepare(self, peer: str, ask: Ask, offer: Offer) -> Exchange:
        peer_state = State(loss=offer.loss, clock=offer.clock)
        finite = self._staging.prepare(ask.reference.memory)
        factor = self._interpolator.factor(ask.reference.state, peer_state) if finite else 0.0
        if ask.joining and factor > 0.0 and peer_state.clock >= ask.reference.state.clock + _JOIN_LEAD:
            factor = 1.0
        return Exchange(
            Outcome.BLENDED if finite else Outcome.REJECTED,
            ask,
            peer,
            offer.version,
            peer_state,
            factor=factor,
            received_bytes=offer.total_bytes,
            reason="" if finite else f"the snapshot of peer {peer}, or the own one, holds NaN or infinite values",
        )

    def _note(self, peer: str, incarnation: bytes, *, finished: bool) -> None:
        self._membership.heard(peer, incarnation, finished=finished)
        # An answer proves the peer's health as well as its new life: no need to forgive it once more.
        self._incarnations[peer] = incarnation

    def _warn_once(self, peer: str, exchange: Exchange) -> None:
        """Say it once per peer and kind: a cluster with a dead node must not fill its logs."""
        key = (peer, exchange.outcome)
        if key not in self._warned:
            self._warned.add(key)
            _logger.warning("node %s: %s (further ones only in the journal)", self._node, exchange.reason)
