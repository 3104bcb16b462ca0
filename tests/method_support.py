"""What the conformance tests of the methods share: the methods with small options, how to settle, what must be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from dpwa.methods.base import Conservation
from dpwa.methods.noloco import NoLoCo
from support import Cluster, VectorModel, wait_until

METHODS: Mapping[str, Mapping[str, object]] = {
    "pull": {"method": "pull"},
    "gosgd": {"method": "gosgd"},
    "sgp": {"method": "sgp"},
    "adpsgd": {"method": "adpsgd"},
    "dpsgd": {"method": "dpsgd", "dpsgd": {"deadline_ms": 2000}},
    "noloco": {"method": "noloco", "noloco": {"every": 2}},
    "elastic": {"method": "elastic"},
    "sparta": {"method": "sparta", "sparta": {"fraction": 0.25}},
    "sparta in pairs": {"method": "sparta", "sparta": {"fraction": 0.25, "base": "adpsgd"}},
}
PUSHING = ("gosgd", "sgp")
PAIRING = ("adpsgd", "elastic", "sparta in pairs")

SIZE = 2048
"""Four pieces of 4 KiB, so that a quarter of the parameters is one."""


def starts(count: int, seed: int = 0) -> np.ndarray:
    """The first models, shape (count, SIZE)."""
    return np.random.default_rng(seed).normal(size=(count, SIZE))


def begin(cluster: Cluster, start: np.ndarray, name: str, **settings: object) -> None:
    """A cluster whose nodes average by the method with this name in `METHODS`, from these models."""
    cluster.start([VectorModel(vector) for vector in start], **{**METHODS[name], **settings})


def begin_dpsgd_again(cluster: Cluster, start: np.ndarray) -> None:
    """Step until all nodes have joined and their first round is over, and put the models back to where they began.

    A round in which somebody has not joined yet misses him, and is only row-stochastic then.
    """

    def have_joined() -> bool:
        cluster.step_all()
        return not any(node._boundary._joining.is_on for node in cluster.nodes)

    wait_until(have_joined, "all have joined")
    cluster.step_all(3)
    for model, vector in zip(cluster.models, start, strict=True):
        model.vector[:] = vector


def conservation(cluster: Cluster) -> Conservation:
    """What the cluster's method promises."""
    return cluster.nodes[0].method.conservation


def spread(vectors: np.ndarray) -> float:
    """How far the models are from their mean."""
    return float(np.linalg.norm(vectors - vectors.mean(axis=0)))


def masses(cluster: Cluster, key: str = "mass") -> np.ndarray:
    """A number of the push method, node by node; shape (nodes,)."""
    return np.array([node.statistics().method[key] for node in cluster.nodes])


def counted(cluster: Cluster, outcome: str) -> int:
    """How many exchanges of all nodes have ended so."""
    return sum(node.statistics().exchanges.get(outcome, 0) for node in cluster.nodes)


def first_total(cluster: Cluster) -> float:
    """The mass that all nodes together begin with."""
    return 1.0 if cluster.config.method == "gosgd" else float(len(cluster.config.nodes))


def weighted_sum(cluster: Cluster) -> np.ndarray:
    """What a push method conserves beside the mass: the sum of the models by their masses; shape (SIZE,)."""
    return masses(cluster) @ cluster.vectors()


def anchors_with_momentum(cluster: Cluster) -> np.ndarray:
    """What pairs of noloco conserve without training, whoever has met whom: the mean of phi + mu m / (1 - mu)."""
    mu = cluster.config.noloco.momentum
    states = [node.state_dict()["of_method"]["outer"] for node in cluster.nodes]
    return np.mean([state["anchor.0"] + mu / (1 - mu) * state["momentum.0"] for state in states], axis=0)


@contextmanager
def nobody_asking(cluster: Cluster) -> Iterator[None]:
    """No node begins an exchange meanwhile, but for the rounds of dpsgd."""
    methods = [node.method for node in cluster.nodes]
    before = [(method.probability, getattr(method, "_every", 0)) for method in methods]
    for method in methods:
        method.probability = 0.0
        if isinstance(method, NoLoCo):
            method._every = 1_000_000
    yield
    for method, (probability, every) in zip(methods, before, strict=True):
        method.probability = probability
        if isinstance(method, NoLoCo):
            method._every = every


def settle(cluster: Cluster, total: float | None = None) -> None:
    """Step without beginning exchanges until what is under way has ended, and its effects are there.

    A push, or a pair, has ended for the one who began it a moment before the other can apply its part.

    Args:
        cluster: whose nodes.
        total: their mass, if some node has ended and taken its own away.
    """
    expected = first_total(cluster) if total is None else total

    def is_settled() -> bool:
        cluster.step_all()
        if cluster.config.method != "dpsgd" and any(node._boundary.in_flight for node in cluster.nodes):
            return False
        if any(node._parts.context.proposals._pair is not None for node in cluster.nodes):
            return False
        if conservation(cluster) is not Conservation.COLUMN:
            return True
        held = masses(cluster).sum() + masses(cluster, "mass_lost").sum()
        return masses(cluster, "mass_under_way").sum() == 0 and abs(held - expected) < 1e-9

    with nobody_asking(cluster):
        wait_until(is_settled, "everything under way has ended")
