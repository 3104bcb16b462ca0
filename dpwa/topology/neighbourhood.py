"""Whom one node may exchange with, by name.

Must not know: sockets, threads, time, how a topology is made. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

__all__ = ["Neighbourhood"]


class _Topology(Protocol):
    @property
    def is_complete(self) -> bool: ...

    def row(self, node: int, round_: int) -> Mapping[int, float]: ...

    def column(self, node: int, round_: int) -> Mapping[int, float]: ...


class Neighbourhood:
    """The view that one node has of a topology.

    Args:
        topology: who hears whom.
        names: of all nodes, in the topology's order.
        node: the node's number.
        unasked: names of nodes that nobody can ask; where everybody hears everybody, nobody hears these.
    """

    def __init__(self, topology: _Topology, names: Sequence[str], node: int, unasked: Collection[str] = ()) -> None:
        self._topology = topology
        self._names = names
        self._node = node
        self._unasked = frozenset(unasked)

    def hears(self, round_: int) -> Mapping[str, float] | None:
        """In-neighbours with the weights that this node gives them; None: everybody, all with the same weight."""
        return None if self._topology.is_complete else self._named(self._topology.row(self._node, round_))

    def heard_by(self, round_: int) -> Mapping[str, float] | None:
        """Out-neighbours with the weights that they give this node; None: everybody, all with the same weight."""
        return None if self._topology.is_complete else self._named(self._topology.column(self._node, round_))

    def meets(self, round_: int) -> Mapping[str, float] | None:
        """In- and out-neighbours with the larger of both weights; None: everybody, all with the same weight."""
        if self._topology.is_complete:
            return None
        hears, heard_by = self._topology.row(self._node, round_), self._topology.column(self._node, round_)
        return self._named({peer: max(hears.get(peer, 0.0), heard_by.get(peer, 0.0)) for peer in {**hears, **heard_by}})

    def row(self, round_: int) -> Mapping[str, float]:
        """In-neighbours with the weights that this node gives them: its row of the mixing matrix without itself."""
        return self._named(self._topology.row(self._node, round_))

    def _named(self, weights: Mapping[int, float]) -> dict[str, float]:
        named = {self._names[peer]: weight for peer, weight in weights.items()}
        return {peer: weight for peer, weight in named.items() if peer not in self._unasked} if self._unasked else named
