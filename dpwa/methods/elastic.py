"""Elastic averaging in its gossip form: two nodes pull at each other, and keep some of their distance.

`x_i -= a (s_i - s_j)` and `x_j += a (s_i - s_j)`: the elastic force of EASGD (Zhang et al., arXiv 1412.6651,
equations 5 and 6) between two workers instead of a worker and a centre; a below 1/2 lets the nodes explore. The mean is
conserved.

Must not know: sockets, threads, time. Runs in: the trainer's thread.
"""

from __future__ import annotations

from pydantic import Field

from dpwa.methods.adpsgd import Symmetric
from dpwa.options import Options
from dpwa.topology.neighbourhood import Neighbourhood

__all__ = ["Elastic", "ElasticOptions"]


class ElasticOptions(Options):
    """Options of the method elastic."""

    alpha: float = Field(0.25, gt=0, le=0.5, description="Share of the difference that each side goes; 0.5 meets.")


class Elastic(Symmetric):
    """See the module.

    Args:
        links, count, probability: see `Method`.
        alpha: a, above 0 up to 1/2; 1/2 is AD-PSGD.
    """

    name = "elastic"
    summary = "random pairs on an elastic"
    description = (
        "each step meets one random neighbour {often}, and both go {options.alpha:g} of the way to the other. Doubly "
        "stochastic: the mean is conserved"
    )
    options = ElasticOptions

    def __init__(self, links: Neighbourhood, count: int, probability: float, *, alpha: float = 0.25) -> None:
        super().__init__(links, count, probability, share=alpha)
