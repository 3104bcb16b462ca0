"""The messages of protocol version 1, and the limits on what a peer can send.

`wire.py` turns them into bytes and back; docs/protocol.md tells who sends what and when.

Must not know: bytes, time. Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, Union

from dpwa.exchange.lease_words import Block, Entry
from dpwa.exchange.member_table import Member, MemberState
from dpwa.methods.exchange import NO_EXCHANGE
from dpwa.snapshot.state import MERGE_ID_BYTES, MergeStage

__all__ = [
    "EXCHANGE_ID_BYTES",
    "FINGERPRINT_BYTES",
    "HAS_BODY",
    "INCARNATION_BYTES",
    "LINEAGE_BYTES",
    "MAX_CERTIFICATE_BYTES",
    "MAX_CHUNKS",
    "MAX_CHUNK_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_MODELS",
    "MAX_NAME_CHARS",
    "MAX_PRESENT_BYTES",
    "MAX_SLOTS",
    "MAX_TEXT_CHARS",
    "MAX_WINDOW",
    "NEWEST_ROUND",
    "ORIGIN_BYTES",
    "PROTOCOL_VERSION",
    "TOKEN_BYTES",
    "UNKNOWN_ORIGIN",
    "Accepted",
    "Busy",
    "Chunk",
    "Done",
    "Lease",
    "Leased",
    "Meet",
    "Message",
    "MessageKind",
    "Met",
    "Mismatch",
    "More",
    "NotModified",
    "NotReady",
    "Offer",
    "Past",
    "Present",
    "Propose",
    "PullRequest",
    "Refused",
    "Settle",
    "Settled",
    "Verdict",
    "Vouch",
    "Vouched",
]

PROTOCOL_VERSION: Final = 1

# --- Limits on what a peer can send, each with its reason ---------------------------------------------------------

MAX_HEADER_BYTES: Final = 4096
"""The longest legal header takes about 700 bytes; msgpack may blow a header up seventyfold in memory: 280 KiB."""

MAX_CHUNK_BYTES: Final = 1 << 20
"""Frames of 256 KiB to 1 MiB move fastest, and bound what one frame can make the receiver allocate."""

MAX_FRAME_BYTES: Final = MAX_CHUNK_BYTES + MAX_HEADER_BYTES
"""Set as ZeroMQ's MAXMSGSIZE: a longer frame ends the connection before its memory is taken."""

MAX_WINDOW: Final = 16
"""Chunks that may be under way to one peer: what a peer that stops reading costs the server, in chunks."""

MAX_NAME_CHARS: Final = 64
"""As in the cluster file."""

MAX_TEXT_CHARS: Final = 256
"""A reason for a refusal is one line."""

MAX_CHUNKS: Final = 1 << 24
"""16 TiB in chunks of 1 MiB."""

MAX_SLOTS: Final = 32
"""Snapshot buffers of one node; the default is 3."""

MAX_MODELS: Final = 4096
"""Nodes of one cluster file."""

MAX_CERTIFICATE_BYTES: Final = 217
"""Two keys, two times, a signature and the longest name."""

MAX_PRESENT_BYTES: Final = MAX_CERTIFICATE_BYTES + 16
"""The one message that is read of somebody whose key nobody knows yet."""

INCARNATION_BYTES: Final = 8
EXCHANGE_ID_BYTES: Final = len(NO_EXCHANGE)
"""An incarnation, a number within it and random bits: no two proposals have one id, and a stranger can guess none."""

NEWEST_ROUND: Final = -1

LINEAGE_BYTES: Final = 8
TOKEN_BYTES: Final = 16
ORIGIN_BYTES: Final = 4
UNKNOWN_ORIGIN: Final = bytes(ORIGIN_BYTES)
"""Of a model that is none's own: restored from a checkpoint, or taken over from a peer."""

FINGERPRINT_BYTES: Final = 16


class MessageKind(IntEnum):
    """The number of each message on the wire. Append only: a number is never given a new meaning."""

    PULL = 1
    MORE = 2
    OFFER = 3
    CHUNK = 4
    NOT_MODIFIED = 5
    NOT_READY = 6
    BUSY = 7
    MISMATCH = 8
    REFUSED = 9
    DONE = 10
    PROPOSE = 11
    ACCEPTED = 12
    SETTLE = 13
    SETTLED = 14
    PAST = 15
    MEET = 16
    MET = 17
    PRESENT = 18
    VOUCH = 19
    VOUCHED = 20
    LEASE = 21
    LEASED = 22


class Verdict(IntEnum):
    """What became of a proposal, by word of the one who accepted it. Append only."""

    ABORTED = 0
    """Nothing was taken, and nothing ever will be under this id."""
    TAKEN = 1
    """The values have been received and are, or will be, part of the model."""
    PENDING = 2
    """They are still on their way."""


# --- Messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PullRequest:
    """Asks a peer for its newest snapshot. Tx to Rx."""

    KIND: ClassVar = MessageKind.PULL
    nonce: int
    """Chosen by the asker; every answer repeats it, so that late answers are recognised and dropped."""
    run: str
    node: str
    incarnation: bytes
    fingerprint: bytes
    """Of the asker's layout."""
    have_incarnation: bytes
    have_version: int
    """The snapshot of this peer that the asker blended last; version 0 for none."""
    codec: int
    chunk_bytes: int
    """Bytes of the snapshot per chunk (before the codec), a multiple of 64."""
    first: int
    count: int
    """Chunks to send at once; further ones follow `More`."""
    shared: bool
    """The asker would rather read the snapshot from shared memory; then no chunk is sent before a `More`."""
    finished: bool
    """The asker has ended its training and only waits for the others."""
    exchange_id: bytes = NO_EXCHANGE
    """The snapshot that was set aside for this proposal is wanted; all zero: the newest."""
    round: int = NEWEST_ROUND
    """The snapshot of this round is wanted; -1: the newest."""


@dataclass(frozen=True)
class More:
    """Asks for further chunks of the transfer that `PullRequest` began. Tx to Rx."""

    KIND: ClassVar = MessageKind.MORE
    nonce: int
    first: int
    count: int


@dataclass(frozen=True)
class Offer:
    """Describes the snapshot whose chunks follow. Rx to Tx."""

    KIND: ClassVar = MessageKind.OFFER
    nonce: int
    incarnation: bytes
    version: int
    clock: float
    loss: float | None
    """None: the peer has no loss yet. NaN or infinite: the peer has diverged and says so."""
    total_bytes: int
    slot: int
    """Where the snapshot stands in the server's shared segment; -1: not shared, the chunks follow."""
    token: bytes
    """What the segment's own header must say."""
    finished: bool
    mass: float = 0.0
    round: int = 0
    lineage: bytes = bytes(LINEAGE_BYTES)
    """Of the models that this one has been averaged with."""
    step: int = 0
    """Training steps that the sender had made in this life."""
    origin: bytes = UNKNOWN_ORIGIN
    """A checksum of the weights that the sender's training has begun with."""
    stage: int = MergeStage.APART
    """What the snapshot is to the merge at the end; `models` and `merge_id` belong to it."""
    models: int = 0
    merge_id: bytes = bytes(MERGE_ID_BYTES)


@dataclass(frozen=True)
class Chunk:
    """One piece of a snapshot; its bytes are the frame after this header. Rx to Tx."""

    KIND: ClassVar = MessageKind.CHUNK
    nonce: int
    index: int
    codec: int
    """The codec asked for, or `RAW` where it cannot hold a value of this chunk."""


@dataclass(frozen=True)
class Done:
    """The asker needs no more of the transfer: the server may reuse the snapshot's buffer. Tx to Rx."""

    KIND: ClassVar = MessageKind.DONE
    nonce: int


@dataclass(frozen=True)
class NotModified:
    """The asker already has the newest snapshot. Rx to Tx."""

    KIND: ClassVar = MessageKind.NOT_MODIFIED
    nonce: int
    incarnation: bytes
    finished: bool
    step: int = 0
    """As in `Settled`."""


@dataclass(frozen=True)
class NotReady:
    """Nothing has been published yet. Rx to Tx."""

    KIND: ClassVar = MessageKind.NOT_READY
    nonce: int


@dataclass(frozen=True)
class Busy:
    """Too many transfers are under way. Rx to Tx."""

    KIND: ClassVar = MessageKind.BUSY
    nonce: int


@dataclass(frozen=True)
class Mismatch:
    """The layouts differ; the frame after this header is the server's `Layout.text`, cut to one chunk. Rx to Tx."""

    KIND: ClassVar = MessageKind.MISMATCH
    nonce: int


@dataclass(frozen=True)
class Refused:
    """The server will not answer this asker. Rx to Tx."""

    KIND: ClassVar = MessageKind.REFUSED
    nonce: int
    reason: str


@dataclass(frozen=True)
class Propose:
    """Proposes an exchange that the asker begins: its snapshot waits to be fetched by the id. Tx to Rx."""

    KIND: ClassVar = MessageKind.PROPOSE
    nonce: int
    run: str
    node: str
    incarnation: bytes
    fingerprint: bytes
    exchange_id: bytes
    is_pair: bool
    """True: the other one's snapshot is wanted too, and both sides move or neither. False: a push."""
    mass: float
    """What a push carries."""
    clock: float
    loss: float | None
    round: int
    piece: int
    """First piece of the part to exchange."""
    pieces: int
    """Pieces in that part; 0: the whole snapshot."""
    previous: bytes = NO_EXCHANGE
    """The asker's last proposal that this peer has taken, which nobody else knows; all zero: none yet."""
    lineage: bytes = bytes(LINEAGE_BYTES)
    """Of the proposer's model."""


@dataclass(frozen=True)
class Accepted:
    """The proposal stands; its values will be fetched. Rx to Tx."""

    KIND: ClassVar = MessageKind.ACCEPTED
    nonce: int
    incarnation: bytes
    clock: float = 0.0
    """Of the model that the values are for: the proposer takes back what does not fit it."""
    lineage: bytes = bytes(LINEAGE_BYTES)
    """Of that model."""
    pieces: int = 0
    """Of the pieces of a pair that were proposed, so many from the first on; 0: all."""


@dataclass(frozen=True)
class Settle:
    """Asks what became of a proposal, or tells that its side of it is complete. Tx to Rx."""

    KIND: ClassVar = MessageKind.SETTLE
    nonce: int
    run: str
    node: str
    incarnation: bytes
    exchange_id: bytes
    """All zero: nothing to settle, the asker only tells that it has finished and asks the same."""
    gives_up: bool
    """The proposer has failed: nothing may be taken any more."""
    finished: bool


@dataclass(frozen=True)
class Settled:
    """The answer to `Settle`. Rx to Tx."""

    KIND: ClassVar = MessageKind.SETTLED
    nonce: int
    incarnation: bytes
    verdict: int
    finished: bool
    step: int = 0
    """Training steps that the sender has made in this life: while it grows, the sender trains."""
    stage: int = MergeStage.APART
    """How far the sender is on the way to the merged model, as in `Offer`."""
    models: int = 0
    merge_id: bytes = bytes(MERGE_ID_BYTES)


@dataclass(frozen=True)
class Past:
    """The round that was asked for is gone: the server has trained on. Rx to Tx."""

    KIND: ClassVar = MessageKind.PAST
    nonce: int
    incarnation: bytes
    finished: bool


@dataclass(frozen=True)
class Meet:
    """Tells a node of a cluster that nodes may join who the asker is, and asks for its table. Tx to Rx."""

    KIND: ClassVar = MessageKind.MEET
    nonce: int
    run: str
    node: str
    incarnation: bytes
    fingerprint: bytes
    """Of the asker's layout: a node that trains another model is no member."""
    claims: tuple[Member, ...]
    """The asker's own entry, and what it has heard of the node that it asks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", _as_members(self.claims))


@dataclass(frozen=True)
class Met:
    """The answer to `Meet`. Rx to Tx."""

    KIND: ClassVar = MessageKind.MET
    nonce: int
    incarnation: bytes
    members: tuple[Member, ...]
    """The sender's own entry, that of the asker if there is one, and as many of the others as there is room for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _as_members(self.members))


@dataclass(frozen=True)
class Present:
    """Shows the asker's certificate, as the first message of a connection; it has no answer. Tx to Rx."""

    KIND: ClassVar = MessageKind.PRESENT
    nonce: int
    """Always 0: nothing belongs to it."""
    certificate: bytes


@dataclass(frozen=True)
class Vouch:
    """Asks for the certificate of a member that the asked one has told of. Tx to Rx."""

    KIND: ClassVar = MessageKind.VOUCH
    nonce: int
    node: str
    name: str
    """Whose certificate is wanted."""


@dataclass(frozen=True)
class Vouched:
    """The answer to `Vouch`. Rx to Tx."""

    KIND: ClassVar = MessageKind.VOUCHED
    nonce: int
    certificate: bytes
    """Empty: the server knows none."""


@dataclass(frozen=True)
class Lease:
    """Asks for blocks of an epoch to train, and tells what the asker has trained. Tx to Rx."""

    KIND: ClassVar = MessageKind.LEASE
    nonce: int
    run: str
    node: str
    incarnation: bytes
    cut: bytes
    """A hash of how the asker cuts an epoch into blocks: all nodes must agree on that."""
    epoch: int
    """Blocks of this epoch are wanted, or of one before."""
    want: int
    """How many at most; 0: the asker only tells and hears."""
    word: int
    """Number of what the asker says, in this life."""
    floor: int
    """All epochs before this one are complete."""
    entries: tuple[Entry, ...]
    """What is trained, and what the asker has taken: all homes in which it has taken something, and others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(Entry(*entry) for entry in self.entries))


@dataclass(frozen=True)
class Leased:
    """The answer to `Lease`. Rx to Tx."""

    KIND: ClassVar = MessageKind.LEASED
    nonce: int
    incarnation: bytes
    granted: tuple[Block, ...]
    left: int
    """How many more blocks the sender could give."""
    word: int
    floor: int
    entries: tuple[Entry, ...]
    """As in `Lease`, of the sender."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "granted", tuple(Block(*block) for block in self.granted))
        object.__setattr__(self, "entries", tuple(Entry(*entry) for entry in self.entries))


def _as_members(entries: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(Member(name, host, port, number, MemberState(state)) for name, host, port, number, state in entries)


Message = Union[  # noqa: UP007 (used at run time on 3.10)
    PullRequest,
    More,
    Done,
    Offer,
    Chunk,
    NotModified,
    NotReady,
    Busy,
    Mismatch,
    Refused,
    Propose,
    Accepted,
    Settle,
    Settled,
    Past,
    Meet,
    Met,
    Present,
    Vouch,
    Vouched,
    Lease,
    Leased,
]

HAS_BODY: Final = (Chunk, Mismatch)
"""Messages whose header is followed by exactly one frame of bytes; all others stand alone."""
