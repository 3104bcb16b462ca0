"""Tells the averaging method how fast this node is beside its peers, where its local steps go by that.

Must not know: how speeds are compared, or what a method does with them. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dpwa.exchange.membership import Membership
from dpwa.exchange.speeds import Speeds

__all__ = ["Paced", "Pacing"]


class Paced(Protocol):
    """A method or an outer momentum whose local steps may go by speed."""

    speed: float
    follows_speed_over: int | None


class Pacing:
    """Paces one node.

    Args:
        paced: what follows the speed: at least one.
        membership: what peers have said of themselves.
        ask: asks a peer how many steps it has made.
        event: writes a line of the journal.
    """

    def __init__(
        self,
        paced: Sequence[Paced],
        membership: Membership,
        ask: Callable[[str], None],
        event: Callable[..., None],
    ) -> None:
        self._paced = paced
        self._membership = membership
        self._ask = ask
        self._event = event
        self._speeds = Speeds(min(part.follows_speed_over or 1 for part in paced))

    def close(self) -> None:
        """Let go of the node."""
        self._paced, self._ask, self._event = (), _nobody, _ignore

    def advance(self, step: int) -> None:
        """A step was made.

        Args:
            step: how many that are.
        """
        speeds, membership = self._speeds, self._membership
        news = list(membership.take_news())
        if not news and step < speeds.next_question:
            return
        for peer in news:
            said = membership[peer]
            if said.finished or said.incarnation is None:
                speeds.forget(peer)
            else:
                speeds.heard(peer, said.incarnation, step, said.step)
        peers = [peer for peer in membership.peers if not membership[peer].finished]
        if speeds.look(step, peers):
            for part in self._paced:
                part.speed = speeds.speed
            self._event("speed", speed=round(speeds.speed, 4), fastest=speeds.fastest)
        question = speeds.question(step, peers) if step >= speeds.next_question else None
        if question is not None:
            self._ask(question)


def _nobody(peer: str) -> None:
    """The node is closed."""


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
