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
from dpwa.parts import Part, Rotation
from dpwa.peers.flow_control import FlowControl
from dpwa.peers.link_codecs import LinkCodecs
from dpwa.peers.membership import Membership
from dpwa.snapshot import Layout, Snapshot
from dpwa.transport.pulling import Client, Pulled, Target
from dpwa.transport.reception import RUN
from dpwa.transport.wire import INCARNATION_BYTES, Busy, Codec, Mismatch, NotModified, Offer, Pull, Refused

__all__ = ["Ask", "Exchange", "Exchanger", "Outcome"]

_logger = logging.getLogger("dpwa")

# Updates that a peer must be ahead for a joining node to take its model whole. Half of a few dozen early updates is
# no loss to either side; half of an untrained model would be one to every peer that blends it later.
_JOIN_LEAD = 50

_NOTHING = (bytes(INCARNATION_BYTES), 0)


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
        fraction: share of the parameters to pull, above 0 up to 1.
        joining: this is the node's first exchange; a peer that is far ahead is then taken over whole.
        finished: the trainer has ended its training.
    """

    reference: Snapshot
    fraction: float = 1.0
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
        share: share of the parameters that was pulled.
        received_bytes: bytes of the peer's snapshot, as they travelled or were read.
        is_shared: they were read from shared memory.
        codec: how they were encoded.
        duration_s: from the choice of the peer to here.
        reason: what went wrong, for a person to read; empty after a success.
        note: why shared memory was not used although it was offered; empty otherwise.
    """

    outcome: Outcome
    ask: Ask
    peer: str | None = None
    version: int = 0
    peer_state: State | None = None
    factor: float = 0.0
    share: float = 0.0
    received_bytes: int = 0
    is_shared: bool = False
    codec: Codec = Codec.RAW
    duration_s: float = 0.0
    reason: str = ""
    note: str = ""


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
        rotation: chooses the part to pull.
        link_codecs: chooses the codec.
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
        rotation: Rotation,
        link_codecs: LinkCodecs,
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
        self._rotation = rotation
        self._link_codecs = link_codecs
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
            self._staging.finish()  # what was begun lets go of the own snapshot's buffer
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
        part = self._rotation.whole() if ask.joining else self._rotation.next(ask.fraction)
        # Another part of a snapshot that was blended in part is worth having; the whole of it a second time is not.
        known = self._blended.get(peer, _NOTHING) if part.is_whole else _NOTHING
        codec = self._link_codecs.choose(peer, self._layout.total_bytes * part.share)
        first, count = next(iter(part.requests(RUN)))
        self._nonce += 1
        request = Pull(
            nonce=self._nonce,
            run=self._run_id,
            node=self._node,
            incarnation=self._incarnation,
            fingerprint=self._layout.fingerprint,
            have_incarnation=known[0],
            have_version=known[1],
            codec=codec,
            chunk_bytes=part.chunk_bytes,
            first=first,
            count=count,
            shared=client.can_share(peer),
            finished=ask.finished,
        )
        pulled = client.pull(peer, request, Target(self._staging, ask.reference.memory, part))
        if not pulled.is_shared:
            self._link_codecs.measured(peer, pulled.received_bytes, pulled.transfer_s)
        return self._examine(peer, ask, part, codec, pulled)

    def _examine(self, peer: str, ask: Ask, part: Part, codec: Codec, pulled: Pulled) -> Exchange:
        answer = pulled.answer
        if isinstance(answer, Offer):
            self._note(peer, answer.incarnation, finished=answer.finished)
            if part.is_whole:
                self._blended[peer] = (answer.incarnation, answer.version)
            exchange = self._finish(peer, ask, answer)
            return replace(
                exchange,
                share=part.share,
                received_bytes=pulled.received_bytes,
                is_shared=pulled.is_shared,
                codec=Codec.RAW if pulled.is_shared else codec,
                note=pulled.note,
            )
        if isinstance(answer, NotModified):
            self._note(peer, answer.incarnation, finished=answer.finished)
            return Exchange(Outcome.NOT_MODIFIED, ask, peer)
        if isinstance(answer, Mismatch):
            difference = self._layout.first_difference(pulled.peer_layout)
            raise ModelMismatch(peer, f"trains another model; {difference}. All nodes must build the same model")
        if isinstance(answer, Refused):
            return Exchange(Outcome.REFUSED, ask, peer, reason=f"peer {peer} refused: {answer.reason}")
        return Exchange(Outcome.BUSY if isinstance(answer, Busy) else Outcome.NOT_READY, ask, peer)

    def _finish(self, peer: str, ask: Ask, offer: Offer) -> Exchange:
        if not self._staging.finish():
            reason = f"the snapshot of peer {peer}, or the own one, holds NaN or infinite values"
            return Exchange(Outcome.REJECTED, ask, peer, offer.version, reason=reason)
        own, peer_state = ask.reference.state, State(loss=offer.loss, clock=offer.clock)
        factor = self._interpolator.factor(own, peer_state)
        if ask.joining and factor > 0.0 and peer_state.clock >= own.clock + _JOIN_LEAD:
            factor = 1.0
        return Exchange(Outcome.BLENDED, ask, peer, offer.version, peer_state, factor)

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
