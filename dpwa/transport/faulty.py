"""A way to the peers on which messages are lost, repeated, late, out of order, slow or cut off, for experiments.

It wraps what an exchange needs of a transport, so that the same faults hit ZeroMQ and the in-memory transport. A fault
costs the asker what it costs in reality: whoever gets no answer waits for it until the timeout. With a transport that
answers at once (`patience_s` is 0) nothing waits, and a delay or a rate is only counted.

Must not know: which peer to ask, what is exchanged, how faults are chosen. Runs in: the thread that makes the
exchanges; `LossyProposals.fetched` in the thread that serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpwa.errors import PeerTimeout, PeerUnreachable, TransportError
from dpwa.exchange.client import Client, Pulled
from dpwa.exchange.messages import Lease, Meet, Message, Offer, Propose, PullRequest, Settle
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.slices import Slice
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import Codec
from dpwa.transport.faults import Fate, Faults, Lost

__all__ = ["FaultyWay", "LossyProposals"]


class _Tap(Staging):
    """Stands before a staging, and sees each piece before that does. Without one behind it, throws all away."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, absolute=True)  # its own zeros are never touched, and take no memory
        self._behind: Staging | None = None
        self._on_piece: Callable[[int], None] | None = None

    def aim(self, behind: Staging | None, on_piece: Callable[[int], None] | None = None) -> None:
        """Stand before a staging; `on_piece` gets the size of each piece, and may raise."""
        self._behind, self._on_piece = behind, on_piece

    def begin(self, *, whole: bool) -> None:
        """See `Staging.begin`."""
        if self._behind is not None:
            self._behind.begin(whole=whole)

    def accept(self, first_byte: int, stop_byte: int, data: memoryview, codec: Codec = Codec.RAW) -> None:
        """See `Staging.accept`."""
        if self._on_piece is not None:
            self._on_piece(len(data))
        if self._behind is not None:
            self._behind.accept(first_byte, stop_byte, data, codec)


@dataclass
class _Attempt:
    """One request under way: what it is, when it began, and how long its answer is waited for."""

    peer: str
    hit: str
    began_s: float
    limit_s: float
    received_bytes: int = 0
    held_up_s: float = 0.0


class _FaultyClient:
    """A `Client` with faults; see there for the methods."""

    def __init__(
        self,
        inner: Client,
        faults: Faults,
        held: dict[str, Propose],
        tap: _Tap,
        monotonic_s: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self.patience_s = inner.patience_s
        self._timeout_s = timeout_s
        self._inner = inner
        self._faults = faults
        self._held = held
        self._tap = tap
        self._monotonic_s = monotonic_s

    def can_share(self, peer: str) -> bool:
        """See `Client.can_share`."""
        return self._inner.can_share(peer)

    def pause(self, pause_s: float) -> None:
        """See `Client.pause`."""
        self._inner.pause(pause_s)

    def pull(
        self, peer: str, request: PullRequest, staging: Staging, part: Slice, within_s: float | None = None
    ) -> Pulled:
        """See `Client.pull`."""
        attempt, fate = self._set_out(peer, "pull", within_s)
        is_watched = fate.lost is Lost.ANSWER or self._faults.options.bandwidth is not None
        if is_watched:
            self._tap.aim(staging, lambda size: self._on_piece(attempt, fate, size))
        left_s = self._left_s(attempt) if within_s is not None else None
        self._faults.lies.begin(peer, self._faults.step)
        pulled = self._inner.pull(peer, request, self._tap if is_watched else staging, part, left_s)
        if fate.lost is Lost.ANSWER:  # one without a snapshot
            self._lose(attempt, Lost.ANSWER)
        if attempt.held_up_s > 0:
            self._faults.happened(
                "bandwidth",
                peer=peer,
                hit=attempt.hit,
                bytes=attempt.received_bytes,
                waited_s=round(attempt.held_up_s, 6),
            )
        if fate.is_duplicated:
            self._faults.happened("duplicate", peer=peer, hit=attempt.hit)
            self._tap.aim(None)
            with contextlib.suppress(TransportError):
                self._inner.pull(peer, request, self._tap, part, within_s)
        if self._faults.options.noise.scale > 0 and isinstance(pulled.answer, Offer):
            self._faults.happened("noise", peer=peer, hit=attempt.hit)  # it was added while the values came
        lie = self._faults.lies.said(pulled.answer) if isinstance(pulled.answer, Offer) else None
        if lie is not None:
            self._faults.happened("lies", peer=peer, hit=attempt.hit)
            pulled = replace(pulled, answer=lie)
        return pulled

    def know(self, peer: str, host: str, port: int, teller: str = "") -> None:
        """See `Client.know`."""
        self._inner.know(peer, host, port, teller)

    def forget(self, peer: str) -> None:
        """See `Client.forget`."""
        self._inner.forget(peer)

    def request(self, peer: str, message: Propose | Settle | Meet | Lease) -> Message:
        """See `Client.request`."""
        is_proposal = isinstance(message, Propose)
        hit = "proposal" if is_proposal else "question"
        attempt, fate = self._set_out(peer, hit, None, can_be_held=is_proposal and peer not in self._held)
        if fate.is_held and isinstance(message, Propose):
            self._held[peer] = message
            self._faults.happened("reorder", peer=peer, hit=hit)
            raise self._timed_out(attempt, "the proposal was held back by an injected fault")
        answer = self._inner.request(peer, message)
        if fate.is_duplicated:
            self._faults.happened("duplicate", peer=peer, hit=hit)
            self._deliver(peer, message)
        if is_proposal and peer in self._held:
            self._deliver(peer, self._held.pop(peer))
        if fate.lost is Lost.ANSWER:
            self._lose(attempt, Lost.ANSWER)
        return answer

    def _deliver(self, peer: str, message: Propose | Settle | Meet | Lease) -> None:
        """Let a peer have a message, whatever it answers."""
        with contextlib.suppress(TransportError):
            self._inner.request(peer, message)

    def _set_out(
        self, peer: str, hit: str, within_s: float | None, *, can_be_held: bool = False
    ) -> tuple[_Attempt, Fate]:
        """Begin a request: raise if it does not reach the peer."""
        limit_s = self.patience_s if within_s is None else min(self.patience_s, within_s)
        attempt = _Attempt(peer, hit, self._monotonic_s(), limit_s)
        if self._faults.separates(peer):
            self._faults.happened("partition", peer=peer, hit=hit)
            raise PeerUnreachable(peer, "cut off by an injected partition")
        fate = self._faults.fate(can_be_held=can_be_held)
        if fate.delay_s > 0:
            self._faults.happened("delay", peer=peer, hit=hit, waited_s=round(fate.delay_s, 6))
            if self.patience_s > 0:
                self._inner.pause(min(fate.delay_s, limit_s))
        if fate.lost is Lost.REQUEST:
            self._lose(attempt, Lost.REQUEST)
        return attempt, fate

    def _on_piece(self, attempt: _Attempt, fate: Fate, size: int) -> None:
        """Look at a piece of the answer to a pull: let it pass, late if the link is slow, or lose it."""
        if fate.lost is Lost.ANSWER:
            self._lose(attempt, Lost.ANSWER)
        rate_bytes_per_s = self._faults.options.bandwidth_bytes_per_s
        if rate_bytes_per_s is None:
            return
        attempt.received_bytes += size
        due_s = attempt.received_bytes / rate_bytes_per_s
        if self.patience_s == 0:
            attempt.held_up_s = due_s
            return
        if due_s > attempt.limit_s:
            self._faults.happened("bandwidth", peer=attempt.peer, hit=attempt.hit, bytes=attempt.received_bytes)
            error = self._timed_out(attempt, "no complete answer in time over a link slowed down by an injected fault")
            error.received_bytes, error.transfer_s = int(rate_bytes_per_s * attempt.limit_s), attempt.limit_s
            raise error
        pause_s = attempt.began_s + due_s - self._monotonic_s()
        if pause_s > 0:
            attempt.held_up_s += pause_s
            self._inner.pause(pause_s)

    def _lose(self, attempt: _Attempt, lost: Lost) -> None:
        """Raise what the asker of a lost message sees."""
        self._faults.happened("drop", peer=attempt.peer, hit=attempt.hit, lost=lost.value)
        raise self._timed_out(attempt, f"the {lost.value} was lost by an injected fault")

    def _timed_out(self, attempt: _Attempt, reason: str) -> PeerTimeout:
        """The error after the wait for an answer that does not come."""
        left_s = self._left_s(attempt) if self.patience_s > 0 else self._timeout_s
        if left_s > 0:
            self._inner.pause(left_s)
        return PeerTimeout(attempt.peer, reason)

    def _left_s(self, attempt: _Attempt) -> float:
        return max(0.0, attempt.began_s + attempt.limit_s - self._monotonic_s())


class FaultyWay:
    """Puts faults between a node and its transport. The transport's client is wrapped once, when it is first seen.

    Args:
        faults: of the node.
        layout: of what is exchanged.
        monotonic_s: the clock.
        timeout_s: what a lost message costs where the transport answers at once; virtual time takes note of it.
    """

    def __init__(
        self, faults: Faults, *, layout: Layout, monotonic_s: Callable[[], float], timeout_s: float = 0.0
    ) -> None:
        self._faults = faults
        self._tap = _Tap(layout)
        self._monotonic_s = monotonic_s
        self._timeout_s = timeout_s
        self._held: dict[str, Propose] = {}
        self._known: tuple[Client, Client] | None = None

    def through(self, client: Client) -> Client:
        """The client with faults."""
        if self._known is None or self._known[0] is not client:
            faulty = _FaultyClient(client, self._faults, self._held, self._tap, self._monotonic_s, self._timeout_s)
            self._known = (client, faulty)
        return self._known[1]


class LossyProposals(Proposals):
    """Proposals of a node that may not hear that a peer has fetched one: then it has to ask.

    Args:
        node, incarnation: see `Proposals`.
        faults: of the node.
    """

    def __init__(self, node: str, incarnation: bytes, faults: Faults) -> None:
        super().__init__(node, incarnation)
        self._faults = faults

    def fetched(self, exchange_id: bytes) -> None:
        """See `Proposals.fetched`."""
        if self._faults.loses_done():
            own = self._own
            peer = own.peer if own is not None and own.exchange_id == exchange_id else None
            self._faults.happened("drop_done", peer=peer, hit="done")
            return
        super().fetched(exchange_id)
