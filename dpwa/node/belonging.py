"""How a node belongs to a cluster that nodes may join: how it begins, what it tells people, and how it goes.

Must not know: the rules about members, sockets. Runs in: the trainer's thread; `changed` and `problem` in the one that
makes the exchanges; `states` in any.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwa.config import hosts
from dpwa.errors import ConfigError
from dpwa.exchange.meetings import Meetings
from dpwa.exchange.member_table import Member, MemberState, are_legal
from dpwa.exchange.members import Change

if TYPE_CHECKING:
    from dpwa.node.boundary import Boundary

__all__ = ["LEAVE_FILE", "Belonging"]

_logger = logging.getLogger("dpwa")

LEAVE_FILE = "leave"
"""In a node's folder: it is to go."""

_BETWEEN_LOOKS_S = 0.25

# Problems that are told; a peer that made up new ones could fill the log.
_MOST_TOLD = 8

# How long a node that joins looks for members, or for one that has begun to train, before it begins; and how long it
# waits for the model of such a one.
_LOOK_FOR_MEMBERS_S = 3.0
_COPY_S = 10.0
_LOOK_S = 0.02

# So long a node that is closed waits for its word to the members.
_GOODBYE_S = 0.4


class Belonging:
    """The membership of one node.

    Args:
        node: its name.
        meetings: of the node.
        event: writes a line of the journal.
        folder: of the node in the run folder, where somebody may ask it to leave; None: nobody can.
    """

    def __init__(self, node: str, meetings: Meetings, event: Callable[..., None], folder: Path | None) -> None:
        self._node = node
        self._meetings, self._members = meetings, meetings.members
        self._event = event
        self._note = None if folder is None else folder / LEAVE_FILE
        self._next_look_s = 0.0
        self._is_asked = False
        self._told: set[str] = set()
        self._has_left = threading.Event()
        meetings.changed = self._changed
        meetings.problem = self._problem
        meetings.has_left = self._has_left.set

    @classmethod
    def of(
        cls, node: str, meetings: Meetings | None, event: Callable[..., None], folder: Path | None
    ) -> Belonging | None:
        """That of a node whose cluster nodes may join; None for another."""
        return None if meetings is None else cls(node, meetings, event, folder)

    def begin(self) -> None:
        """The node starts: what its former life was asked is settled."""
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    def is_asked_to_leave(self) -> bool:
        """Whether somebody has asked this node to go, by `dpwa leave`. Looks four times a second at most."""
        now_s = time.monotonic()
        if self._note is None or self._is_asked or now_s < self._next_look_s:
            return self._is_asked
        self._next_look_s = now_s + _BETWEEN_LOOKS_S
        if self._note.exists():
            self._is_asked = True
            with contextlib.suppress(OSError):
                self._note.unlink()
        return self._is_asked

    def leave(self, wake: Callable[[], None]) -> None:
        """Tell some members that this node goes, if that takes a moment and no more."""
        self._members.leave()
        if self._members.has_any:
            wake()
            self._has_left.wait(_GOODBYE_S)

    def close(self) -> None:
        """Let go of the node: its memory must not wait for the garbage collector."""
        self._event = _ignore

    def copy_a_model(self, boundary: Boundary, check: Callable[[], None]) -> None:
        """Before the first step of a node that joins a cluster which may have begun to train: take a model of it.

        Where nobody can be reached, the node begins alone, and joins when it can.

        Args:
            boundary: of the node.
            check: raises when the node has been closed.
        """
        joining, begin_s = boundary.joining, time.monotonic()
        joining.is_copying = True
        while joining.is_on:
            check()
            is_hopeful = self._members.has_any and not joining.has_met_untrained
            if time.monotonic() - begin_s >= (_COPY_S if is_hopeful else _LOOK_FOR_MEMBERS_S):
                break
            boundary.publish_and_ask()
            boundary.collect(_LOOK_S)
            if not boundary.in_flight:
                time.sleep(_LOOK_S)
        joining.is_copying = False
        members = sorted(self.states())
        waited_s = round(time.monotonic() - begin_s, 3)
        self._event("joined", clock=boundary.state.clock, members=members, waited_s=waited_s)
        if not members:
            why = f" ({self._meetings.why_alone})" if self._meetings.why_alone else ""
            self._problem(f"no member answers at any address of `join`{why}; it trains alone, and goes on asking")

    # --- What people see ------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """What is said of each member."""
        return {member.name: member.state.name.lower() for member in self._members.known}

    def ignored(self) -> dict[str, int]:
        """How many entries of tables were not believed, by reason."""
        return dict(self._members.ignored.copy())

    def _changed(self, change: Change) -> None:
        member = change.member
        word = "joined" if change.is_new else "forgotten" if change.is_gone else member.state.name.lower()
        fields = {"number": member.number, "address": hosts.address_text(member.host, member.port)}
        if change.is_gone:
            fields["said"] = member.state.name.lower()
        self._event("member", peer=member.name, state=word, **fields)

    def _problem(self, text: str) -> None:
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            self._event("warning", about="join", peer=None, text=text)
            _logger.warning("node %s: %s (told once)", self._node, text)

    # --- Checkpoints ----------------------------------------------------------------------------------------------

    def known(self, listed: Collection[str]) -> list[dict[str, str | int]]:
        """Where the members are that are not in the file."""
        return [
            {"name": member.name, "host": member.host, "port": member.port}
            for member in self._members.known
            if member.name not in listed
        ]

    def remember(self, members: Iterable[Mapping[str, Any]]) -> None:
        """Take what `known` gave.

        Raises:
            ConfigError: it is damaged.
        """
        for given in members:
            entry = (given.get("name"), given.get("host"), given.get("port"), 0, int(MemberState.ALIVE))
            if not are_legal((entry,)):
                raise ConfigError(f"members of a checkpoint: expected name, host and port of each, got {dict(given)}")
            name, host, port, number, _ = entry
            self._members.remember([Member(str(name), str(host), int(port or 0), number, MemberState.ALIVE)])


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""
