"""In which codec this node's snapshots of rounds travel: one for all who ask.

A round conserves the mean of the models if every node gives all its neighbours the same values, and counts these as its
own. So the node that gives chooses, by what its neighbours wish: whoever has a slow link to it asks for a smaller
codec, and the smallest of the wishes holds for the next snapshot. A wish is a hint: whatever anybody claims, no sum is
broken.

Must not know: time. Runs in: the Rx thread notes wishes, the trainer's thread asks.
"""

from __future__ import annotations

from dpwa.snapshot.state import Codec

__all__ = ["RoundCodec"]

# A neighbour that has not asked for so many rounds is gone, or trains elsewhere; what it wished holds no longer.
_REMEMBERED_ROUNDS = 8


class RoundCodec:
    """Chooses for one node.

    Args:
        fixed: the one codec that the config names; None: by the links.
    """

    def __init__(self, fixed: Codec | None) -> None:
        self._fixed = fixed
        self._wishes: dict[str, tuple[int, Codec]] = {}

    def wish(self, peer: str, round_: int, codec: int) -> None:
        """A neighbour asks for the snapshot of a round, and would have it so. Rx thread."""
        self._wishes[peer] = (round_, Codec.known(codec))

    def of_round(self, round_: int) -> Codec:
        """The codec of the snapshot of this round. Trainer."""
        if self._fixed is not None:
            return self._fixed
        wishes = self._wishes.copy().values()  # the Rx thread may add one meanwhile
        heard = [codec for asked, codec in wishes if abs(round_ - asked) <= _REMEMBERED_ROUNDS]
        return max(heard, default=Codec.RAW)  # by their numbers, the later ones are the smaller ones
