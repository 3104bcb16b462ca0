"""Meetings: twice a second a node tells another one who it is, and hears whom that one knows.

They go over the connections that exchanges keep open, in the pauses between exchanges, so that a node whose trainer is
busy elsewhere is still found. Only clusters that nodes may join have them.

Must not know: the rules about members. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from dpwa.config import hosts
from dpwa.errors import ModelMismatch, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.exchange.members import Change, Members
from dpwa.exchange.messages import Meet, Met, Refused
from dpwa.exchange.strangers import Stranger

if TYPE_CHECKING:
    from dpwa.exchange.context import ExchangeContext

__all__ = ["Meetings"]

# Between two meetings of one node, but for those with strangers, who wait for nothing but their turn.
_PERIOD_S = 0.5

# Of the members that answer, so many are told that this node goes; they tell the others.
_MOST_TOLD = 8


class Meetings:
    """Meets for one node.

    Args:
        context: of the node's exchanges.
        members: the rules.
        rng: source of random choices.
    """

    def __init__(self, context: ExchangeContext, members: Members, rng: random.Random) -> None:
        self.members = members
        self.changed: Callable[[Change], None] = _ignore
        """Called after each change; set by the node."""
        self.forget: Callable[[str], None] = _ignore
        """Called for each member that is forgotten, to let go of what else is remembered of it."""
        self.problem: Callable[[str], None] = _ignore
        """Called with what keeps this node from being a member, for a person to read."""
        self.has_left: Callable[[], None] = _nothing
        """Called when this node has said that it goes."""
        self.why_alone = ""
        """Why the last address of `join` that was asked gave no answer; empty if it did."""
        self._context = context
        self._rng = rng
        self._next_s = 0.0
        self._is_over = False

    @property
    def deadline_s(self) -> float | None:
        """When there is something to do at the latest."""
        return None if self._is_over else self._next_s

    def work(self, client: Client) -> None:
        """Meet whoever it is time for, and draw the consequences.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._is_over:
            return
        if self.members.is_leaving:
            self._say_goodbye(client)
            return
        now_s = self._context.monotonic_s()
        is_time = now_s >= self._next_s
        if not is_time and not self.members.has_knocks:
            return
        self.members.knock(now_s)
        if is_time:
            self._meet_next(client, now_s)
            self._judge(client)
            self._next_s = self._context.monotonic_s() + _PERIOD_S * self._rng.uniform(0.75, 1.25)
        stranger_s = self.members.strangers.due_s
        if stranger_s is not None:
            self._next_s = min(self._next_s, stranger_s)

    def _meet_next(self, client: Client, now_s: float) -> None:
        stranger = self.members.strangers.next(now_s)
        if stranger is not None:
            self._meet_stranger(stranger, client)
            return
        seed = self.members.next_seed(now_s)
        if seed is not None:
            self._meet_seed(*seed, client)
            return
        name = self.members.next_doubted(now_s) or self._context.flow_control.choose(now_s)
        if name is not None:
            self._meet_member(name, client)

    # --- The three kinds of meetings ----------------------------------------------------------------------------------

    def _meet_member(self, name: str, client: Client) -> None:
        context = self._context
        try:
            answer = self._ask(name, client)
        except (PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch) as error:
            context.flow_control.failed(name, context.monotonic_s())
            self.note(name, is_there=not isinstance(error, PeerTimeout | PeerUnreachable))
            return
        context.flow_control.answered(name)
        self.note(name, is_there=True)
        if answer is not None:
            context.flow_control.answered_as(name, answer.incarnation)
            self.members.hear(name, answer.members, context.monotonic_s())

    def _meet_stranger(self, stranger: Stranger, client: Client) -> None:
        """Ask a name that was heard of whether it is there. Its answer makes it a member."""
        context, start_s = self._context, self._context.monotonic_s()
        name = stranger.member.name
        client.know(name, stranger.member.host, stranger.member.port, stranger.teller)
        try:
            answer = self._ask(name, client)
        except (PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch):
            answer = None
        now_s = context.monotonic_s()
        change = None
        if answer is None or not answer.members:
            self.members.strangers.failed(name, now_s, now_s - start_s)
        else:
            change = self.members.joined(name, answer.members[0], now_s, now_s - start_s)
        if change is None or answer is None:
            client.forget(name)
            return
        context.flow_control.add(name)
        context.membership.add(name)
        self.members.hear(name, answer.members, now_s)
        self.changed(change)

    def _meet_seed(self, host: str, port: int, client: Client) -> None:
        """Ask at an address of the file's `join` who is there; whoever answers is a stranger like any other."""
        alias = hosts.address_text(host, port)  # no name of a node has a colon
        client.know(alias, host, port)
        try:
            answer = self._ask(alias, client, self._refused)
            self.why_alone = ""
        except (PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch) as error:
            self.why_alone = str(error)
            if isinstance(error, ModelMismatch):
                self.problem(f"the node at {alias} trains another model; all nodes must build the same one")
            answer = None
        client.forget(alias)
        if answer is not None and answer.members:
            now_s = self._context.monotonic_s()
            self.members.found_seed(answer.members[0], now_s)
            self.members.hear(answer.members[0].name, answer.members, now_s)

    def _ask(self, name: str, client: Client, refused: Callable[[str], None] | None = None) -> Met | None:
        fetcher = self._context.fetcher
        identity = fetcher.identity
        answer = client.request(
            name,
            Meet(
                nonce=fetcher.next_nonce(),
                run=identity.run,
                node=identity.node,
                incarnation=identity.incarnation,
                fingerprint=fetcher.layout.fingerprint,
                claims=self.members.claims_for(name),
            ),
        )
        if isinstance(answer, Refused) and refused is not None:
            refused(answer.reason)
        return answer if isinstance(answer, Met) else None

    def _refused(self, reason: str) -> None:
        self.problem(
            f"a member that it would join by refuses it: {reason}. That cluster's file needs `join`, too, and the same "
            "`run`; on one machine --run-dir must name its run folder"
        )

    # --- What follows -------------------------------------------------------------------------------------------------

    def note(self, name: str, *, is_there: bool) -> None:
        """Note how asking a member went, in a meeting or an exchange: whether it could be reached, and no more."""
        if is_there:
            self.members.answered(name)
        else:
            self.members.failed(name, self._context.monotonic_s())

    def _judge(self, client: Client) -> None:
        namesake, self.members.namesake = self.members.namesake, None
        if namesake is not None:
            address = hosts.address_text(namesake.host, namesake.port)
            self.problem(
                f"members know another {namesake.name}, at {address}; if it lives, give this node another name and a "
                "key of its own; if it does not, it is forgotten in a while"
            )
        for change in self.members.judge(self._context.monotonic_s()):
            if change.is_gone:
                name = change.member.name
                self._context.membership.remove(name)
                self._context.forget(name)
                self.forget(name)
                client.forget(name)
            self.changed(change)

    def _say_goodbye(self, client: Client) -> None:
        self._is_over = True
        try:
            for name in self.members.some_to_tell(_MOST_TOLD):
                with contextlib.suppress(PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch):
                    self._ask(name, client)
        finally:
            self.has_left()


def _nothing() -> None:
    """Nobody waits for it."""


def _ignore(said: object) -> None:
    """Nobody looks at it."""
