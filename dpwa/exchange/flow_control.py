"""Which peer to ask next: a score per peer, a random choice, and rare second chances for those that fail.

As in the 2017 dpwa every success raises a peer's score and every failure lowers it, and the choice is random. Here
the score is the weight of the choice, so that equally good peers are asked uniformly. A peer that failed is left
alone for a while that doubles with each further failure and has an upper end: it is asked rarely and never forgotten.
If it asks this node meanwhile, it is asked at once; anybody could have asked in its name, so such hints have a limit.

An outage takes from the score once, however often the peer was asked meanwhile: a peer that was cut off for minutes is
worth almost as much as before when it answers again, and one that fails again and again is not. And an outage may have
been that of a part of the network: when one of those that failed together answers, each of the others gets a chance.

When all peers fail, this node is the suspect: its cable is out, or it was stopped itself (Dadgar et al., "Lifeguard",
1707.00788: local health). What they failed in that time is forgotten as soon as one of them answers.

Must not know: the clock, global random state; time and randomness are passed in, so that a
simulation runs the same code. Runs in: the thread that performs the exchanges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from dpwa.config.sections import FlowControlOptions

__all__ = ["FlowControl"]

# Of the choices, at most this share goes to peers that failed before: with hundreds of dead peers whose second
# chance is due, the living ones still get nine exchanges out of ten.
_PROBE_SHARE = 0.1

# After an ask that a hint brought about and that failed, hints count again after this many times as long as it took: so
# forged ones take up at most a quarter of the time, whether the peers that they name are dead or hung.
_PAUSE_PER_COST = 3.0
_LEAST_PAUSE_S = 1.0

# Hints of that peer itself count again after this; twice as long after each further such ask, up to the end that all
# pauses have. A peer that asks and cannot be reached, or answers too late, is not worth more.
_PEER_PAUSE_S = 5.0

# Peers that began to fail so close to each other may have failed for one reason. Who asks dozens of them, one after the
# other, needs half a second for each to find it out.
_TOGETHER_S = 10.0

# So many refused models in a row are no accident: the peer is in quarantine. Its own requests do not bring about asks
# then, and it is asked again after the longest pause.
_MOST_REJECTIONS = 3


@dataclass
class _Standing:
    score: float
    failures: int = 0
    """In a row; 0 for a peer that answered last time."""
    failing_from_s: float = 0.0
    """When the first of them was."""
    due_s: float = 0.0
    """When a failing peer gets its next chance."""
    is_hinted: bool = False
    """It may have asked this node since it failed."""
    hints: int = 0
    """Asks that hints brought about and that failed, in a row."""
    hints_from_s: float = 0.0
    """When the next hint counts."""
    rejections: int = 0
    """What it gave and was refused, in a row; what it has nothing to give between does not end the row."""
    hinted_ask_s: float | None = None
    """When the ask under way began, if a hint brought it about."""


class FlowControl:
    """Scores and choice.

    Args:
        peers: names to choose from.
        settings: the config's `flow_control`.
        rng: source of the random choice.
    """

    def __init__(self, peers: Iterable[str], settings: FlowControlOptions, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._standings = {peer: _Standing(settings.score_start) for peer in peers}
        self._incarnations: dict[str, bytes] = {}
        self._hints_from_s = 0.0
        self._before_failing: dict[str, _Standing] = {}
        """How the peers stood that have failed since anybody answered."""

    def add(self, peer: str) -> None:
        """One more to choose from."""
        self._standings.setdefault(peer, _Standing(self._settings.score_start))

    def forget(self, peer: str) -> None:
        """A peer that had joined is gone for good."""
        self._standings.pop(peer, None)
        self._incarnations.pop(peer, None)
        self._before_failing.pop(peer, None)

    def _of(self, peer: str) -> _Standing:
        """How a peer stands; what is noted of one that is gone is noted in vain."""
        return self._standings.get(peer) or _Standing(self._settings.score_start)

    def choose(
        self, now_s: float, among: Mapping[str, float] | None = None, without: Collection[str] = ()
    ) -> str | None:
        """A peer to ask, or None while every peer is failing and none is due for another chance.

        Args:
            now_s: monotonic time.
            among: only these, each with a weight that its score is multiplied by; None: all, with equal weights.
            without: not these.
        """
        names = self._standings if among is None else among
        standings = [(peer, self._of(peer)) for peer in names if peer not in without]
        for peer, standing in standings:
            if self._takes_hint(standing, now_s):
                return peer
        healthy = [(peer, standing) for peer, standing in standings if standing.failures == 0]
        due = [(peer, standing) for peer, standing in standings if standing.failures and standing.due_s <= now_s]
        if due and (not healthy or self._rng.random() < _PROBE_SHARE):
            return min(due, key=lambda item: item[1].due_s)[0]
        if not healthy:
            return None
        weights = [standing.score * (1.0 if among is None else among[peer]) for peer, standing in healthy]
        return self._rng.choices(healthy, weights)[0][0]

    def may_ask(self, peer: str, now_s: float) -> bool:
        """Whether the peer answered last time, or is due for another chance. The caller asks it if so."""
        standing = self._of(peer)
        return standing.failures == 0 or standing.due_s <= now_s or self._takes_hint(standing, now_s)

    def _takes_hint(self, standing: _Standing, now_s: float) -> bool:
        """Whether the peer is to be asked because of a hint. Each hint counts once."""
        if standing.rejections >= _MOST_REJECTIONS:
            return False
        if not standing.is_hinted or now_s < max(standing.hints_from_s, self._hints_from_s):
            return False
        standing.is_hinted = False
        standing.hinted_ask_s = now_s
        return True

    def succeeded(self, peer: str, *, gave: bool = True) -> None:
        """The peer gave its snapshot, or took this node's.

        Args:
            peer: who.
            gave: it gave one that was taken, which ends a quarantine.
        """
        self._anybody_answered()
        standing = self._of(peer)
        if gave or not standing.rejections:
            self._is_back(peer, standing.score, 0)
            standing = self._of(peer)
            standing.score = min(standing.score + self._settings.success, self._settings.score_max)
        else:
            self.answered(peer)

    def answered(self, peer: str) -> None:
        """The peer had nothing to give: it is alive, and no better for it."""
        self._anybody_answered()
        standing = self._of(peer)
        if standing.rejections < _MOST_REJECTIONS:  # only a model that is taken ends a quarantine
            self._is_back(peer, standing.score, standing.rejections)

    def _anybody_answered(self) -> None:
        """If all had failed since the last answer, the fault was this node's."""
        if len(self._before_failing) > 1 and all(standing.failures for standing in self._standings.values()):
            self._standings.update(self._before_failing)
        self._before_failing.clear()

    def _is_back(self, peer: str, score: float, rejections: int) -> None:
        """The peer has answered. If it was failing, so may those be back that began to fail when it did.

        One that fails again and again brings none of the dead forward: each of its outages has a beginning of its own.
        """
        former = self._standings.get(peer)
        if former is None:
            return
        self._standings[peer] = _Standing(score, rejections=rejections)
        if not former.failures:
            return
        for other in self._standings.values():
            is_due = other.failures and other.rejections < _MOST_REJECTIONS
            if is_due and abs(other.failing_from_s - former.failing_from_s) <= _TOGETHER_S:
                other.due_s = -math.inf

    def rejected(self, peer: str, now_s: float) -> int | None:
        """What the peer gave was refused: NaN, another layout, or a model that no honest peer has.

        Returns:
            How many in a row that were, if the peer is in quarantine from now on; None if it is not, or was before.
        """
        self._anybody_answered()
        standing = self._of(peer)
        standing.rejections += 1
        self.failed(peer, now_s)
        self._before_failing.pop(peer, None)  # it did answer
        if standing.rejections >= _MOST_REJECTIONS:
            standing.due_s = max(standing.due_s, now_s + self._settings.probe_max_s * self._rng.uniform(0.75, 1.25))
        return standing.rejections if standing.rejections == _MOST_REJECTIONS else None

    def failed(self, peer: str, now_s: float) -> None:
        """The peer did not answer, or not as it should."""
        standing = self._of(peer)
        if peer in self._standings:
            self._before_failing.setdefault(peer, replace(standing))
        if not standing.failures:
            standing.score = max(standing.score - self._settings.failure, self._settings.score_min)
            standing.failing_from_s = now_s
        # The exponent is bounded: 2.0**1024 would overflow after a long absence.
        pause_s = min(self._settings.probe_s * 2.0 ** min(standing.failures, 30), self._settings.probe_max_s)
        # The random part keeps many nodes from probing one returning peer in the same instant.
        standing.due_s = now_s + pause_s * self._rng.uniform(0.75, 1.25)
        standing.failures += 1
        if standing.hinted_ask_s is not None:
            self._hints_from_s = now_s + max(_LEAST_PAUSE_S, _PAUSE_PER_COST * (now_s - standing.hinted_ask_s))
            own_pause_s = min(_PEER_PAUSE_S * 2.0 ** min(standing.hints, 30), self._settings.probe_max_s)
            standing.hints_from_s = now_s + own_pause_s
            standing.hints += 1
            standing.hinted_ask_s = None

    def hinted(self, peer: str) -> None:
        """A request came in the name of the peer. If it is failing, it may be back: it is asked at once."""
        standing = self._of(peer)
        standing.is_hinted = standing.failures > 0

    def retry(self, now_s: float) -> None:
        """Give every peer that is failing its next chance now."""
        for standing in self._standings.values():
            if standing.rejections >= _MOST_REJECTIONS:
                continue
            standing.due_s = min(standing.due_s, now_s)

    def answered_as(self, peer: str, incarnation: bytes) -> None:
        """The peer gave an answer in this life. If it is a new one, what its former one did is forgotten."""
        if peer in self._standings and incarnation != self._incarnations.get(peer):
            self._incarnations[peer] = incarnation
            # One chance for a new life of a peer in quarantine, and not three: it may have only said that it is new.
            rejections = min(self._standings[peer].rejections, _MOST_REJECTIONS - 1)
            self._is_back(peer, self._settings.score_start, rejections)

    def is_failing(self, peer: str) -> bool:
        """Whether the peer's last exchange failed."""
        return self._of(peer).failures > 0

    def scores(self) -> Mapping[str, float]:
        """A copy of all scores."""
        # A copy, because members come and go while another thread reads.
        return {peer: standing.score for peer, standing in self._standings.copy().items()}
