"""What a node answers when a peer asks for its parameters.

Both the Rx thread and the in-memory transport ask a `Service`, so that the rules stand once.

Must not know: sockets, threads, the clock (the time is passed in). Runs in: `answer` in the Rx thread; the attributes
are set by the trainer. Each is one reference that is swapped whole, so that no lock is needed: see the comments.
"""

from __future__ import annotations

from typing import Final

from dpwa.peers.membership import Membership
from dpwa.snapshot import Layout, Snapshot
from dpwa.transport.wire import (
    MAX_CHUNK_BYTES,
    TOKEN_BYTES,
    Message,
    Mismatch,
    NotModified,
    NotReady,
    Offer,
    Pull,
    Refused,
)

__all__ = ["Service"]

_NO_TOKEN: Final = bytes(TOKEN_BYTES)


class Service:
    """The serving side of a node.

    Args:
        run_id: pulls of another run are refused.
        incarnation: random id of this life of the node.
        layout: of this node's model.
        membership: told about every legal pull.
    """

    def __init__(self, *, run_id: str, incarnation: bytes, layout: Layout, membership: Membership) -> None:
        self.layout = layout
        self._run_id = run_id
        self._incarnation = incarnation
        self._membership = membership
        # Each set by the trainer in one assignment and read once per answer.
        self.token: bytes | None = None
        """Of the segment that snapshots with a slot stand in."""
        self.snapshot: Snapshot | None = None
        self.step = 0
        self.step_interval_s = 0.0
        self.finished = False
        # Set by `answer`, cleared by the trainer when it publishes. Losing a race here costs one step of age.
        self.wanted = False
        self.told_finished: set[str] = set()
        """Peers that know that this node has finished: they will not miss it. Adding to a set is atomic."""

    def answer(self, pull: Pull, *, now_s: float, may_wait: bool) -> tuple[Message, Snapshot | None] | None:
        """The answer to a pull, and the snapshot to send after an `Offer`.

        Args:
            pull: the request.
            now_s: monotonic time.
            may_wait: whether the caller can ask again after the next publish.

        Returns:
            None if `may_wait` and the next snapshot is the better answer: see `_next_is_better`.
        """
        nonce = pull.nonce
        if pull.run != self._run_id:
            return Refused(nonce, f"this node belongs to run {self._run_id}, the pull to another"), None
        if not self._membership.heard(pull.node, pull.incarnation, finished=pull.finished):
            return Refused(nonce, "the asking node is not in this node's cluster file"), None
        if pull.fingerprint != self.layout.fingerprint:
            return Mismatch(nonce), None
        if self.finished:
            self.told_finished.add(pull.node)
        self.wanted = True
        snapshot = self.snapshot
        if snapshot is None:
            return NotReady(nonce), None  # still joining; waiting here could make two joining nodes wait for each other
        known = pull.have_incarnation == self._incarnation and pull.have_version == snapshot.version
        if may_wait and self._next_is_better(snapshot, known=known, now_s=now_s):
            return None
        if known:
            return NotModified(nonce, self._incarnation, self.finished), None
        token, slot = self.token, snapshot.slot
        is_shared = pull.shared and token is not None and slot is not None
        offer = Offer(
            nonce=nonce,
            incarnation=self._incarnation,
            version=snapshot.version,
            clock=snapshot.state.clock,
            loss=snapshot.state.loss,
            total_bytes=self.layout.total_bytes,
            slot=slot if is_shared and slot is not None else -1,
            token=token if is_shared and token is not None else _NO_TOKEN,
            finished=self.finished,
        )
        return offer, snapshot

    def _next_is_better(self, snapshot: Snapshot, *, known: bool, now_s: float) -> bool:
        """Whether the asker should wait for the next publish, which its asking brings about at the next step.

        The asker compares what it gets with its own snapshot of the moment it asked. A peer's snapshot from half a
        step before that moment would take half a step off the common progress (times the factor), one from half a
        step later would add it. Giving the snapshot that is nearest in time makes both cancel out; it also makes
        lazy publishing invisible to the peers.
        """
        if known:
            return self.step > snapshot.step
        return now_s - snapshot.taken_s > self.step_interval_s / 2

    def longest_wait_s(self) -> float:
        """How long a pull may wait for the next publish: two steps. A trainer that pauses holds nobody up."""
        return 2 * self.step_interval_s

    def mismatch_body(self) -> bytes:
        """The layout as text, cut to one chunk, for the frame after a `Mismatch`."""
        return self.layout.text.encode()[:MAX_CHUNK_BYTES]
