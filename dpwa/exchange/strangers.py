"""Names that may be members: whom others speak of, who introduces itself, and the addresses through which nodes join.

A stranger is asked whether it is there, and becomes a member by its answer alone. Anybody may speak of anybody, so few
strangers wait at one time, and what asking them in vain costs is limited.

Must not know: sockets, threads, the clock; time and randomness are passed in. Runs in: the thread that makes the
exchanges.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from dpwa.exchange.member_table import Member

__all__ = ["MAX_STRANGERS", "Seeds", "Stranger", "Strangers"]

MAX_STRANGERS = 8
"""Names that wait at one time to be asked; half of them at most by word of one member."""

# How often a stranger is asked before it is dropped, and after how long others may speak of the same name again. If it
# introduces itself it is asked again sooner: after this many seconds, and twice as long each time.
_TRIES = 2
_REFUSED_S = 20.0
_REFUSED_ITSELF_S = 2.0
_LONGEST_REFUSED_S = 120.0
_MOST_REFUSED = 256

# After a stranger that did not answer, the next one waits this many times as long as that took: made-up names take up
# at most a quarter of the time.
_PAUSE_PER_COST = 3.0
_LEAST_PAUSE_S = 1.0

# An address of the file's `join` is asked after this pause, which doubles up to the longer one.
_FIRST_SEED_S = 0.25
_LAST_SEED_S = 10.0


@dataclass
class Stranger:
    """A name that may be a member.

    Attributes:
        member: what was said of it.
        teller: who said it: itself or another.
        tries: how often it was asked.
        is_asked: it is being asked now.
    """

    member: Member
    teller: str
    tries: int = 0
    is_asked: bool = False


class Strangers:
    """The strangers that one node has heard of."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, Stranger] = OrderedDict()
        self._from_s = 0.0
        self._refused: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how often, and when last

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def due_s(self) -> float | None:
        """When one may be asked; None if none waits."""
        return self._from_s if self._waiting else None

    def put(self, entry: Member, teller: str, now_s: float) -> bool:
        """Have a stranger wait; False if there is no room for it.

        Args:
            entry: what is said of it.
            teller: by whom; its own name: it has introduced itself.
            now_s: monotonic time.
        """
        is_itself = teller == entry.name
        known = self._waiting.get(entry.name)
        if known is not None:
            if is_itself and not known.is_asked:
                known.member, known.teller = entry, teller
            return True
        if now_s < self._refused_until_s(entry.name, is_itself=is_itself):
            return True
        of_teller = sum(one.teller == teller for one in self._waiting.values())
        is_full = of_teller >= MAX_STRANGERS // 2 or len(self._waiting) >= MAX_STRANGERS
        if is_full and not (is_itself and self._make_room()):
            return False
        self._waiting[entry.name] = Stranger(entry, teller)
        return True

    def _refused_until_s(self, name: str, *, is_itself: bool) -> float:
        times, last_s = self._refused.get(name, (0, -math.inf))
        first_s = _REFUSED_ITSELF_S if is_itself else _REFUSED_S
        return last_s + min(first_s * 2.0 ** min(times - 1, 30), _LONGEST_REFUSED_S)

    def _make_room(self) -> bool:
        """Whoever introduces itself comes before one that was asked in vain."""
        failed = [name for name, one in self._waiting.items() if one.tries and not one.is_asked]
        if failed:
            del self._waiting[failed[0]]
        return bool(failed)

    def next(self, now_s: float) -> Stranger | None:
        """One to ask now, if it is time for that; `take` or `failed` must follow."""
        if not self._waiting or now_s < self._from_s:
            return None
        stranger = next(iter(self._waiting.values()))
        stranger.is_asked = True
        stranger.tries += 1
        return stranger

    def take(self, name: str) -> Stranger | None:
        """A stranger has answered: it waits no longer."""
        self._refused.pop(name, None)
        return self._waiting.pop(name, None)

    def failed(self, name: str, now_s: float, took_s: float) -> None:
        """A stranger did not answer, or not as the one that it was said to be.

        Args:
            name: the stranger's.
            now_s: monotonic time.
            took_s: how long it was asked for.
        """
        self._from_s = now_s + max(_LEAST_PAUSE_S, _PAUSE_PER_COST * took_s)
        stranger = self._waiting.get(name)
        if stranger is None:
            return
        stranger.is_asked = False
        self._waiting.move_to_end(name)
        if stranger.tries >= _TRIES:
            del self._waiting[name]
            times, _ = self._refused.get(name, (0, 0.0))
            self._refused[name] = (times + 1, now_s)
            self._refused.move_to_end(name)
            if len(self._refused) > _MOST_REFUSED:
                self._refused.popitem(last=False)


@dataclass
class _Seed:
    due_s: float = 0.0
    pause_s: float = _FIRST_SEED_S


class Seeds:
    """The addresses of the file's `join`: where a node asks that knows nobody, or is cut off from some.

    Args:
        addresses: without this node's own.
        rng: spreads the asks of many nodes.
    """

    def __init__(self, addresses: Iterable[tuple[str, int]], rng: random.Random) -> None:
        self._seeds = {address: _Seed() for address in addresses}
        self._rng = rng

    @property
    def due_s(self) -> float | None:
        """When one may be asked next; None if there is none."""
        return min((seed.due_s for seed in self._seeds.values()), default=None)

    def next(self, now_s: float, reached: set[tuple[str, int]]) -> tuple[str, int] | None:
        """One to ask now, with a pause that grows; None if there is none.

        Args:
            now_s: monotonic time.
            reached: addresses of members that answer: those need not be asked who is there.
        """
        for address, seed in self._seeds.items():
            if seed.due_s > now_s:
                continue
            if address in reached:
                seed.due_s, seed.pause_s = now_s + _FIRST_SEED_S, _FIRST_SEED_S
                continue
            seed.due_s = now_s + seed.pause_s * self._rng.uniform(0.75, 1.25)
            seed.pause_s = min(2 * seed.pause_s, _LAST_SEED_S)
            return address
        return None
