"""Stochastic gradient push: push-sum along a directed graph that may change with time, without waiting.

A node holds a numerator x and a weight w that begins at 1, and trains at the de-biased `z = x / w`:
`x <- x - lr * g(z)`. In each step it keeps a share of (x, w) and gives the rest to an out-neighbour; receivers add up.
Assran et al., "Stochastic gradient push for distributed deep learning", arXiv 1811.10792, algorithms 1 and 2; here
always overlapped: what comes is added whenever it comes, x and w never apart. The out-neighbour is that of the round
where the topology has one per round (`one_peer_exponential`), else a random one by the topology's weights.

dpwa keeps z in the model, where gradients belong, and w beside it; then adding `(w_j z_j, w_j)` is a blend by mass, as
in GoSGD. The gradient step on x moves z by 1 / w of what the optimizer did, which is put right at the step boundary.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

from pydantic import Field

from dpwa.methods.gosgd import GoSGD
from dpwa.options import Options
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["SGP", "SGPOptions"]

# A step that is right to so many digits is left alone.
_RIGHT_ENOUGH = 1e-4


class SGPOptions(Options):
    """Options of the method sgp."""

    debias: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether a training step counts by 1 / weight; false saves a pass over the model.",
    )
    least_weight: float = Field(
        0.5, gt=0, le=1, description="The weight that a node counts as having at least; 0.5: no step more than doubles."
    )


class SGP(GoSGD):
    """See the module.

    Args:
        links, count, probability: see `Method`.
        debias: whether a training step counts by 1 / w. Without it the cost of one more pass over the model is saved,
            and nodes with little weight train as much as others, as in GoSGD.
        least_weight: a node counts as having at least this weight, above 0 to 1. One that has pushed and not yet got
            anything has half; nodes that do not push in step have moments with far less, in which 1 / w would multiply
            a step until the model diverges. What is cut off is lost to the sum.
    """

    name = "sgp"
    best_probability = 1.0  # a step counts in full, however light the node
    summary = "stochastic gradient push"
    description = (
        "each step gives model and half of the weight to an out-neighbour {often}, and counts by 1 / weight. "
        "Column-stochastic: the mean by weight is conserved, whatever is lost or late"
    )
    options = SGPOptions

    def __init__(
        self, links: Neighbourhood, count: int, probability: float, *, debias: bool = True, least_weight: float = 0.5
    ) -> None:
        super().__init__(links, count, probability)
        self._debias = debias
        self._least_weight = least_weight

    def _mass_of_one(self) -> float:
        return 1.0

    @property
    def wants_snapshot(self) -> bool:
        """See `Method.wants_snapshot`: the next step is measured from it."""
        return self._debias

    @property
    def corrects_steps(self) -> bool:
        """See `Method.corrects_steps`."""
        return self._debias

    def took_back(self, mass: float) -> float:
        """See `Method.took_back`. Training since then was scaled by the weight that was left."""
        share = super().took_back(mass)
        return mass / self._mass if self._debias else share

    def correction(self) -> float | None:
        """See `Method.correction`: `z' = z + (trained - z) / w` is the share `1 - 1 / w` of the way back."""
        if self._mass <= 0.0:
            return None  # a model that counts nothing yet trains like any other, until it is replaced by a peer's
        weight = max(self._mass, self._least_weight)
        if not self._debias or abs(weight - 1.0) < _RIGHT_ENOUGH:
            return None
        return 1.0 - 1.0 / weight
