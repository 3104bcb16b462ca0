"""Who gets what: every kind of partition, and its picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dpwa.errors import ConfigError
from dpwa.lab.report.partition_drawing import draw_partition
from dpwa.lab.study.settings import PartitionOptions
from dpwa.lab.training.partition import class_counts, least_samples, partition

CLOTHES = np.repeat(np.arange(10), 600)
"""Ten equal classes, as in Fashion-MNIST, a tenth of it."""

KINDS = ("iid", "classes", "dirichlet", "quantity")


def of_kind(kind: str, **numbers: object) -> PartitionOptions:
    return PartitionOptions.model_validate({"kind": kind, **numbers})


@st.composite
def deals(draw: st.DrawFn) -> tuple[np.ndarray, PartitionOptions, int, int]:
    """Labels, options that fit them, nodes and a seed."""
    classes = draw(st.integers(1, 8))
    nodes = draw(st.integers(1, 12))
    # Enough that no node can be left without a sample by the cutting of classes alone.
    sizes = draw(st.lists(st.integers(4 * nodes, 80), min_size=classes, max_size=classes))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(classes), sizes))
    options = of_kind(
        draw(st.sampled_from(KINDS)),
        classes_per_node=draw(st.integers(1, classes)),
        alpha=draw(st.floats(1e-6, 1e6)),
    )
    return labels, options, nodes, draw(st.integers(0, 2**32))


@given(deals())
@settings(deadline=None)
def test_parts_are_disjoint_and_together_all_samples_but_those_of_classes_that_nobody_drew(deal) -> None:
    labels, options, nodes, seed = deal
    parts = partition(labels, options, nodes, seed=seed)
    together = np.concatenate(parts)

    assert len(parts) == nodes
    assert all(len(part) > 0 and part.dtype == np.int64 and bool((np.diff(part) > 0).all()) for part in parts)
    assert len(np.unique(together)) == len(together)
    missing = np.setdiff1d(np.arange(len(labels)), together)
    left_out = np.setdiff1d(labels, labels[together])
    assert np.array_equal(missing, np.flatnonzero(np.isin(labels, left_out)))
    draws = nodes * options.classes_per_node if options.kind == "classes" else len(np.unique(labels))
    assert len(left_out) == max(0, len(np.unique(labels)) - draws)


@given(deals())
@settings(deadline=None)
def test_the_same_seed_gives_the_same_parts(deal) -> None:
    labels, options, nodes, seed = deal
    first, second = (partition(labels, options, nodes, seed=seed) for _ in range(2))

    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_different_seeds_give_different_parts(kind) -> None:
    one, other = (partition(CLOTHES, of_kind(kind), 4, seed=seed) for seed in (1, 2))

    assert not any(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@given(count=st.integers(1, 300), nodes=st.integers(1, 20), seed=st.integers(0, 1000))
def test_iid_parts_differ_by_one_sample_at_most(count, nodes, seed) -> None:
    assume(count >= nodes)
    sizes = [len(part) for part in partition(np.zeros(count, np.int64), of_kind("iid"), nodes, seed=seed)]

    assert max(sizes) - min(sizes) <= 1


def test_iid_parts_hold_every_class_in_its_share() -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind("iid"), 4, seed=1), 10)

    # Hypergeometric with mean 150 and a deviation of 10: five of them.
    assert bool((abs(counts - 150) < 50).all())


@given(nodes=st.integers(1, 64), classes_per_node=st.integers(1, 10), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_every_node_has_its_number_of_classes_and_every_class_as_many_nodes_as_any_other_or_one_more(
    nodes, classes_per_node, seed
) -> None:
    options = of_kind("classes", classes_per_node=classes_per_node)
    counts = class_counts(CLOTHES, partition(CLOTHES, options, nodes, seed=seed), 10)
    holders = (counts > 0).sum(axis=0)

    assert bool(((counts > 0).sum(axis=1) == classes_per_node).all())
    assert holders.max() - holders.min() <= 1
    assert bool((counts.sum(axis=0) == np.where(holders > 0, 600, 0)).all())
    # Half of what an equal cut would give it, less what rounding takes.
    assert bool((counts[counts > 0] >= 600 / holders.max() / 2 - 1).all())


@pytest.mark.seconds
@given(deals())
@settings(deadline=None, max_examples=40)
def test_equal_shards_are_of_one_size_and_hold_their_classes_in_disjoint_parts(deal) -> None:
    labels, options, nodes, seed = deal
    equal = options.model_copy(update={"kind": "classes", "equal": True})
    parts = partition(labels, equal, nodes, seed=seed)
    counts = class_counts(labels, parts, 8)

    assert len({len(part) for part in parts}) == 1
    assert all(bool((np.diff(part) > 0).all()) for part in parts)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    assert bool(((counts > 0).sum(axis=1) == options.classes_per_node).all())
    again = partition(labels, equal, nodes, seed=seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_six_nodes_with_two_of_ten_classes_and_equal_shards_hold_nine_tenths_of_the_samples(seed) -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind("classes", equal=True), 6, seed=seed), 10)

    assert counts.sum(axis=1).tolist() == [900] * 6
    assert bool(((counts > 0).sum(axis=1) == 2).all())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("nodes", "size"), [(5, 1200), (10, 600), (15, 400), (20, 300)])
def test_parts_by_class_are_of_equal_size_where_the_classes_can_be_cut_so(nodes, size, seed) -> None:
    sizes = [len(part) for part in partition(CLOTHES, of_kind("classes"), nodes, seed=seed)]

    assert all(abs(found - size) <= 2 for found in sizes)


@pytest.mark.parametrize("seed", range(10))
def test_six_nodes_with_two_of_ten_classes_use_all_samples_in_parts_as_equal_as_their_classes_allow(seed) -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind("classes"), 6, seed=seed), 10)

    # Eight classes have one holder. The two others have two each. Either four nodes share with one neighbour, or three
    # stand in a row, or two nodes have the same two classes.
    assert counts.sum() == 6000
    assert sorted(counts.sum(axis=1)) in (
        [900, 900, 900, 900, 1200, 1200],
        [800, 800, 800, 1200, 1200, 1200],
        [600, 600, 1200, 1200, 1200, 1200],
    )


def test_each_node_draws_its_classes_at_random() -> None:
    first_of_seed = [
        tuple(np.flatnonzero(class_counts(CLOTHES, partition(CLOTHES, of_kind("classes"), 6, seed=seed), 10)[0]))
        for seed in range(100)
    ]

    assert {label for pair in first_of_seed for label in pair} == set(range(10))
    assert len(set(first_of_seed)) > 30  # of the 45 pairs that there are


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("nodes", [2, 6, 64])
def test_a_skewed_partition_leaves_no_node_with_less_than_the_least(kind, alpha, nodes) -> None:
    for seed in range(5):
        sizes = [len(part) for part in partition(CLOTHES, of_kind(kind, alpha=alpha), nodes, seed=seed)]

        assert min(sizes) >= least_samples(len(CLOTHES), nodes) > 0
        assert sum(sizes) == len(CLOTHES)


def test_the_least_is_a_batch_or_a_quarter_of_an_equal_part_of_small_data() -> None:
    assert least_samples(60_000, 6) == 128
    assert least_samples(1437, 4) == 89
    assert least_samples(5, 4) == 1


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_a_large_alpha_is_even(kind) -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind(kind, alpha=1e6), 6, seed=1), 10)

    assert bool((abs(counts.sum(axis=1) - 1000) < 20).all())


def test_a_small_alpha_gives_a_class_to_one_node_and_a_large_one_to_all() -> None:
    def largest_share(alpha: float) -> float:
        counts = [
            class_counts(CLOTHES, partition(CLOTHES, of_kind("dirichlet", alpha=alpha), 6, seed=seed), 10)
            for seed in range(10)
        ]
        return float(np.mean([found.max(axis=0) / 600 for found in counts]))

    assert largest_share(0.01) > 0.8 > largest_share(0.5) > largest_share(10.0) > largest_share(1e6) > 1 / 6 - 1e-9


def test_proportions_of_a_class_have_the_variance_of_the_dirichlet_distribution() -> None:
    nodes, alpha = 4, 1.0
    # One class of 4000 samples: the shares of the nodes are one draw, of which 400 are made.
    labels = np.zeros(4000, np.int64)
    shares = np.array(
        [
            [len(part) / 4000 for part in partition(labels, of_kind("dirichlet", alpha=alpha), nodes, seed=seed)]
            for seed in range(400)
        ]
    )

    # Of a share: mean 1/n, variance (1/n)(1 - 1/n) / (n alpha + 1). The least of 128 samples cuts a little off.
    assert shares.mean(axis=0) == pytest.approx(np.full(nodes, 1 / nodes), abs=0.04)
    assert float(shares.var(axis=0).mean()) == pytest.approx(0.25 * 0.75 / 5, rel=0.15)


def test_quantity_skew_leaves_the_mixture_of_classes_as_it_is() -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind("quantity", alpha=1.0), 4, seed=2), 10)
    sizes = counts.sum(axis=1)

    assert sizes.max() > 2 * sizes.min()
    # Five deviations of a count of a tenth of the samples, if they were drawn one by one.
    assert bool((abs(counts - sizes[:, None] / 10) < 5 * np.sqrt(sizes[:, None] * 0.09)).all())


def test_more_nodes_than_samples_and_more_classes_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 1 to 3 nodes, one per sample at most, got 4"):
        partition(np.zeros(3, np.int64), of_kind("iid"), 4, seed=1)
    with pytest.raises(ConfigError, match=r"classes_per_node: expected at most 10, .* got 11"):
        partition(CLOTHES, of_kind("classes", classes_per_node=11), 4, seed=1)
    with pytest.raises(ConfigError, match="a node would get none"):
        partition(np.array([0, 1, 1, 1, 1, 1]), of_kind("classes", classes_per_node=1), 5, seed=1)


def test_a_word_alone_is_a_kind_and_a_wrong_word_is_refused() -> None:
    assert PartitionOptions.model_validate("dirichlet") == of_kind("dirichlet", alpha=0.5)
    with pytest.raises(ValidationError):
        PartitionOptions.model_validate("random")


def test_class_counts_say_what_every_node_holds() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    counts = class_counts(labels, [np.array([0, 1]), np.array([2, 3, 4, 5])], 4)

    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 3, 0]]


@pytest.mark.seconds
@pytest.mark.parametrize("nodes", [1, 2, 6, 16, 17, 64])
def test_the_picture_has_a_bar_per_node_and_a_field_per_node_and_class(nodes, tmp_path) -> None:
    counts = class_counts(CLOTHES, partition(CLOTHES, of_kind("dirichlet"), nodes, seed=1), 10)
    figure = draw_partition(counts, [f"w{number}" for number in range(1, nodes + 1)])
    bars, fields = figure.axes[:2]

    assert [bar.get_height() for bar in bars.patches] == counts.sum(axis=1).tolist()
    assert np.array_equal(fields.images[0].get_array().filled(0), counts.T)
    written = {text.get_text() for text in fields.texts}
    assert written == ({str(count) for count in counts[counts > 0].tolist()} if nodes <= 16 else set())
    figure.savefig(tmp_path / "partition.svg")
    assert (tmp_path / "partition.svg").stat().st_size < 200_000


def test_the_picture_names_the_classes_that_nobody_holds() -> None:
    figure = draw_partition(np.array([[5, 0, 3, 0], [0, 0, 4, 0]]), ["w1", "w2"])

    assert figure.axes[1].get_xlabel() == "node (no node holds classes 1, 3)"
