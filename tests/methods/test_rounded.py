"""What methods conserve when what they send is rounded: the same as when it is not, because both sides count alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_support import (
    METHODS,
    PUSHING,
    SIZE,
    anchors_with_momentum,
    begin,
    conservation,
    first_total,
    masses,
    settle,
    spread,
    starts,
    weighted_sum,
)

from dpwa.methods.base import Conservation
from support import Cluster, VectorModel, mostly_slow

pytestmark = pytest.mark.seconds

CODECS = ("fp16", "bf16", "int8")
CONSERVING = [name for name in METHODS if name not in ("pull", "sparta")]

LARGEST_ERROR = {"fp16": 1 / 2048, "bf16": 1 / 256, "int8": 1 / 253}
"""Of a value, beside the largest of its block (docs/protocol.md)."""


def conserved(cluster: Cluster) -> np.ndarray:
    """What the cluster's method conserves, divided by what all nodes count together: a model."""
    if cluster.config.method == "noloco":
        return anchors_with_momentum(cluster)
    if conservation(cluster) is Conservation.COLUMN:
        return weighted_sum(cluster) / first_total(cluster)
    return cluster.vectors().mean(axis=0)


@pytest.mark.parametrize("codec", mostly_slow(CODECS, "int8"))
@pytest.mark.parametrize("name", CONSERVING)
def test_what_is_conserved_is_conserved_to_the_last_digits_in_every_codec(cluster, name, codec):
    start = starts(5)
    begin(cluster, start, name, codec=codec, shared_memory="off")
    cluster.step_all(30)
    settle(cluster)
    assert np.abs(conserved(cluster) - start.mean(axis=0)).max() < 1e-12
    assert spread(cluster.vectors()) < 0.9 * spread(start)
    if name in PUSHING:
        assert masses(cluster).sum() == pytest.approx(first_total(cluster), abs=1e-9)
    else:
        # Something was rounded: nodes that meet do not come nearer to each other than the codec can tell apart.
        apart = np.abs(cluster.vectors() - cluster.vectors()[0])[1:]
        assert apart.max() > 1e-6


@pytest.mark.parametrize("codec", CODECS)
def test_two_nodes_that_meet_in_the_middle_are_apart_by_what_was_rounded_and_their_mean_is_to_the_bit(in_memory, codec):
    """x1 + (r2 - r1) / 2 and x2 + (r1 - r2) / 2, with r the rounded model: what is left is (x2 - r2) - (x1 - r1)."""
    start = starts(2)
    begin(in_memory, np.zeros((2, SIZE)), "adpsgd", codec=codec)
    in_memory.step_all(6)
    settle(in_memory)
    for node in in_memory.nodes:
        node.method.probability = 0.0
    for model, vector in zip(in_memory.models, start, strict=True):
        model.vector[:] = vector
    in_memory.step_all(1)  # both publish
    before = in_memory.nodes[0].statistics().method["pairs"]
    in_memory.nodes[0].method.probability = 1.0
    in_memory.nodes[0].step(1.0)
    settle(in_memory)
    assert in_memory.nodes[0].statistics().method["pairs"] == before + 1
    first, second = in_memory.vectors()
    largest = np.abs(start).reshape(2, -1, 256).max(axis=2).repeat(256, axis=1)
    allowed = LARGEST_ERROR[codec] * (largest if codec == "int8" else np.abs(start))
    assert np.abs(first - second).max() > 0
    assert (np.abs(first - second) <= 1.01 * allowed.sum(axis=0) + 1e-12).all()
    assert first + second == pytest.approx(start.sum(axis=0), abs=1e-14)


@pytest.mark.parametrize("codec", CODECS)
def test_who_pushes_keeps_what_rounding_has_taken(in_memory, codec):
    """Half of a mass of 1/2 goes: the receiver comes to (2 x2 + r1) / 3, and the giver to x1 + (x1 - r1)."""
    start = starts(2)
    begin(in_memory, np.zeros((2, SIZE)), "gosgd", codec=codec, pull_probability=0.0)
    in_memory.step_all(6)
    for model, vector in zip(in_memory.models, start, strict=True):
        model.vector[:] = vector
    in_memory.nodes[0].method.probability = 1.0
    in_memory.nodes[0].step(1.0)
    in_memory.nodes[0].method.probability = 0.0
    in_memory.step_all(4)
    assert masses(in_memory) == pytest.approx([0.25, 0.75])
    first, second = in_memory.vectors()
    rounded = 3 * second - 2 * start[1]
    assert first - start[0] == pytest.approx(start[0] - rounded, abs=1e-12)
    assert 1e-6 < np.abs(first - start[0]).max() < 2 * LARGEST_ERROR[codec] * np.abs(start).max()
    assert weighted_sum(in_memory) == pytest.approx(start.mean(axis=0), abs=1e-14)


@pytest.mark.heavy
@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([name for name in CONSERVING if name != "noloco"]),
    codec=st.sampled_from(CODECS),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 5),
    exponents=st.tuples(st.integers(-8, 4), st.integers(0, 3)),
    sweeps=st.integers(1, 25),
)
def test_whatever_the_values_their_sum_is_conserved(name, codec, seed, count, exponents, sweeps):
    """Values of very different sizes side by side, some beyond what float16 holds, and nodes that train meanwhile."""
    low, width = exponents
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(low, low + width, SIZE)
    start = size * rng.normal(size=(count, SIZE))
    cluster = Cluster("in_memory")
    try:
        # By default sgp rather loses progress than makes a step more than twice as long.
        begin(cluster, start, name, codec=codec, seed=seed % 2**32, sgp={"debias": False} if name == "sgp" else {})
        cluster.step_all(sweeps)
        settle(cluster)
        assert (np.abs(conserved(cluster) - start.mean(axis=0)) <= 1e-12 * np.abs(start).max()).all()
    finally:
        cluster.close()


@pytest.mark.parametrize("name", ["gosgd", "adpsgd"])
def test_a_model_that_diverges_is_refused_however_it_travels(in_memory, name):
    begin(in_memory, starts(2), name, codec="int8")
    in_memory.step_all(6)
    settle(in_memory)
    before = in_memory.models[0].vector.copy()
    in_memory.models[1].vector[7] = np.nan
    in_memory.step_all(6)
    assert np.isfinite(in_memory.models[0].vector).all()
    # It has kept what rounding took from what it gave, and met what the other was before.
    kept = 12 * LARGEST_ERROR["int8"] * np.abs(before).max()
    assert np.abs(in_memory.models[0].vector - before).max() < kept


def test_a_single_value_beyond_the_codec_lets_its_chunk_travel_as_it_is(in_memory):
    start = starts(2)
    start[0, 5] = 1e6
    settings = {"method": "adpsgd", "codec": "fp16", "guard": "finite"}
    in_memory.start([VectorModel(vector) for vector in start], **settings)
    in_memory.step_all(8)
    settle(in_memory)
    assert in_memory.vectors().mean(axis=0) == pytest.approx(start.mean(axis=0), abs=1e-9)
    assert in_memory.models[0].vector[5] == pytest.approx(5e5, rel=1e-3)
