"""The last models of the nodes that finish, as they come to the one that averages them.

Must not know: who is asked, and when. Runs in: the trainer's thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.exchange import ExchangeResult
from dpwa.node.extended_model import ExtendedModel
from dpwa.node.publishing import Taken
from dpwa.snapshot.lineage import Relation
from dpwa.snapshot.mean import Mean
from dpwa.snapshot.staging import Staging, first_not_finite
from dpwa.snapshot.state import MERGE_ID_BYTES, Mark, MergeStage, State

__all__ = ["LastModels"]

# Clocks can be made up: an even older model than those before begins the sum anew only so often.
_MOST_RESTARTS = 8


class LastModels:
    """The final models that have come so far, as their sum.

    Models are averaged that may be averaged at any time: of one lineage, or of about one age. Those of nodes that were
    started anew and know nothing are left out, as are those with a loss that is not finite.

    Args:
        node: the node that averages.
        incarnation: of it.
        final: its own final model.
        model: the model.
        method: says by which weight each counts: all the same, or by its mass where masses define the mean.
        relation: of a state to another.
        eldest: state of a model that is known to be the eldest; None: that of the first one that comes.
        by_mass: False: masses do not count.
        restarts: how often it has begun anew for the sake of an older model.
    """

    def __init__(
        self,
        node: str,
        incarnation: bytes,
        final: Taken,
        model: ExtendedModel,
        method: Method,
        relation: Callable[[State, State], Relation],
        *,
        eldest: State | None = None,
        by_mass: bool = True,
        restarts: int = 0,
    ) -> None:
        self._about = (node, incarnation, final, model, method, relation)
        self._relation = relation
        self._eldest = eldest
        self._restarts = restarts
        self._by_mass = by_mass and method.kind is ExchangeKind.PUSH
        self._mean = Mean(model.own_sections)
        self._hash = hashlib.sha256()
        self._clock = 0.0
        self._lineages: list[bytes] = []
        self.done: set[str] = set()
        """Peers whose models have come, whether they count or not."""
        self.names: list[str] = []
        """Nodes whose models count."""
        snapshot = final.snapshot
        if first_not_finite(model.layout, snapshot.memory) is None and self._counts(snapshot.state):
            weight = self._note(node, incarnation, snapshot.version, snapshot.state)
            self._mean.add_snapshot(snapshot.memory, weight)

    def restarted(self, eldest: State | None) -> LastModels:
        """Begin anew with the state of an older model than any before; None: masses are not to count."""
        if eldest is None:
            return LastModels(*self._about, eldest=self._eldest, by_mass=False)
        return LastModels(*self._about, eldest=eldest, by_mass=self._by_mass, restarts=self._restarts + 1)

    @property
    def is_weightless(self) -> bool:
        """Whether all models that count have no mass."""
        return bool(self.names) and self._mean.weight == 0.0

    def add(self, peer: str, incarnation: bytes, result: ExchangeResult) -> bool:
        """Add a peer's model, if it counts; False if none that came before it does."""
        state, eldest = result.peer_state, self._eldest
        is_elder = eldest is not None and self._relation(state, eldest) is Relation.ELDER
        if is_elder and not state.has_diverged and self._restarts < _MOST_RESTARTS:
            return False
        self.done.add(peer)
        if self._counts(state):
            self._mean.add(result.values, self._note(peer, incarnation, result.version, state))
        return True

    def _counts(self, state: State) -> bool:
        if state.has_diverged:
            return False
        if self._eldest is None:
            self._eldest = state
        return self._relation(state, self._eldest).mixes

    def _note(self, node: str, incarnation: bytes, version: int, state: State) -> float:
        """Note a model that counts, and return its weight."""
        weight = state.mass if self._by_mass else 1.0
        self.names.append(node)
        self._hash.update(f"{node} {incarnation.hex()} {version};".encode())
        self._clock += weight * state.clock
        self._lineages.append(state.lineage)
        return weight

    def write(self, staging: Staging, model: ExtendedModel) -> bool:
        """Let the model be the mean; False if that is not finite: then nothing has changed."""
        staging.is_plain = True
        try:
            is_finite = self._mean.write(staging.values)
            if is_finite:
                model.blend(staging.values, 1.0)
            return is_finite
        finally:
            staging.is_plain = False

    @property
    def mark(self) -> Mark:
        """That of the mean."""
        return Mark(MergeStage.MERGED, len(self.names), self._hash.digest()[:MERGE_ID_BYTES])

    @property
    def state(self) -> State:
        """Age and lineage of the mean."""
        return State(None, self._clock / self._mean.weight, lineage=min(self._lineages))
