"""Which models may be averaged with each other: those of one lineage, and those that are about equally old.

Each life of a node begins with a lineage of its own, and nodes that average become one lineage. A node that was started
again and knows nothing differs by that from one that is merely slow: its lineage is another, and its model far younger.
Such a model is never averaged with a trained one. It is replaced by it.

Runs in: `Standing.own` is swapped whole by the trainer and read by all
threads; the rest is pure.
"""

from __future__ import annotations

from enum import Enum

from dpwa.snapshot.state import State

__all__ = ["JOIN_LEAD", "Relation", "Standing", "reason_apart"]

JOIN_LEAD = 50.0
"""Updates by which models of different lineages may differ in age and still be averaged. Half of a few dozen early
updates is no loss to either side; half of an untrained model would be one to every node that blends it later."""


class Relation(Enum):
    """What a peer's model is to this node's."""

    SAME = "same"
    """Of one lineage, whatever their ages: a slow node is no stranger."""
    NEAR = "near"
    """Of two lineages and about one age: they are averaged, and are one lineage from then on."""
    ELDER = "elder"
    """Of another lineage and far older: it replaces this node's, and nothing else is done with it."""
    YOUNGER = "younger"
    """Of another lineage and far younger: nothing of it is taken."""

    @property
    def mixes(self) -> bool:
        """Whether the two may be averaged."""
        return self in (Relation.SAME, Relation.NEAR)


class Standing:
    """What a node's model is at this moment.

    Args:
        lineage: that the node's life begins with.
        heeds_age: False for a method that itself says who gets whose model: then all models are of one lineage.
    """

    def __init__(self, lineage: bytes, *, heeds_age: bool = True) -> None:
        self.own = State(loss=None, clock=0.0, lineage=lineage)
        """Set by the trainer in one assignment."""
        self.is_changing = False
        """A model that replaces this node's is on its way to the trainer: what peers push is judged after that."""
        self._heeds_age = heeds_age

    def relation(self, peer: State, own: State | None = None) -> Relation:
        """What a peer's model is to this node's.

        Args:
            peer: state of the peer's.
            own: state of this node's snapshot that it was compared with; None: of its model now.
        """
        own = self.own if own is None else own
        if not self._heeds_age or own.lineage == peer.lineage:
            return Relation.SAME
        lead = peer.clock - own.clock
        if abs(lead) < JOIN_LEAD:
            return Relation.NEAR
        return Relation.ELDER if lead > 0 else Relation.YOUNGER


def reason_apart(peer: str, relation: Relation, own: State, other: State) -> str:
    """Why a peer's model was not averaged with this node's, for a person to read."""
    lead = other.clock - own.clock
    if relation is Relation.YOUNGER:
        return f"the model of peer {peer} is of another lineage and {-lead:g} updates behind: nothing of it is taken"
    return f"the model of peer {peer} is of another lineage and {lead:g} updates ahead: it is to be taken over whole"
