"""When a node that has finished its training may leave the others, and whom it leaves behind.

It stays while peers train, however long that takes, and leaves behind

- who is silent: gives no answer, and asks nothing, for `SILENT_S`, or `RESTART_S` where whatever fails is started anew;
- who answers, and makes no step for `STANDSTILL_S`: a long evaluation fits in, a trainer that hangs does not;
- everybody, after `LEAST_PATIENCE_S` or `PATIENCE` times as long as the node itself has trained: whoever makes steps
  for ever, or says so, holds nobody for ever.

Whoever leaves before the last peer has asked it is taken for a failure by that peer. That peers train or have finished
counts by what they answered to this node: anybody could send requests in their names. Such a request only keeps a
silent peer from being given up at once.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.service import Service
from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome

__all__ = [
    "BETWEEN_ASKS_S",
    "LEAST_PATIENCE_S",
    "PACE",
    "PATIENCE",
    "RESTART_S",
    "SILENT_S",
    "STANDSTILL_S",
    "Farewell",
]

_logger = logging.getLogger("dpwa")

SILENT_S = 10.0
RESTART_S = 60.0
STANDSTILL_S = 600.0
LEAST_PATIENCE_S = 3600.0
PATIENCE = 10.0

# A wait of so long is told.
_LONG_S = 10.0

# Until a peer that has finished has asked this node whether it has, too: it does so next.
_FAREWELL_S = 1.0

# In a long wait each peer is asked about twice a second: those that train need the processor more.
BETWEEN_ASKS_S = 0.5
PACE = 1 / 40

# Peers named in one line.
_MOST_NAMES = 8

_ANSWERS = frozenset(
    (
        Outcome.BLENDED,
        Outcome.REJECTED,
        Outcome.OWN_NOT_FINITE,
        Outcome.PUSHED,
        Outcome.TOLD,
        Outcome.NOT_MODIFIED,
        Outcome.NOT_READY,
        Outcome.BUSY,
    )
)
_SILENCES = frozenset((Outcome.TIMED_OUT, Outcome.UNREACHABLE, Outcome.PROTOCOL_ERROR))

# It has left as it should, or has nothing to do with this node: another model, another run.
_PARTINGS = frozenset((Outcome.GONE, Outcome.MISMATCH, Outcome.REFUSED))


@dataclass
class _Signs:
    """What one peer has shown of itself."""

    incarnation: bytes | None = None
    step: int = 0
    progress_s: float = -math.inf
    """When it was last seen with another step, or in another life."""
    silent_s: float | None = None
    """Since when it has not answered; None: it has answered last time, or was never asked."""
    tried_s: float = -math.inf
    """When it was last asked in vain."""
    has_parted: bool = False
    is_starting: bool = False
    """It has published nothing in its present life, whatever a former one has said."""


class Farewell:
    """The farewell of one node.

    Args:
        node: its name.
        context: of the node's exchanges.
        service: knows who has asked.
        event: writes a line of the journal.
    """

    def __init__(
        self,
        node: str,
        context: ExchangeContext,
        service: Service,
        event: Callable[..., None],
    ) -> None:
        self.peers_restart = False
        """Whether nodes that fail are started anew, so that a silent one is probably loading."""
        self._node = node
        self._membership = context.membership
        self._flow_control = context.flow_control
        self._service = service
        self._event = event
        self._told: set[str] = set()
        """Peers that have answered a request which said that this node has finished."""
        self._signs = defaultdict[str, _Signs](_Signs)
        self._made_s = context.monotonic_s()
        self._began_s = math.inf
        self._most_s = math.inf
        self._next_ask_s = -math.inf
        self._until_s = math.inf
        self._has_told_wait = False

    @property
    def _silent_s(self) -> float:
        return RESTART_S if self.peers_restart else SILENT_S

    @property
    def _peers(self) -> Sequence[str]:
        return self._membership.peers

    def forget(self, peer: str) -> None:
        """A peer is gone for good."""
        self._signs.pop(peer, None)
        self._told.discard(peer)

    def close(self) -> None:
        """Let go of the node: its memory must not wait for the garbage collector."""
        self._event = _ignore

    def note(self, result: ExchangeResult, now_s: float) -> None:
        """Note what the end of an exchange says of the peer."""
        peer, outcome = result.peer, result.outcome
        if peer is None:
            return
        signs = self._signs[peer]
        signs.has_parted = outcome in _PARTINGS
        if outcome in _SILENCES:
            signs.tried_s = now_s
            signs.silent_s = now_s if signs.silent_s is None else signs.silent_s
        if outcome in _ANSWERS:
            self._answered(peer, signs, now_s)
            # A proposal is refused so by a peer that is about to leave, too.
            if outcome is not Outcome.NOT_READY or result.kind not in (ExchangeKind.PUSH, ExchangeKind.PAIR):
                signs.is_starting = outcome is Outcome.NOT_READY
        is_push = result.kind is ExchangeKind.PUSH  # whose proposal does not say that this node has finished
        if result.request is not None and result.request.finished and not is_push and not outcome.is_failure:
            self._told.add(peer)

    def _answered(self, peer: str, signs: _Signs, now_s: float) -> None:
        said = self._membership[peer]
        signs.silent_s = None
        if said.incarnation != signs.incarnation:
            self._told.discard(peer)  # it was another life that was told
        if (said.incarnation, said.step) != (signs.incarnation, signs.step):
            signs.incarnation, signs.step, signs.progress_s = said.incarnation, said.step, now_s

    def begin(self, now_s: float) -> None:
        """The training has ended: the patience with the others begins."""
        self._began_s = now_s
        self._most_s = max(LEAST_PATIENCE_S, PATIENCE * (now_s - self._made_s))
        self._has_told_wait = False

    # --- Asking ---------------------------------------------------------------------------------------------------

    @property
    def to_tell(self) -> list[str]:
        """Peers that train, or may train again, as far as this node knows, or have not heard that it has finished."""
        return [
            peer
            for peer in self._peers
            if peer not in self._told or not self._has_ended(peer) or self._is_said_to_train(peer)
        ]

    def may_ask(self, now_s: float) -> bool:
        """Whether it is time for another exchange; asking once more costs nothing, an answer of yes counts as one."""
        if now_s < self._next_ask_s:
            return False
        pause_s = min(BETWEEN_ASKS_S, PACE * (now_s - self._began_s))
        self._next_ask_s = now_s + max(0.0, pause_s) / max(1, len(self.to_tell))
        return True

    # --- Waiting --------------------------------------------------------------------------------------------------

    def is_over(self, now_s: float) -> bool:
        """Whether nobody is waited for, and those that have finished know that this node has, and have asked it."""
        present = [peer for peer in self._peers if self._has_ended(peer) and not self._flow_control.is_failing(peer)]
        waited_for = self.waited_for(now_s)
        if self.has_run_out(now_s):
            return True
        if waited_for or not self._told.issuperset(present):
            self._until_s = math.inf
            self._tell_wait(waited_for, now_s)
            return False
        self._until_s = min(self._until_s, now_s + _FAREWELL_S)
        return now_s >= self._until_s or self._service.told_at_the_end.issuperset(present)

    def has_run_out(self, now_s: float) -> bool:
        """Whether this node has waited as long as it ever waits."""
        return now_s >= self._began_s + self._most_s

    def is_silent(self, peer: str, now_s: float) -> bool:
        """Whether a peer has not answered for so long that it is given up."""
        signs = self._signs[peer]
        if signs.silent_s is None:
            return False
        # One that fell silent long ago has its chance, too: an ask since the training has ended.
        has_had_chance = signs.tried_s >= self._began_s or now_s >= self._began_s + self._silent_s
        heard_s = max(signs.silent_s, self._service.asked_at_the_end.get(peer, -math.inf))
        return has_had_chance and now_s - heard_s >= self._silent_s

    def is_gone(self, peer: str, now_s: float) -> bool:
        """Whether a peer has left, or is given up."""
        return self._signs[peer].has_parted or self._given_up(peer, now_s) is not None

    def waited_for(self, now_s: float) -> list[str]:
        """Peers that have not finished as far as this node knows, and are not given up."""
        return [peer for peer in self._training() if self._given_up(peer, now_s) is None]

    def left_behind(self, now_s: float) -> dict[str, str]:
        """Peers that have not finished as far as this node knows, each with the reason why it is left now."""
        return {peer: self._given_up(peer, now_s) or f"the time ran out {self._at(peer)}" for peer in self._training()}

    def end(self, now_s: float) -> bool:
        """Say whom this node leaves behind, in the log and the journal.

        Returns:
            Whether that is nobody.
        """
        left = self.left_behind(now_s)
        self._event("finish", still_training=list(left), reasons=left, waited_s=round(now_s - self._began_s, 3))
        if left:
            _logger.warning("node %s: finish leaves behind %s", self._node, _listed(left))
        return not left

    def _training(self) -> list[str]:
        return [peer for peer in self._peers if not self._has_ended(peer)]

    def _has_ended(self, peer: str) -> bool:
        signs = self._signs[peer]
        return signs.has_parted or (self._membership[peer].finished and not signs.is_starting)

    def _is_said_to_train(self, peer: str) -> bool:
        """Whether the latest request in its name, since this node has finished, came from one that trains."""
        return peer in self._service.asked_at_the_end and not self._membership.is_said_to_have_finished(peer)

    def _given_up(self, peer: str, now_s: float) -> str | None:
        """Why a peer that has not finished is waited for no longer; None: it is waited for."""
        signs, began_s = self._signs[peer], self._began_s
        if signs.silent_s is not None and self.is_silent(peer, now_s):
            return f"no answer for {now_s - signs.silent_s:.0f} s"
        if now_s - max(signs.progress_s, began_s) >= STANDSTILL_S:
            return f"no step for {STANDSTILL_S:g} s {self._at(peer)}"
        if self.has_run_out(now_s):
            return f"still training after {self._most_s:.0f} s {self._at(peer)}"
        return None

    def _at(self, peer: str) -> str:
        signs = self._signs[peer]
        return "before it ever answered" if signs.incarnation is None else f"at its step {signs.step}"

    def _tell_wait(self, waited_for: Sequence[str], now_s: float) -> None:
        if self._has_told_wait or not waited_for or now_s - self._began_s < _LONG_S:
            return
        self._has_told_wait = True
        self._event("waits", still_training=list(waited_for), waited_s=round(now_s - self._began_s, 3))
        _logger.warning(
            "node %s: has finished, and waits for %s; finish(timeout_s=...) would limit that (told once)",
            self._node,
            _listed({peer: self._at(peer) for peer in waited_for}),
        )


def _listed(peers: Mapping[str, str]) -> str:
    named: Iterable[str] = [f"{peer} ({why})" for peer, why in list(peers.items())[:_MOST_NAMES]]
    more = len(peers) - _MOST_NAMES
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
