"""Exchanges of parts of a model: what a part is, and what comes of blending one after the other."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.messages import MAX_WINDOW
from dpwa.exchange.slices import CHUNK_BYTES, RUN, Rotation, Slice, chunk_count
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.snapshot.layout import Layout, Role, TensorSpec
from dpwa.transport.in_memory import InMemoryTransport
from support import VectorModel, events_of, wait_until

pytestmark = pytest.mark.seconds

_DTYPES = st.sampled_from(["float64", "float32", "bfloat16", "float16"])


@st.composite
def _layouts(draw, *, buffers: bool = True):
    """Models of one chunk up to some hundred."""
    sizes = st.integers(1, 3000) | st.integers(1, 10_000_000)
    specs = [TensorSpec(f"p{i}", (draw(sizes),), draw(_DTYPES)) for i in range(draw(st.integers(1, 3)))]
    if buffers:
        count = draw(st.integers(0, 2))
        specs += [TensorSpec(f"b{i}", (draw(st.integers(1, 3000)),), draw(_DTYPES), Role.BUFFER) for i in range(count)]
    return Layout(specs)


_FRACTIONS = st.floats(0.001, 1.0)
_SEEDS = st.integers(0, 1000)


def _parameter_bytes(layout: Layout) -> int:
    return max(section.stop_byte for section in layout.sections if section.role is Role.PARAMETER)


@given(_layouts(), _FRACTIONS, _SEEDS)
def test_the_ranges_of_a_part_are_disjoint_inside_the_snapshot_and_hold_all_buffers(layout, fraction, seed):
    rotation = Rotation(layout, random.Random(seed))
    for part in [rotation.next(fraction) for _ in range(5)] + [rotation.whole()]:
        chunks = list(part.chunks())
        assert part.chunk_bytes % 64 == 0
        assert len(set(chunks)) == len(chunks) > 0
        assert min(chunks) >= 0
        assert max(chunks) < chunk_count(layout.total_bytes, part.chunk_bytes)
        assert all(count > 0 for _, count in part.ranges)
        for section in layout.sections:
            if section.role is Role.BUFFER:
                last = (section.stop_byte - 1) // part.chunk_bytes
                assert set(range(section.start_byte // part.chunk_bytes, last + 1)) <= set(chunks)


@given(_layouts(), _FRACTIONS, _SEEDS)
def test_the_share_of_a_part_is_what_it_brings_of_the_parameters_and_near_what_was_asked(layout, fraction, seed):
    part = Rotation(layout, random.Random(seed)).next(fraction)
    pieces = chunk_count(_parameter_bytes(layout), part.chunk_bytes)
    brought = sum(chunk < pieces for chunk in part.chunks())
    assert 0 < part.share <= 1
    # The chunk in which the parameters end may come with the buffers, in every part, and is not counted then.
    assert brought - 1 <= part.share * pieces + 1e-9
    assert part.share * pieces <= brought + 1e-9
    if not part.is_whole:
        assert abs(part.share - fraction) <= 0.5 / pieces + 1e-9 or part.share * pieces == pytest.approx(1)


@given(_layouts(), _FRACTIONS, _SEEDS)
def test_every_chunk_comes_within_one_round_and_none_more_often_than_others(layout, fraction, seed):
    rotation = Rotation(layout, random.Random(seed))
    first = rotation.next(fraction)
    assume(not first.is_whole)
    pieces = chunk_count(_parameter_bytes(layout), first.chunk_bytes)
    wanted = round(first.share * pieces)
    exchanges = math.ceil(pieces / wanted)
    parts = [first] + [rotation.next(fraction) for _ in range(exchanges - 1)]
    counts = Counter(chunk for part in parts for chunk in part.chunks())
    assert set(counts) == set(range(chunk_count(layout.total_bytes, first.chunk_bytes)))
    if all(section.role is Role.PARAMETER for section in layout.sections):
        assert set(counts.values()) <= {1, 2}


@given(_layouts(), _FRACTIONS, _SEEDS, st.sampled_from([Role.MOMENTUM, Role.RUNNING_MOMENT]))
def test_a_part_leaves_an_optimizers_state_out_and_the_whole_has_it(layout, fraction, seed, role):
    state = [TensorSpec(f"optimizer.{spec.name}", spec.shape, spec.dtype, role) for spec in layout.tensors]
    extended = Layout([*layout.tensors, *state])
    rotation, plain = Rotation(extended, random.Random(seed)), Rotation(layout, random.Random(seed))
    part = rotation.next(fraction)
    if part.is_whole:
        assert list(part.chunks()) == list(range(chunk_count(extended.total_bytes, part.chunk_bytes)))
    else:
        assert part == plain.next(fraction)


@given(_layouts(), st.lists(_FRACTIONS, min_size=1, max_size=10), _SEEDS)
def test_the_same_seed_gives_the_same_parts(layout, fractions, seed):
    one, other = (Rotation(layout, random.Random(seed)) for _ in range(2))
    assert [one.next(fraction) for fraction in fractions] == [other.next(fraction) for fraction in fractions]


def test_nodes_with_different_seeds_begin_at_different_parts():
    layout = Layout([TensorSpec("a", (1_000_000,), "float32")])
    firsts = {Rotation(layout, random.Random(f"0/w{number}/part")).next(0.1).ranges for number in range(20)}
    assert len(firsts) > 10


@given(_layouts(), _FRACTIONS, _SEEDS)
def test_requests_name_the_same_chunks_a_few_at_a_time(layout, fraction, seed):
    part = Rotation(layout, random.Random(seed)).next(fraction)
    requests = list(part.requests())
    assert all(0 < count <= part.run for _, count in requests)
    # Two runs are under way at one time, and a server sends no more than a window.
    assert 2 * part.run <= MAX_WINDOW
    assert part.run * part.chunk_bytes <= RUN * CHUNK_BYTES
    assert [chunk for first, count in requests for chunk in range(first, first + count)] == list(part.chunks())


def test_a_fraction_of_one_is_the_whole_snapshot_in_one_range():
    layout = Layout([TensorSpec("a", (1_000_000,), "float32"), TensorSpec("b", (10,), "float32", Role.BUFFER)])
    rotation = Rotation(layout, random.Random(1))
    part = rotation.next(1.0)
    assert replace(part, window=(0, 0)) == rotation.whole()  # it knows where a part of it would begin
    assert part.is_whole
    assert part.ranges == ((0, chunk_count(layout.total_bytes, part.chunk_bytes)),)
    assert not Slice(64, ((0, 1),), 0.5).is_whole


def test_a_model_of_buffers_alone_is_always_pulled_whole():
    layout = Layout([TensorSpec("b", (100_000,), "float32", Role.BUFFER)])
    assert Rotation(layout, random.Random(1)).next(0.1).is_whole


# --- In a cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error"), [({}, 1e-9), ({"shared_memory": "off"}, 1e-9), ({"codec": "int8"}, 0.1)], ids=str
)
def test_parts_bring_all_coordinates_to_consensus(cluster, settings, error):
    rng = np.random.default_rng(1)
    models = [VectorModel(rng.normal(size=50_000)) for _ in range(3)]
    before = np.stack([model.vector for model in models])
    cluster.start(models, pull_fraction=0.25, constant={"value": 0.5}, **settings)
    wait_until(lambda: cluster.step_all() or np.ptp(cluster.vectors(), axis=0).max() < 1e-3, "consensus")
    assert (cluster.vectors() <= before.max(axis=0) + error).all()
    assert (cluster.vectors() >= before.min(axis=0) - error).all()


def test_a_partial_blend_changes_its_share_of_the_coordinates(in_memory, tmp_path):
    size = 64_000  # 512,000 bytes: 63 pieces
    first, _ = in_memory.start(
        [VectorModel(np.zeros(size)), VectorModel(np.zeros(size))], pull_fraction=0.25, run_dir=tmp_path
    )
    in_memory.step_all(4)
    in_memory.models[1].vector[:] = 1.0
    in_memory.nodes[1].step(1.0)
    wait_until(lambda: first.step(1.0) or in_memory.models[0].vector.any(), "the first blend of ones")
    changed = np.flatnonzero(in_memory.models[0].vector)
    first.close()
    share = events_of(tmp_path, "w1", outcome="blended")[-1]["share"]
    assert 0.2 < share < 0.3
    assert len(changed) == pytest.approx(share * size, abs=1024)
    gaps = sum(after - before > 1 for before, after in pairwise(changed))
    assert gaps <= 1, "one window, that may go round"


def test_a_partial_blend_advances_the_clock_by_its_share(in_memory, tmp_path):
    models = [VectorModel(np.zeros(64_000)) for _ in range(2)]
    first, second = in_memory.start(models, pull_fraction=0.25, constant={"value": 0.5}, run_dir=tmp_path)
    in_memory.step_all(5)
    for _ in range(40):
        second.step(1.0)
    blended = first.statistics().blended
    clocks = [first.statistics().clock]

    def blended_once_more() -> bool:
        first.step(1.0)
        clocks.append(first.statistics().clock)
        return first.statistics().blended > blended

    wait_until(blended_once_more, "a partial blend")
    first.close()
    event = events_of(tmp_path, "w1", outcome="blended")[-1]
    assert event["peer_clock"] > event["clock"] + 5
    advance = event["factor"] * event["share"] * (event["peer_clock"] - event["clock"])
    assert 0.2 < event["share"] < 0.3
    assert clocks[-1] - clocks[-2] == pytest.approx(1 + advance)


# --- Bandwidth ------------------------------------------------------------------------------------------------------


def _used(zeromq, seconds: float, *, limit: int, model_bytes: int, **settings: object) -> list[float]:
    """Bytes per second that each of two nodes at full speed receives, once both have paid for joining."""
    models = [VectorModel(np.zeros(model_bytes // 8)) for _ in range(2)]
    settings = {"wait_ms": 0, "shared_memory": "off", **settings}
    nodes = zeromq.start(models, bandwidth_limit=f"{limit} B/s", **settings)
    stopped = threading.Event()

    def train(node) -> None:
        pace = threading.Event()
        while not stopped.is_set():
            pace.wait(0.005)
            node.step(1.0)

    trainers = [threading.Thread(target=train, args=(node,)) for node in nodes]
    for trainer in trainers:
        trainer.start()
    try:
        wait_until(lambda: all(node.statistics().blended >= 3 for node in nodes), "both have joined")
        start_s, before = time.monotonic(), [node.statistics().bytes_in for node in nodes]
        stopped.wait(seconds)
        elapsed_s = time.monotonic() - start_s
        after = [node.statistics().bytes_in for node in nodes]
    finally:
        stopped.set()
        for trainer in trainers:
            trainer.join()
    return [(late - early) / elapsed_s for early, late in zip(before, after, strict=True)]


def test_a_bandwidth_limit_holds_within_seconds(zeromq):
    limit = 4_000_000
    for used in _used(zeromq, 2.0, limit=limit, model_bytes=2_000_000):
        assert 0.7 * limit < used < 1.5 * limit  # the bucket holds 0.8 s on top


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["raw", "int8"])
@pytest.mark.parametrize("model_bytes", [500_000, 8_000_000])
def test_a_bandwidth_limit_holds_within_a_tenth_over_ten_seconds(zeromq, codec, model_bytes):
    limit = 4_000_000
    for used in _used(zeromq, 10.0, limit=limit, model_bytes=model_bytes, codec=codec):
        assert 0.9 * limit < used < 1.1 * limit


def test_joining_with_the_whole_model_does_not_make_later_parts_seem_dear(in_memory):
    """A model worth 20 s of the limit: once joining is paid for, all of the limit is used, and no more."""
    limit, now_s = 40_000, [0.0]
    in_memory.config = ClusterConfig.for_localhost(2, ports=free_ports(2), bandwidth_limit=f"{limit} B/s")

    def start(name: str) -> Node:
        model = VectorModel(np.zeros(20 * limit // 8))
        make = lambda wiring: InMemoryTransport(in_memory.network, name, wiring)  # noqa: E731
        node = Node(in_memory.config, name, model, make_transport=make, monotonic_s=lambda: now_s[0])
        node.start()
        in_memory.nodes.append(node)
        in_memory.models.append(model)
        return node

    def step() -> None:
        now_s[0] += 0.1
        in_memory.step_all()

    start("w1")
    for _ in range(20):  # alone
        step()
    late = start("w2")
    received = []
    for _ in range(800):
        step()
        received.append(late.statistics().bytes_in)
    assert received[5] >= 20 * limit, "the whole model"
    assert received[-1] - received[300] == pytest.approx(50 * limit, rel=0.1)


def test_reading_from_shared_memory_is_not_limited(zeromq):
    models = [VectorModel(np.zeros(100_000)) for _ in range(2)]
    nodes = zeromq.start(models, bandwidth_limit="1 kB/s")
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 20 for node in nodes), "many blends")
    assert all(node.statistics().bytes_in > 1_000_000 for node in nodes)


def test_a_part_that_is_narrowed_leaves_the_rest_for_the_next():
    layout = Layout([TensorSpec("a", (64 * 1024,), "float32")])
    rotation = Rotation(layout, random.Random(1))
    assert (rotation.fitting(0, 1.0), rotation.fitting(0, 0.5), rotation.fitting(16, 0.5)) == (0, 32, 0)
    part = rotation.next(1.0)
    assert part.is_whole
    first = part.window[0]
    half = rotation.narrowed(part, 32)
    assert half.window == (first, 32)
    assert half == Rotation(layout, random.Random(2)).window(first, 32)
    assert rotation.next(0.5).window == ((first + 32) % 64, 32)
    assert rotation.narrowed(half, 0) is half
    with pytest.raises(ValueError, match="33 pieces of 32"):
        rotation.narrowed(half, 33)
