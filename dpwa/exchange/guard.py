"""What of a peer's model and words is believed: the config's `guard`.

A peer that is let in may still lie: by a broken disk, a bug, or on purpose. Whatever comes is compared with what other
peers gave and with this node's own model (`RunningBound`). Of a model that is further away than others are, the less is
taken the further it is; one that no honest node can have is refused. Of two halves of a cluster that have been apart
neither is a minority: they meet again.

That influence falls with the distance, and does not only stay within a bound, is a redescending estimator (Hampel,
1974). Where steps are only clipped, a liar that a third of the exchanges meet drags everybody along: the steps towards
it are what drives the others apart, and that raises the bound.

Must not know: sockets, threads, time. Runs in: the thread that makes the exchanges, but for
`take_notices`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dpwa.exchange.running_bound import RunningBound
from dpwa.snapshot.distance import Apart
from dpwa.snapshot.layout import Role
from dpwa.snapshot.lineage import JOIN_LEAD
from dpwa.snapshot.state import State

__all__ = ["FAR", "Guard", "Verdict"]

FAR = 4.0
"""A model that is taken whole or not at all is refused where its distance is so many bounds."""

# The step towards a model that is so many bounds away is divided by this power of them.
_STEEPNESS = 3

# Distances, in this node's own size, that pass while no others are known: two initial models of other seeds are 1.4
# apart. Statistics and moments begin at 0 and grow fast.
_START: Mapping[Role, float] = {Role.PARAMETER: 3.0, Role.ANCHOR: 3.0}
_START_OF_OTHERS = 100.0

# Distances, in this node's own size, that no honest model has.
_MOST: Mapping[Role, float] = {Role.PARAMETER: 100.0, Role.ANCHOR: 100.0}
_MOST_OF_OTHERS = 1e6

# The bound never falls below this part of this node's own size: models that have stood still may move again.
_FLOOR = 1e-3

# A model smaller than this counts as being of this size, one of zeros as being of size 1.
_LEAST_SIZE = 1e-2

# By how many updates or rounds a peer may be ahead or behind at first, and in any case.
_FIRST_LEAD, _LEAST_LEAD = JOIN_LEAD, 10.0

# The logarithm of the ratio of two losses that may be in any case: those of batches differ widely.
_LEAST_LOSSES = math.log(16.0)

# So often one peer alone must say that it is the elder before a node believes it that hears nothing else.
_ALONE = 3

# Lines for the journal that may wait for the trainer.
_MOST_NOTICES = 64


class Verdict(NamedTuple):
    """What becomes of a peer's values.

    Attributes:
        share: of the step that is taken, 0 to 1; 0: none of it.
        reason: why they are refused; empty otherwise.
    """

    share: float = 1.0
    reason: str = ""


class Guard:
    """Guards one node.

    Args:
        mode: the config's `guard`: off, finite, clip or median.
    """

    def __init__(self, mode: str) -> None:
        self.is_off = mode == "off"
        self.combines = mode == "median"
        """Whether a pull takes the median of three peers' models, where three answer."""
        self.compares = mode in ("clip", "median")
        """Whether distances and numbers are compared with those of others."""
        self._bounds = {role: RunningBound() for role in Role}
        self._clock, self._round, self._loss = RunningBound(), RunningBound(), RunningBound()
        self._claims: dict[str, tuple[bytes, int]] = {}
        self._notices: deque[dict[str, Any]] = deque(maxlen=_MOST_NOTICES)  # append and popleft are atomic

    def quarantined(self, peer: str, rejections: int, reason: str) -> None:
        """Have the trainer write into the journal that a peer is in quarantine."""
        self._notices.append({"peer": peer, "rejections": rejections, "reason": reason})

    def take_notices(self) -> Iterator[dict[str, Any]]:
        """What there is to write since the last time. Trainer."""
        while self._notices:
            yield self._notices.popleft()

    def judge(self, peer: str, apart: Mapping[Role, Apart], *, is_whole: bool) -> Verdict:
        """What becomes of values that may be averaged with this node's.

        Args:
            peer: whose.
            apart: how far they are from this node's.
            is_whole: they are taken as they are or not at all, because a part of the step would break what the method
                conserves.
        """
        reason = self.impossible(peer, apart)
        if reason:
            return Verdict(0.0, reason)
        share = 1.0
        for role, measured in apart.items():
            if not math.isfinite(measured.own_squares):
                continue
            size, distance = _size(measured), measured.distance
            start = _START.get(role, _START_OF_OTHERS) * size
            bound = self._bounds[role].take(peer, distance, start=start, floor=_FLOOR * size)
            if not is_whole:
                share = min(share, _share(distance, bound))
            if is_whole and distance > max(FAR * bound, start):
                reason = (
                    f"the model of peer {peer} is {distance:.3g} per {role.value} from this node's, more than {FAR:g} "
                    f"times what is usual here"
                )
                share = 0.0
        return Verdict(share, reason)

    def impossible(self, peer: str, apart: Mapping[Role, Apart]) -> str:
        """Why no honest peer has such values; empty if one may."""
        for role, measured in apart.items():
            if not math.isfinite(measured.own_squares):
                continue  # this node's own model is lost: whatever is finite is better
            size = _size(measured)
            usual = self._bounds[role].bound(start=0.0, floor=0.0)
            most = max(_MOST.get(role, _MOST_OF_OTHERS) * size, FAR * usual)
            if not measured.distance <= most:  # also for NaN
                return (
                    f"the model of peer {peer} is {measured.distance:.3g} per {role.value} from this node's; with "
                    f"values of about {size:.3g} here, at most {most:.3g} is believed"
                )
        return ""

    # --- Words ----------------------------------------------------------------------------------------------------

    def believed(self, peer: str, said: State, own: State) -> State:
        """A peer's state as far as it is believed: clock, round and loss the nearer to this node's, the less usual."""
        clock = self._near(self._clock, peer, said.clock, own.clock)
        round_ = self._near(self._round, peer, said.round, own.round)
        return replace(said, clock=max(clock, 0.0), round=max(int(round_), 0), loss=self._loss_of(peer, said, own))

    def _near(self, bound: RunningBound, peer: str, theirs: float, own: float) -> float:
        lead = theirs - own
        share = _share(abs(lead), bound.take(peer, abs(lead), start=_FIRST_LEAD, floor=_LEAST_LEAD))
        return theirs if share == 1.0 else own + lead * share  # to the bit, where all is believed

    def _loss_of(self, peer: str, said: State, own: State) -> float | None:
        if said.loss is None or own.loss is None or said.has_diverged or own.has_diverged or own.loss <= 0.0:
            return said.loss
        ratio = math.log(said.loss / own.loss) if said.loss / own.loss > 0.0 else -math.inf
        share = _share(abs(ratio), self._loss.take(peer, abs(ratio), start=_LEAST_LOSSES, floor=_LEAST_LOSSES))
        if share == 1.0:
            return said.loss
        return own.loss * math.exp(ratio * share) if math.isfinite(ratio) else own.loss

    # --- Elders ---------------------------------------------------------------------------------------------------

    def confirms(self, peer: str, said: State, others: Collection[str], *, has_much_to_lose: bool) -> bool:
        """Whether a peer's model may replace this node's.

        Two peers of one lineage must say so, or one alone three times: while nobody else answers, or while this node's
        own model is worth no more than a few updates.

        Args:
            peer: who says that it is the elder.
            said: its state.
            others: peers that answer.
            has_much_to_lose: this node has trained for a while.
        """
        lineage, times = self._claims.get(peer, (said.lineage, 0))
        self._claims[peer] = (said.lineage, times + 1 if lineage == said.lineage else 1)
        if any(name != peer and claimed == said.lineage for name, (claimed, _) in self._claims.items()):
            return True
        is_alone = not any(other != peer for other in others)
        return self._claims[peer][1] >= _ALONE and (is_alone or not has_much_to_lose)

    def replaced(self) -> None:
        """This node's model was replaced: distances from the former one say nothing."""
        self._claims.clear()
        for bound in self._all_bounds():
            bound.clear()

    def forget(self, peer: str) -> None:
        """A peer is gone for good."""
        self._claims.pop(peer, None)
        for bound in self._all_bounds():
            bound.forget(peer)

    def _all_bounds(self) -> tuple[RunningBound, ...]:
        return (*self._bounds.values(), self._clock, self._round, self._loss)


def _share(distance: float, bound: float) -> float:
    """How much of the way to a peer is gone: all within the bound, the less the further beyond it."""
    return 1.0 if distance <= bound else (bound / distance) ** _STEEPNESS


def _size(measured: Apart) -> float:
    size = measured.own_size
    return max(size, _LEAST_SIZE) if size > 0.0 else 1.0
