"""Which codec to ask a peer for: a fixed one, or one that fits the speed of the link to it.

Must not know: sockets, threads, time. Runs in: the thread that performs the exchanges.
"""

from __future__ import annotations

from dpwa.transport.messages import Codec

__all__ = ["LinkCodecs"]

# A transfer that takes less than this is fast enough as it is; losing digits would bring nothing.
_FAST_S = 0.1

# One that would still take longer than this with half of the bytes gets a quarter of them.
_SLOW_S = 1.0

# How much of the measured speed comes from the past: a single stalled transfer must not change the codec for long.
_MEMORY = 0.7


class LinkCodecs:
    """Chooses codecs by the measured speed of each link.

    Args:
        codec: the config's `codec`: `auto`, or the name of one codec for all links.
    """

    def __init__(self, codec: str) -> None:
        self._fixed = None if codec == "auto" else Codec[codec.upper()]
        self._bytes_per_s: dict[str, float] = {}

    def choose(self, peer: str, wanted_bytes: float, *, exact: bool = False) -> Codec:
        """The codec for a pull.

        Args:
            peer: the peer to be asked.
            wanted_bytes: what the pull brings without a codec.
            exact: `auto` must not round: what is fetched has its counterpart at another node.
        """
        if self._fixed is not None:
            return self._fixed
        speed = self._bytes_per_s.get(peer)
        if exact or speed is None or wanted_bytes / speed <= _FAST_S:
            return Codec.RAW
        return Codec.FP16 if wanted_bytes / 2 / speed <= _SLOW_S else Codec.INT8

    def measured(self, peer: str, received_bytes: int, transfer_s: float) -> None:
        """Note how long a transfer took; bytes as they travelled."""
        if received_bytes == 0 or transfer_s <= 0:
            return
        speed = received_bytes / transfer_s
        known = self._bytes_per_s.get(peer, speed)
        self._bytes_per_s[peer] = _MEMORY * known + (1 - _MEMORY) * speed
