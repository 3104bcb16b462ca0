"""What a link bears: which codec, and how much of a model in one exchange, by its measured speed.

The speed is learnt from transfers that ended and from those that the timeout broke off. So a model that does not fit
into the timeout travels all the same, rounded and in parts where the kind of exchange allows that; where it does not,
`advice` says what to set.

Must not know: time. Runs in: the thread that performs the exchanges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from dpwa.snapshot.state import Codec

__all__ = ["LinkCodecs", "in_words"]

# A transfer that takes less than this is fast enough as it is; losing digits would bring nothing.
_FAST_S = 0.1

# Over a link that is slower than this, a transfer must also take no longer than the pause before it: else it is the
# link that says how often nodes exchange. Over a faster one (1 Gbit/s is 125 MB/s) the little time that rounding saves
# is not worth the digits, and the time of the peer's processor.
_HURRY_BELOW_BYTES_PER_S = 200e6

# So fast a transfer always is.
_AT_ONCE_S = 0.02

# A short transfer takes as long for its beginning as for its bytes, and the link looks slower than it is. So one of so
# many that are rounded for the sake of short pauses, or of a trainer that waits, travels as it is, and shows how long
# that takes.
_LOOK_AGAIN = 16

# So long a trainer may wait for a transfer over such a link; a longer one is worth some digits.
_WAITED_S = 0.03

# One that would still take longer than this with half of the bytes gets a quarter of them.
_SLOW_S = 1.0

# How much of the measured speed comes from the past: a single stalled transfer must not change the codec for long. Of
# orders of magnitude: in a mean of speeds, some ten transfers of a slow link would not outweigh a fast one.
_MEMORY = 0.7

# A short transfer whose bytes all lay ready looks infinitely fast. One transfer counts as at most so many times as fast
# as those before it; a link that has really become faster shows it again and again.
_FASTEST_RISE = 8.0

# Of the timeout, what a transfer is planned to take: links are not equally fast all the time.
_PLANNED = 0.6

# What is worth an exchange; also what `Rotation` can divide a model into.
_LEAST_SHARE = 1 / 64

# What is recommended lasts for a link that gets slower by a quarter.
_RESERVE = 1.25


class LinkCodecs:
    """Chooses codecs and shares by the measured speed of each link.

    Args:
        codec: the config's `codec`: `auto`, or the name of one codec for all links.
        sizes: bytes of a whole snapshot in each codec.
        timeout_s: the longest that a transfer is planned to take.
        longest_s: the longest that it may take.
    """

    def __init__(self, codec: str, *, sizes: Mapping[Codec, int], timeout_s: float, longest_s: float) -> None:
        self._fixed = None if codec == "auto" else Codec[codec.upper()]
        self._sizes = sizes
        self._timeout_s = timeout_s
        self._longest_s = longest_s
        self._bytes_per_s: dict[str, float] = {}
        self._raw_bytes_per_s: dict[str, float] = {}  # of the last one that travelled as it is
        self._rounded: Counter[str] = Counter()  # transfers of each peer since one travelled as it is
        self._pause_s = math.inf

    def paused(self, pause_s: float) -> None:
        """Note for how long nothing had been fetched when the next fetch began, from whomever."""
        known = pause_s if math.isinf(self._pause_s) else self._pause_s
        self._pause_s = _MEMORY * known + (1 - _MEMORY) * pause_s

    def forget(self, peer: str) -> None:
        """The peer is gone for good."""
        for numbers in (self._bytes_per_s, self._raw_bytes_per_s, self._rounded):
            numbers.pop(peer, None)

    def choose(self, peer: str, share: float, planned_s: float = math.inf) -> Codec:
        """The codec for what is fetched.

        Args:
            peer: the peer to be asked.
            share: of the parameters that it brings.
            planned_s: of the time that a round waits, what there is for this transfer; infinite: no trainer waits.
        """
        if self._fixed is not None:
            return self._fixed
        speed = self._bytes_per_s.get(peer)
        if speed is None:
            return Codec.RAW
        most_s = _PLANNED * min(planned_s, self._timeout_s)
        raw_s = self._sizes[Codec.RAW] * share / max(speed, self._raw_bytes_per_s.get(peer, 0.0))
        if self._rounded[peer] >= _LOOK_AGAIN and raw_s <= min(_FAST_S, most_s):
            return Codec.RAW
        if speed < _HURRY_BELOW_BYTES_PER_S:
            most_s = min(most_s, max(_AT_ONCE_S, self._pause_s) if math.isinf(planned_s) else _WAITED_S)
        if raw_s <= min(_FAST_S, most_s):
            return Codec.RAW
        is_enough = self._sizes[Codec.FP16] * share / speed <= min(_SLOW_S, most_s)
        return Codec.FP16 if is_enough else Codec.INT8

    def expected_s(self, peer: str, planned_s: float) -> float:
        """How long all of the parameters will take, in the codec that is chosen for them; 0 while nothing is known."""
        speed = self._bytes_per_s.get(peer)
        return 0.0 if speed is None else self._sizes[self.choose(peer, 1.0, planned_s)] / speed

    def fitting_share(self, peer: str) -> float:
        """The share of the parameters that fits into one exchange, with the codec that will be chosen for it."""
        speed = self._bytes_per_s.get(peer)
        if speed is None:
            return 1.0
        smallest = Codec.INT8 if self._fixed is None else self._fixed
        return min(1.0, max(_LEAST_SHARE, _PLANNED * self._timeout_s * speed / self._sizes[smallest]))

    def wanted_bytes(self, codec: Codec, share: float) -> float:
        """How many bytes a share of the parameters is in a codec."""
        return self._sizes[codec] * share

    def measured(self, peer: str, received_bytes: int, transfer_s: float, codec: Codec = Codec.RAW) -> None:
        """Note how long a transfer took; bytes as they travelled."""
        if received_bytes == 0 or transfer_s <= 0:
            return
        self._rounded[peer] = 0 if codec is Codec.RAW else self._rounded[peer] + 1
        speed = received_bytes / transfer_s
        if codec is Codec.RAW:
            self._raw_bytes_per_s[peer] = speed
        known = self._bytes_per_s.get(peer, speed)
        self._bytes_per_s[peer] = known * (min(speed, _FASTEST_RISE * known) / known) ** (1 - _MEMORY)

    def broke_off(self, peer: str, received_bytes: int, transfer_s: float) -> None:
        """Note what had come of a transfer when the timeout ended it.

        This counts in full: with a share of a better past, the next one would break off, too.
        """
        if received_bytes == 0 or transfer_s <= 0:
            return
        speed = received_bytes / transfer_s
        self._bytes_per_s[peer] = min(speed, self._bytes_per_s.get(peer, speed))
        self._raw_bytes_per_s.pop(peer, None)

    def advice(
        self, peer: str, share: float, *, exact: bool, shrinks: bool, planned_s: float = math.inf
    ) -> tuple[str, bool]:
        """What follows from a transfer that broke off, and whether a person has to do it.

        Args:
            peer: whose link it is.
            share: of the parameters that it was to bring.
            exact: it is wanted as it is, in whatever codec others are.
            shrinks: whether the next one may bring less of them.
            planned_s: of the time that a round waits, what there is for this transfer.
        """
        speed = self._bytes_per_s[peer]
        next_share = min(share, self.fitting_share(peer)) if shrinks else share
        codec = Codec.RAW if exact else self.choose(peer, next_share, planned_s)
        needed_s = self._sizes[codec] * next_share / speed
        if needed_s <= min(planned_s, self._longest_s):
            part = f" and about {next_share:.0%} of the parameters at a time" if next_share < share else ""
            return f"further ones use codec {codec.name.lower()}{part}, as long as the link is that slow", False
        if planned_s < self._longest_s:
            return (
                f"it does not fit into the {planned_s:.2g} s that a round has for it: let rounds wait "
                f"{math.ceil(_RESERVE * needed_s / planned_s * 10) / 10:g} times as long"
            ), True
        remedy = f"set timeout_ms to at least {_timeout_ms(needed_s)}"
        smaller_s = self._sizes[Codec.INT8] * next_share / speed
        if codec is not Codec.INT8 and smaller_s < needed_s:
            also = "" if _RESERVE * smaller_s <= self._longest_s else f" with timeout_ms {_timeout_ms(smaller_s)}"
            remedy += f", or codec: int8{also}"
        return f"it does not fit into {self._longest_s:g} s over this link: {remedy}", True


def in_words(number_of_bytes: float) -> str:
    """A number of bytes for a person to read."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if number_of_bytes >= size:
            return f"{number_of_bytes / size:.1f} {unit}"
    return f"{number_of_bytes:.0f} B"


def _timeout_ms(needed_s: float) -> int:
    """A round timeout with a reserve."""
    return math.ceil(_RESERVE * needed_s * 10) * 100
