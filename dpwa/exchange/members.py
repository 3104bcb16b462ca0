"""The members of a cluster that nodes may join: who is known, who may be asked, who is suspected, and who is forgotten.

A table that somebody sends is a hint whom it may be worth asking, and never a fact about anybody's state:

- A name that is new becomes a member when it has answered at its address, and not before. Few such strangers are asked.
- A member is forgotten when this node itself could not reach it, however many say that it is dead or has left. What
  others say only makes it be asked soon, and one failure is enough where the others are right.
- A known member's address is changed by nobody else's word.
- While nobody at all can be reached, this node is the one who is cut off, and forgets nobody, but for a member that has
  introduced itself from another address meanwhile: it is reached, so it is not cut off from that one.

Members of the cluster file are never forgotten, but for one that cannot be reached any more and introduces itself from
another address, as a node whose machine is lost: that one is forgotten like any other, and met there. Everything here
has a bound.

Must not know: sockets, threads, the clock, global random state; time and randomness are passed in. Runs in: the thread
that makes the exchanges; `answer`, `knock` and `own` also in the Rx thread.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dpwa.config.keys import MAX_NODES
from dpwa.exchange.member_table import MAX_TOLD, Member, MemberState, fitting, latest
from dpwa.exchange.strangers import Seeds, Strangers
from dpwa.snapshot.state import MAX_COUNTER

__all__ = ["DEAD_S", "SUSPECT_AFTER", "Change", "Members"]

SUSPECT_AFTER = 2
"""Failures in a row after which a member is suspected; one may be an accident."""

DEAD_S = 10.0
"""So long a suspected member has time to answer, or to be heard of; then it is forgotten."""

# A member that others say is alive, and that this node cannot reach, is kept so long.
_HOPELESS_S = 300.0

# A member that is forgotten comes back by the tables of others, who do not know yet, unless its entry is kept for long
# enough that all have heard. It comes back at once if it introduces itself.
_GRAVE_S = 60.0
_MOST_GRAVES = 256

# A member is asked because of what others say of it no more often than this.
_CHECK_S = 5.0

# A number is believed up to this much above the one that is known: else one lie could take all numbers away from the
# member that must refute it. A node that has just begun, and may have had a former life, believes more of itself.
_MOST_AHEAD = 1000
_MOST_AT_FIRST = 2**40

# Nodes that have introduced themselves since this node looked last.
_MOST_KNOCKS = 64


class Change(NamedTuple):
    """Something that has changed.

    Attributes:
        member: the entry as it is now.
        is_gone: it is forgotten.
        is_new: it was none before.
    """

    member: Member
    is_gone: bool = False
    is_new: bool = False


@dataclass
class _Known:
    member: Member
    is_listed: bool
    is_elsewhere: bool = False
    """It has introduced itself from another address, and has not answered at its own since."""
    is_met: bool = False
    """It has answered this node: only such members are told of."""
    changed: int = 0
    """Of two members the one whose entry has changed later has the larger number."""
    failures: int = 0
    """Of this node to reach it, in a row."""
    suspected_at: int = 0
    """With how many of them it was suspected last: each further suspicion takes a further failure."""
    failing_s: float = 0.0
    """Since when it cannot be reached."""
    judged: tuple[int, MemberState] = (0, MemberState.ALIVE)
    """Number and state at the last look."""
    bad_s: float = 0.0
    """Since when its entry is no good news."""
    check_from_s: float = 0.0
    """When it may be asked again because of what others say."""
    is_doubted: bool = False
    """Its entry says that it is not alive, and it was not asked since."""


class Members:
    """The members, as one node knows them.

    Args:
        own: this node's entry.
        listed: those of the cluster file, which are never forgotten.
        seeds: addresses through which nodes join, but for this node's own.
        rng: source of random choices.
        is_told: whether this node tells of itself; not if nobody can reach it: others would look for it in vain.
    """

    def __init__(
        self,
        own: Member,
        listed: Iterable[Member],
        seeds: Iterable[tuple[str, int]],
        rng: random.Random,
        *,
        is_told: bool = True,
    ) -> None:
        self.ignored: Counter[str] = Counter()
        """Entries that were not believed, by reason."""
        self.is_leaving = False
        self.namesake: Member | None = None
        """What a member says of this node's name and another address."""
        self._own = own
        self._own_lock = threading.Lock()
        self._is_told = is_told
        self._rng = rng
        self._known = {member.name: _Known(member, is_listed=True) for member in listed}
        self._changes = 0
        self._graves: OrderedDict[str, tuple[Member, float]] = OrderedDict()
        self.strangers = Strangers()
        """Who may be a member."""
        self._seeds = Seeds(seeds, rng)
        self._knocks: deque[Member] = deque(maxlen=_MOST_KNOCKS)
        self._is_turn_of_others = False
        self._table: tuple[Member, ...] = ()
        self._by_name: dict[str, Member] = {}
        self._is_stale = True
        """Whether something has changed since it was published: most tables that are heard bring nothing new."""
        self._publish()

    # --- What this node says --------------------------------------------------------------------------------------

    @property
    def own(self) -> Member:
        """This node's entry. Any thread."""
        return self._own

    @property
    def table(self) -> tuple[Member, ...]:
        """The entries of all others, the latest news first. Any thread."""
        return self._table

    @property
    def known(self) -> tuple[Member, ...]:
        """The entries of all members that this node may ask. Any thread."""
        return tuple(self._by_name.values())

    def leave(self) -> None:
        """This node goes: say so from now on. Any thread."""
        with self._own_lock:
            self.is_leaving = True
            self._own = self._own._replace(state=MemberState.LEFT)

    def claims_for(self, name: str) -> tuple[Member, ...]:
        """What a question to a member says: this node's entry, and what it has heard of that member."""
        about = self._by_name.get(name)
        return (*((self._own,) if self._is_told else ()), *(() if about is None else (about,)))

    def answer(self, asker: str, claims: Sequence[Member], rng: random.Random) -> tuple[Member, ...]:
        """What is answered to a question; an asker that says something new of itself is noted. Rx thread.

        Args:
            asker: its name.
            claims: the entries in its question.
            rng: draws what is told.
        """
        for claim in claims:
            if claim.name == self._own.name:
                self._refute(claim)
            elif claim.name != asker:
                self.ignored["not_asked_for"] += 1
            elif claim != self._by_name.get(asker):
                self._knocks.append(claim)
        grave = self._graves.get(asker)
        about = self._by_name.get(asker) if grave is None else grave[0]
        return fitting((self._own,) if about is None else (self._own, about), self._table, rng)

    def _refute(self, claim: Member) -> None:
        """Somebody says something of this node."""
        with self._own_lock:
            own = self._own
            is_worse = claim.state is not MemberState.ALIVE and not self.is_leaving
            if claim.number < own.number or (claim.number == own.number and not is_worse):
                return
            most = own.number + _MOST_AHEAD if own.number > 0 else _MOST_AT_FIRST
            if claim.number >= min(most, MAX_COUNTER):
                self.ignored["number"] += 1
                return
            if claim.address != own.address and not is_worse:
                self.ignored["own_name"] += 1
                return
            self._own = own._replace(number=claim.number + 1 if is_worse else claim.number)

    def _publish(self) -> None:
        """Swap what other threads read, if it has changed."""
        if not self._is_stale:
            return
        self._is_stale = False
        order = sorted(self._known.values(), key=lambda known: -known.changed)
        self._by_name = {known.member.name: known.member for known in order}
        buried = [member for member, _ in reversed(self._graves.values())]
        met = [known.member for known in order if known.is_met]
        self._table = (*buried[: MAX_TOLD // 4], *met)

    # --- What others say ------------------------------------------------------------------------------------------

    @property
    def has_knocks(self) -> bool:
        """Whether a node has introduced itself since the last look."""
        return bool(self._knocks)

    def knock(self, now_s: float) -> None:
        """Look at the nodes that have introduced themselves since the last time."""
        while self._knocks:
            claim = self._knocks.popleft()
            known = self._known.get(claim.name)
            if known is not None:
                known.is_elsewhere |= claim.address != known.member.address
                self._hear_of_known(known, claim)
            else:
                self._meet_stranger(claim, claim.name, now_s)
        self._publish()

    def hear(self, teller: str, entries: Sequence[Member], now_s: float) -> None:
        """Take a table that a node has sent, as an answer to this node's question.

        Args:
            teller: the member who said it, who is known; what it says of itself is a fact, and of others a hint.
            entries: the table.
            now_s: monotonic time.
        """
        for entry in entries:
            known = self._known.get(entry.name)
            if entry.name == self._own.name:
                if entry.address != self._own.address and entry.state is MemberState.ALIVE:
                    self.namesake = entry
                self._refute(entry)
            elif known is None:
                self._meet_stranger(entry, teller, now_s)
            elif entry.name == teller:
                self._hear_from_itself(known, entry)
            else:
                self._hear_of_known(known, entry)
        self._publish()

    def _hear_from_itself(self, known: _Known, entry: Member) -> None:
        """What a member answers of itself: it lives, whatever anybody has said of that number."""
        self._has_met(known)
        if entry.number >= known.member.number:  # at the address by which it was reached, however it writes that
            self._set(known, known.member._replace(number=entry.number, state=entry.state))

    def _hear_of_known(self, known: _Known, entry: Member) -> None:
        if entry == known.member:
            return  # most of what is heard is known
        if entry.address != known.member.address:
            self.ignored["address"] += 1
            return
        if entry.number > known.member.number + _MOST_AHEAD:
            self.ignored["number"] += 1
            return
        newer = latest(known.member, entry)
        if newer != known.member:
            self._set(known, newer)
            known.is_doubted = newer.state is not MemberState.ALIVE

    def _meet_stranger(self, entry: Member, teller: str, now_s: float) -> None:
        """A name that is not known: somebody to be asked, if there is room."""
        if entry.state is not MemberState.ALIVE or entry.name == self._own.name:
            return
        if entry.address == self._own.address:
            self.ignored["own_address"] += 1
            return
        grave = self._graves.get(entry.name)
        if grave is not None and latest(grave[0], entry) == grave[0]:
            return  # old news, which is still on its way
        if len(self._known) + len(self.strangers) >= MAX_NODES:
            self.ignored["full"] += 1
        elif not self.strangers.put(entry, teller, now_s):
            self.ignored["no_room"] += 1

    def remember(self, members: Iterable[Member]) -> None:
        """Members that this node knew in a former life: hints like any other."""
        for member in members:
            self._meet_stranger(member, "", 0.0)

    # --- Whom to ask ----------------------------------------------------------------------------------------------

    @property
    def seeds_due_s(self) -> float | None:
        """When an address of the file's `join` may be asked next."""
        return self._seeds.due_s

    def next_seed(self, now_s: float) -> tuple[str, int] | None:
        """An address of the file's `join` to ask now: none while a member that answers has it."""
        return self._seeds.next(now_s, {known.member.address for known in self._known.values() if not known.failures})

    def next_doubted(self, now_s: float) -> str | None:
        """A member to ask because of what others say of it; every second call at most, and each seldom."""
        self._is_turn_of_others = not self._is_turn_of_others
        if not self._is_turn_of_others:
            return None
        for name, known in self._known.items():
            if known.is_doubted and known.check_from_s <= now_s:
                known.is_doubted = False
                known.check_from_s = now_s + _CHECK_S
                return name
        return None

    # --- What this node finds out itself --------------------------------------------------------------------------

    def joined(self, name: str, entry: Member, now_s: float, took_s: float) -> Change | None:
        """A stranger has answered: it is a member, if it is the one whose name it was asked by.

        Args:
            name: the stranger's.
            entry: what it says of itself.
            now_s: monotonic time.
            took_s: how long it was asked for.

        Returns:
            None if it is another one.
        """
        if entry.name != name:
            self.ignored["name"] += 1
            self.strangers.failed(name, now_s, took_s)
            return None
        stranger = self.strangers.take(name)
        if stranger is None or name in self._known:
            return None
        self._graves.pop(name, None)
        # At the address by which it was reached, however it writes that itself.
        member = stranger.member._replace(number=entry.number, state=entry.state)
        known = self._known[name] = _Known(member, is_listed=False, is_met=True, judged=(member.number, member.state))
        self._set(known, member)
        self._publish()
        return Change(member, is_new=True)

    def found_seed(self, entry: Member, now_s: float) -> None:
        """Somebody has answered at an address of `join`: one more stranger, if it is not known."""
        if entry.name not in self._known:
            self._meet_stranger(entry, entry.name, now_s)

    def answered(self, name: str) -> None:
        """A member has answered this node: it lives, whatever is said of it; it is asked soon, to hear what that is."""
        known = self._known.get(name)
        if known is None:
            return
        known.failures = known.suspected_at = 0
        known.is_elsewhere = False
        known.is_doubted = known.member.state is not MemberState.ALIVE
        self._has_met(known)
        self._publish()

    def is_said_to_have_left(self, name: str) -> bool:
        """Whether a member has said that it goes, or somebody for it."""
        return name in self._known and self._known[name].member.state is MemberState.LEFT

    def failed(self, name: str, now_s: float) -> None:
        """A member could not be reached by this node, or gave no answer."""
        known = self._known.get(name)
        if known is None:
            return
        if known.failures == 0:
            known.failing_s = now_s
        known.failures += 1

    def has_moved(self, name: str) -> bool:
        """Whether a member has introduced itself from another address, and does not answer at its own."""
        known = self._known.get(name)
        return known is not None and known.is_elsewhere

    @property
    def is_cut_off(self) -> bool:
        """Whether nobody at all can be reached; False while nobody is known."""
        return bool(self._known) and all(known.failures for known in self._known.values())

    @property
    def has_any(self) -> bool:
        """Whether somebody is known."""
        return bool(self._known)

    def some_to_tell(self, most: int) -> list[str]:
        """Members that answer, to be told that this node goes."""
        names = [name for name, known in self._known.items() if self._is_told and not known.failures]
        return self._rng.sample(names, min(most, len(names)))

    def judge(self, now_s: float) -> list[Change]:
        """Suspect whom this node cannot reach, and forget who is gone."""
        changes = []
        is_cut_off = self.is_cut_off
        for name, known in list(self._known.items()):
            if known.failures >= SUSPECT_AFTER and known.member.state is MemberState.ALIVE:
                self._suspect(known)
            number, state = known.judged
            known.judged = (known.member.number, known.member.state)
            if known.judged != (number, state):
                known.bad_s = now_s
            may_go = known.is_elsewhere or not known.is_listed
            if may_go and self._is_over(known, now_s, is_cut_off=is_cut_off):
                changes.append(self._bury(name, known, now_s))
            elif known.member.state is not state:
                changes.append(Change(known.member))
        for name in [name for name, (_, until_s) in self._graves.items() if until_s <= now_s]:
            del self._graves[name]
            self._is_stale = True
        self._publish()
        return changes

    def _suspect(self, known: _Known) -> None:
        if known.failures > known.suspected_at:
            known.suspected_at = known.failures
            self._set(known, known.member._replace(state=MemberState.SUSPECT))

    def _is_over(self, known: _Known, now_s: float, *, is_cut_off: bool) -> bool:
        """Whether a member is to be forgotten: always by what this node has found out itself."""
        if not known.failures:
            return False
        if known.member.state is MemberState.LEFT:
            return True
        if known.failures < SUSPECT_AFTER or (is_cut_off and not known.is_elsewhere):
            return False
        if known.member.state is MemberState.DEAD:
            return True
        if now_s - known.failing_s >= _HOPELESS_S:
            return True
        is_suspect = known.member.state is MemberState.SUSPECT
        return is_suspect and known.failures > SUSPECT_AFTER and now_s - known.bad_s >= DEAD_S

    def _bury(self, name: str, known: _Known, now_s: float) -> Change:
        state = MemberState.LEFT if known.member.state is MemberState.LEFT else MemberState.DEAD
        member = known.member._replace(state=state)
        self._is_stale = True
        del self._known[name]
        self._graves[name] = (member, now_s + _GRAVE_S)
        self._graves.move_to_end(name)
        if len(self._graves) > _MOST_GRAVES:
            self._graves.popitem(last=False)
        return Change(member, is_gone=True)

    def _has_met(self, known: _Known) -> None:
        self._is_stale |= not known.is_met
        known.is_met = True

    def _set(self, known: _Known, member: Member) -> None:
        if member != known.member or not known.changed:
            self._is_stale = True
            self._changes += 1
            known.changed = self._changes
            known.member = member
