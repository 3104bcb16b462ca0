"""What each method promises when messages are lost, repeated and out of order, over both transports."""

from __future__ import annotations

import numpy as np
import pytest
from method_support import (
    METHODS,
    anchors_with_momentum,
    begin,
    conservation,
    counted,
    first_total,
    masses,
    settle,
    spread,
    starts,
    weighted_sum,
)

from dpwa.methods.base import Conservation
from support import Cluster

pytestmark = pytest.mark.heavy

FAULTS = {"drop": 0.1, "duplicate": 0.1, "reorder": 0.1}
SETTINGS = {"faults": FAULTS, "timeout_ms": 50, "flow_control": {"probe_s": 0.01, "probe_max_s": 0.02}}
"""A lost message costs the one who waits for its answer a timeout: a short one, so that the tests are short."""


def injected(cluster: Cluster, kind: str) -> int:
    """How many faults of a kind there were."""
    return sum(node.statistics().faults[kind] for node in cluster.nodes)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_its_promise_with_a_tenth_of_the_messages_lost_repeated_or_out_of_order(cluster, name):
    start = starts(4)
    extra = {"noloco": {"every": 4}} if name == "noloco" else {}
    begin(cluster, start, name, **SETTINGS, **extra)
    cluster.step_all(120 if cluster.transport == "in_memory" else 40)
    settle(cluster)
    assert injected(cluster, "drop") > 3
    assert injected(cluster, "duplicate") > 3
    assert spread(cluster.vectors()) < 0.7 * spread(start)
    kind = conservation(cluster)
    if kind is Conservation.COLUMN:
        check_masses(cluster, start)
    elif kind is Conservation.DOUBLY:
        check_mean(cluster, start)


def check_masses(cluster: Cluster, start: np.ndarray) -> None:
    """All mass is there, and the mean by mass is that of the first models."""
    total = masses(cluster).sum()
    assert masses(cluster, "mass_lost").sum() == 0
    assert total == pytest.approx(first_total(cluster), abs=1e-9)
    assert np.abs(weighted_sum(cluster) / total - start.mean(axis=0)).max() < 1e-12
    assert injected(cluster, "reorder") > 0


def check_mean(cluster: Cluster, start: np.ndarray) -> None:
    """The mean is that of the first models, unless somebody has counted why not."""
    missed = sum(node.statistics().method.get("missed", 0) for node in cluster.nodes) + counted(cluster, "lost")
    if cluster.transport == "in_memory":
        assert missed == 0
    mean = anchors_with_momentum(cluster) if cluster.config.method == "noloco" else cluster.vectors().mean(axis=0)
    bias = np.abs(mean - start.mean(axis=0)).max()
    assert bias < 1e-12 or missed > 0
