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
from dataclasses import dataclass

from dpwa.errors import PeerTimeout, PeerUnreachable, TransportError
from dpwa.exchange.client import Client, Pulled, Target
from dpwa.exchange.messages import Message, Offer, Propose, PullRequest, Settle
from dpwa.exchange.proposals import Proposals
from dpwa.snapshot.codecs import Codec
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.staging import Staging
from dpwa.transport.faults import Fate, Faults, Lost

__all__ = ["FaultyWay", "LossyProposals"]


class _Tap(Staging):
    """Stands before a staging, and sees each piece before that does. Without one behind it, throws all away."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, absolute=True)  # its own zeros are never touched, and take no memory
        self._behind: Staging | None = None
        self._on_piece: Callable[[int], None] | None = None

    def aim(self, behind: Staging | None, on_piece: Callable[[int], None] | None = None) -> None:
        """Stand before a staging; `on_piece` is told the size of each piece, and may raise."""
        self._behind, self._on_piece = behind, on_piece

    def begin(self, reference: memoryview | None, *, whole: bool) -> None:
        """See `Staging.begin`."""
        if self._behind is not None:
            self._behind.begin(reference, whole=whole)

    def accept(self, first_byte: int, stop_byte: int, data: memoryview, codec: Codec = Codec.RAW) -> None:
        """See `Staging.accept`."""
        if self._on_piece is not None:
            self._on_piece(len(data))
        if self._behind is not None:
            self._behind.accept(first_byte, stop_byte, data, codec)


@dataclass
class _Ask:
    """One ask under way: what it is, when it began, and how long its answer is waited for."""

    peer: str
    hit: str
    began_s: float
    limit_s: float
    received_bytes: int = 0
    held_up_s: float = 0.0


class _FaultyClient:
    """A `Client` with faults; see there for the methods."""

    def __init__(
        self, inner: Client, faults: Faults, held: dict[str, Propose], tap: _Tap, monotonic_s: Callable[[], float]
    ) -> None:
        self.patience_s = inner.patience_s
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

    def pull(self, peer: str, pull: PullRequest, target: Target, within_s: float | None = None) -> Pulled:
        """See `Client.pull`."""
        ask, fate = self._set_out(peer, "pull", within_s)
        is_watched = fate.lost is Lost.ANSWER or self._faults.options.bandwidth is not None
        watched = target
        if is_watched:
            self._tap.aim(target.staging, lambda size: self._on_piece(ask, fate, size))
            watched = Target(self._tap, target.reference, target.part)
        pulled = self._inner.pull(peer, pull, watched, self._left_s(ask) if within_s is not None else None)
        if fate.lost is Lost.ANSWER:  # one without a snapshot
            self._lose(ask, Lost.ANSWER)
        if ask.held_up_s > 0:
            self._faults.happened(
                "bandwidth", peer=peer, hit=ask.hit, bytes=ask.received_bytes, waited_s=round(ask.held_up_s, 6)
            )
        if fate.is_duplicated:
            self._faults.happened("duplicate", peer=peer, hit=ask.hit)
            self._tap.aim(None)
            with contextlib.suppress(TransportError):
                self._inner.pull(peer, pull, Target(self._tap, target.reference, target.part), within_s)
        if self._faults.options.noise.scale > 0 and isinstance(pulled.answer, Offer):
            self._faults.happened("noise", peer=peer, hit=ask.hit)  # it was added while the values came
        return pulled

    def request(self, peer: str, message: Propose | Settle) -> Message:
        """See `Client.request`."""
        is_proposal = isinstance(message, Propose)
        hit = "proposal" if is_proposal else "question"
        ask, fate = self._set_out(peer, hit, None, can_be_held=is_proposal and peer not in self._held)
        if fate.is_held and isinstance(message, Propose):
            self._held[peer] = message
            self._faults.happened("reorder", peer=peer, hit=hit)
            raise self._timed_out(ask, "the proposal was held back by an injected fault")
        answer = self._inner.request(peer, message)
        if fate.is_duplicated:
            self._faults.happened("duplicate", peer=peer, hit=hit)
            self._deliver(peer, message)
        if is_proposal and peer in self._held:
            self._deliver(peer, self._held.pop(peer))
        if fate.lost is Lost.ANSWER:
            self._lose(ask, Lost.ANSWER)
        return answer

    def _deliver(self, peer: str, message: Propose | Settle) -> None:
        """Let a peer have a message, whatever it answers."""
        with contextlib.suppress(TransportError):
            self._inner.request(peer, message)

    def _set_out(self, peer: str, hit: str, within_s: float | None, *, can_be_held: bool = False) -> tuple[_Ask, Fate]:
        """Begin an ask: raise if it does not reach the peer."""
        limit_s = self.patience_s if within_s is None else min(self.patience_s, within_s)
        ask = _Ask(peer, hit, self._monotonic_s(), limit_s)
        if self._faults.separates(peer):
            self._faults.happened("partition", peer=peer, hit=hit)
            raise PeerUnreachable(peer, "cut off by an injected partition")
        fate = self._faults.fate(can_be_held=can_be_held)
        if fate.delay_s > 0:
            self._faults.happened("delay", peer=peer, hit=hit, waited_s=round(fate.delay_s, 6))
            if self.patience_s > 0:
                self._inner.pause(min(fate.delay_s, limit_s))
        if fate.lost is Lost.REQUEST:
            self._lose(ask, Lost.REQUEST)
        return ask, fate

    def _on_piece(self, ask: _Ask, fate: Fate, size: int) -> None:
        """Look at a piece of the answer to a pull: let it pass, late if the link is slow, or lose it."""
        if fate.lost is Lost.ANSWER:
            self._lose(ask, Lost.ANSWER)
        rate_bytes_per_s = self._faults.options.bandwidth_bytes_per_s
        if rate_bytes_per_s is None:
            return
        ask.received_bytes += size
        due_s = ask.received_bytes / rate_bytes_per_s
        if self.patience_s == 0:
            ask.held_up_s = due_s
            return
        if due_s > ask.limit_s:
            self._faults.happened("bandwidth", peer=ask.peer, hit=ask.hit, bytes=ask.received_bytes)
            error = self._timed_out(ask, "no complete answer in time over a link slowed down by an injected fault")
            error.received_bytes, error.transfer_s = int(rate_bytes_per_s * ask.limit_s), ask.limit_s
            raise error
        pause_s = ask.began_s + due_s - self._monotonic_s()
        if pause_s > 0:
            ask.held_up_s += pause_s
            self._inner.pause(pause_s)

    def _lose(self, ask: _Ask, lost: Lost) -> None:
        """Raise what the asker of a lost message sees."""
        self._faults.happened("drop", peer=ask.peer, hit=ask.hit, lost=lost.value)
        raise self._timed_out(ask, f"the {lost.value} was lost by an injected fault")

    def _timed_out(self, ask: _Ask, reason: str) -> PeerTimeout:
        """The error after the wait for an answer that does not come."""
        if self.patience_s > 0 and (left_s := self._left_s(ask)) > 0:
            self._inner.pause(left_s)
        return PeerTimeout(ask.peer, reason)

    def _left_s(self, ask: _Ask) -> float:
        return max(0.0, ask.began_s + ask.limit_s - self._monotonic_s())


class FaultyWay:
    """Puts faults between a node and its transport. The transport's client is wrapped once, when it is first seen.

    Args:
        faults: of the node.
        layout: of what is exchanged.
        monotonic_s: the clock.
    """

    def __init__(self, faults: Faults, *, layout: Layout, monotonic_s: Callable[[], float]) -> None:
        self._faults = faults
        self._tap = _Tap(layout)
        self._monotonic_s = monotonic_s
        self._held: dict[str, Propose] = {}
        self._known: tuple[Client, Client] | None = None

    def through(self, client: Client) -> Client:
        """The client with faults."""
        if self._known is None or self._known[0] is not client:
            faulty = _FaultyClient(client, self._faults, self._held, self._tap, self._monotonic_s)
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

    def fetched(self, exchange: bytes) -> None:
        """See `Proposals.fetched`."""
        if self._faults.loses_done():
            own = self._own
            peer = own.peer if own is not None and own.exchange == exchange else None
            self._faults.happened("drop_done", peer=peer, hit="done")
            return
        super().fetched(exchange)
