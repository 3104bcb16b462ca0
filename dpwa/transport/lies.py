"""What a node gets of peers that lie, for experiments: other parameters, and other words about them.

Each node lies to itself about these peers, as if they had lied: so all of them can be honest processes of one script.

Must not know: sockets, what is believed. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.config.faults import LieOptions
from dpwa.exchange.messages import Offer
from dpwa.snapshot.layout import Section

__all__ = ["Lies"]

_Place = tuple[str, int, int, int]


class Lies:
    """The lies that one node is told.

    Args:
        options: of the peers that lie, at most one each.
    """

    def __init__(self, options: Sequence[LieOptions]) -> None:
        self._options = {lie.node: lie for lie in options}
        self._liar: LieOptions | None = None
        self._is_told = False
        self._old: dict[_Place, npt.NDArray[Any]] = {}

    def begin(self, peer: str, step: int) -> None:
        """What comes now is of this peer.

        Args:
            peer: who is asked.
            step: this node's own.
        """
        self._liar = self._options.get(peer)
        self._is_told = self._liar is not None and step >= self._liar.from_step

    def distort(self, section: Section, first: int, values: npt.NDArray[Any]) -> None:
        """Put the lie in the place of the peer's parameters.

        Args:
            section: what they belong to.
            first: the element of it that they begin with.
            values: shape (size,).
        """
        lie = self._liar
        if lie is None or lie.model is None:
            return
        if lie.model != "replay":
            if self._is_told:
                with np.errstate(over="ignore"):
                    values.fill(lie.model)
            return
        old = self._old.setdefault((lie.node, section.start_byte, first, len(values)), values.copy())
        if self._is_told:
            np.copyto(values, old)

    def said(self, offer: Offer) -> Offer | None:
        """What the peer says instead of its offer; None if it is honest."""
        lie = self._liar
        if lie is None or not self._is_told:
            return None
        clock = offer.clock if lie.clock is None else lie.clock
        return replace(offer, clock=clock, loss=offer.loss if lie.loss is None else lie.loss)
