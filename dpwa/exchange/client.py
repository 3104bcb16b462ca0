"""What an exchange needs of a transport.

Runs in: the thread that performs the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dpwa.exchange.messages import Lease, Meet, Message, Propose, PullRequest, Settle
from dpwa.exchange.slices import Slice
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import Codec

__all__ = ["Client", "Pulled"]


@dataclass(frozen=True)
class Pulled:
    """The peer's answer to a pull, and how its bytes came.

    Attributes:
        answer: `Offer` (then everything wanted has been received), or one of the answers without a snapshot.
        received_bytes: bytes of the snapshot received, as they travelled.
        is_shared: they were read from shared memory and did not travel at all.
        transfer_s: from the offer to the last byte.
        peer_layout: the peer's layout as text after a `Mismatch`, else empty.
        note: why shared memory was not used although it was offered; empty otherwise.
        codec: how they were encoded; None: not at all.
    """

    answer: Message
    received_bytes: int = 0
    is_shared: bool = False
    transfer_s: float = 0.0
    peer_layout: str = ""
    note: str = ""
    codec: Codec | None = None


class Client(Protocol):
    """The way to the peers."""

    patience_s: float
    """How long an answer may take that depends on another node's trainer or threads; 0: all answer at once."""

    def can_share(self, peer: str) -> bool:
        """Whether it is worth asking a peer for its shared memory."""
        ...

    def pull(
        self, peer: str, request: PullRequest, staging: Staging, part: Slice, within_s: float | None = None
    ) -> Pulled:
        """Ask a peer for its snapshot, or part of it, and receive it.

        Args:
            peer: whom.
            request: what is sent.
            staging: takes the bytes; `begin` is called when an offer has come, and again after a way that failed.
            part: which chunks are wanted.
            within_s: deadline, if shorter than the config's.

        Raises:
            PeerUnreachable: no connection in time, or it broke.
            PeerTimeout: connected, but no complete answer in time.
            RemoteProtocolError: the peer sent something illegal.
            NodeClosed: this node is being closed.
        """
        ...

    def know(self, peer: str, host: str, port: int, teller: str = "") -> None:
        """From now on a peer may be asked that is not in the cluster file, at this address.

        Args:
            peer: its name.
            host: of its address.
            port: there.
            teller: the member that has told of it, and is asked for its certificate where one is needed.

        Raises:
            NodeClosed: this node is being closed.
        """
        ...

    def forget(self, peer: str) -> None:
        """A peer that is not in the cluster file will not be asked any more: let go of all that belongs to it."""
        ...

    def request(self, peer: str, message: Propose | Settle | Meet | Lease) -> Message:
        """Send a message that is answered by one without a body, and return the answer.

        Raises:
            PeerUnreachable, PeerTimeout, RemoteProtocolError, NodeClosed: as for `pull`.
            ModelMismatch: the peer trains another model.
        """
        ...

    def pause(self, pause_s: float) -> None:
        """Wait a moment.

        Raises:
            NodeClosed: this node is being closed.
        """
        ...
