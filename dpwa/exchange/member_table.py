"""What nodes tell each other about the members of a cluster that nodes may join: one entry per member.

As in SWIM (Das et al., "SWIM: scalable weakly-consistent infection-style process group membership protocol", DSN 2002,
section 4.2): each member counts a number of its own upwards, and nobody else does. What is said of a higher number
holds against what is said of a lower one, and of one number the worse news holds: a member that hears that it is
suspected answers with the next number. So entries may arrive in any order, and as often as they like.

Must not know: sockets, time, what is believed. Runs in: any thread; everything here is frozen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from dpwa.config import hosts
from dpwa.config.sections import NAME_PATTERN
from dpwa.snapshot.state import MAX_COUNTER

__all__ = ["MAX_CLAIMS", "MAX_TOLD", "Member", "MemberState", "are_legal", "fitting", "latest"]

MAX_TOLD: Final = 32
"""Entries in one message; larger tables are told in parts, the newest news always."""

MAX_CLAIMS: Final = 2
"""Entries in a question: anybody may ask, so that looking at a question must cost little."""

_MAX_HOST_CHARS = 253  # RFC 1035, without the last dot

# Entries of one message in bytes: a header has 4 KiB, of which the other fields take 300 at most.
_MOST_BYTES = 3600

# What surrounds name and host of an entry: lengths, port, number and state.
_ENTRY_BYTES = 20

# Of the entries of one message, so many are the latest news; the others are drawn by lot.
_NEWS = MAX_TOLD // 2

_NAME = re.compile(NAME_PATTERN)


class MemberState(IntEnum):
    """What is said of a member, from good news to bad. Append only."""

    ALIVE = 0
    SUSPECT = 1
    """It did not answer, and has time to show that it lives."""
    LEFT = 2
    """It has said that it goes."""
    DEAD = 3
    """It was silent for so long that it is forgotten."""


class Member(NamedTuple):
    """One entry: what is said of a member.

    Attributes:
        name: of the node.
        host: where its peers reach it, as in a cluster file.
        port: the TCP port there.
        number: the member's own count of what it had to refute.
        state: what is said.
    """

    name: str
    host: str
    port: int
    number: int
    state: MemberState

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, the same for all ways of writing one host."""
        return hosts.address_key(self.host), self.port


def latest(one: Member, other: Member) -> Member:
    """Of two entries about one member the one that holds. Commutative, associative, idempotent."""
    return max(one, other, key=_weight)


def _weight(member: Member) -> tuple[int, int, str, int]:
    return member.number, int(member.state), member.host, member.port


def are_legal(value: object, most: int = MAX_TOLD) -> bool:
    """Whether a decoded value can be the entries of a message: few, of right values, no two about one name."""
    if type(value) is not tuple or len(value) > most:
        return False
    return all(map(_is_legal, value)) and len({entry[0] for entry in value}) == len(value)


def _is_legal(entry: object) -> bool:
    if type(entry) is not tuple or len(entry) != len(Member._fields):
        return False
    name, host, port, number, state = entry
    if type(name) is not str or type(host) is not str or not _NAME.fullmatch(name) or len(host) > _MAX_HOST_CHARS:
        return False
    if any(type(count) is not int for count in (port, number, state)):
        return False
    is_in_range = 1 <= port <= 65535 and 0 <= number <= MAX_COUNTER and 0 <= state < len(MemberState)
    return is_in_range and hosts.problem_with(host) is None


def fitting(first: Sequence[Member], table: Sequence[Member], rng: random.Random) -> tuple[Member, ...]:
    """The entries of one message.

    Args:
        first: those that must be in it: few.
        table: of the others as many as there is room for; the latest news come first in it.
        rng: draws what older news are told.
    """
    names = {member.name for member in first}
    rest = [member for member in table if member.name not in names]
    room = MAX_TOLD - len(first)
    if len(rest) > room:
        rest = rest[:_NEWS] + rng.sample(rest[_NEWS:], room - _NEWS)
    told, left_bytes = [], _MOST_BYTES
    for member in (*first, *rest):
        left_bytes -= len(member.name) + len(member.host) + _ENTRY_BYTES
        if left_bytes >= 0:
            told.append(member)
    return tuple(told)
