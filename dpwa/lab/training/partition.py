"""Which samples of a data set each node holds: in equal random parts, by class, or skewed.

Every process computes all parts from the same seed, so the nodes agree without communication.

Must not know: torch, images. Runs in: any thread; pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpwa.errors import ConfigError
from dpwa.lab.study.settings import PartitionOptions

__all__ = ["class_counts", "least_samples", "partition"]

Indices = NDArray[np.int64]
"""Indices of samples."""

# What a skewed partition leaves every node at least: a batch of usual size.
LEAST_SAMPLES = 128

# Each pass makes the sizes more equal; a long chain of nodes that share classes needs the most passes.
_EVENING_PASSES = 200
_EQUAL_DRAWS = 20  # with six nodes and two of ten classes, parts of some draws are half as large as those of others
_EVEN_ENOUGH = 1e-3  # samples that a pass still moves


def partition(labels: NDArray[np.integer], options: PartitionOptions, nodes: int, *, seed: int) -> list[Indices]:
    """Divides the samples among the nodes.

    The kinds:

    - iid: all samples at random, in parts that differ by one sample at most.
    - classes: each node draws `classes_per_node` different classes. All classes are drawn equally often, or some once
      more than others. A class that several nodes have drawn is divided so that the nodes' parts become as equal as
      the drawn classes allow, and each of these nodes gets at least half of an equal share. With fewer draws
      (nodes * classes_per_node) than classes, the classes that nobody drew are left out: their column of
      `class_counts` is zero.
      With `equal`, the drawing is repeated, and the one whose smallest part is largest is taken; then parts that are
      larger lose samples, at random and in the proportions of their classes.
    - dirichlet: each class is cut in proportions drawn from a symmetric Dirichlet distribution over the nodes
      (Yurochkin et al., 1905.12022; with the distribution drawn per node instead, Hsu et al., 1909.06335). The
      smaller alpha is, the fewer classes a node has, and the less equal the parts are.
    - quantity: sizes are drawn from a symmetric Dirichlet distribution, contents are iid.

    The last two could leave a node with almost nothing. A node with fewer than `least_samples` gets the missing ones,
    chosen at random, from the node with the most.

    Args:
        labels: class of each sample, shape (count,).
        options: the kind and its parameters.
        nodes: number of parts.
        seed: at least 0; the same seed gives the same parts.

    Returns:
        For each node the indices of its samples, ascending. Every sample is in exactly one part, except those of
        classes that are left out, and with `equal` those that would make parts unequal.

    Raises:
        ConfigError: there are fewer samples than nodes, or fewer classes than a node should have, or a part would be
            empty.
    """
    generator = np.random.default_rng(seed)
    _check(labels, options, nodes)
    if options.kind == "iid":
        parts = np.array_split(generator.permutation(len(labels)), nodes)
    elif options.kind == "classes":
        parts = _by_class(
            labels, options.classes_per_node, nodes, generator, draws=_EQUAL_DRAWS if options.equal else 1
        )
        parts = _equally_large(labels, parts) if options.equal else parts
    elif options.kind == "dirichlet":
        proportions = [generator.dirichlet([options.alpha] * nodes) for _ in np.unique(labels)]
        parts = _fill_up(_cut_classes(labels, proportions, generator), generator)
    else:
        order, sizes = generator.permutation(len(labels)), generator.dirichlet([options.alpha] * nodes)
        parts = _fill_up(_cut(order, sizes), generator)
    if not all(map(len, parts)):
        raise ConfigError(
            f"partition: {len(labels)} samples are too few for {nodes} nodes and kind {options.kind}: a node would get "
            "none; use fewer nodes or another kind"
        )
    return [np.sort(part).astype(np.int64) for part in parts]


def class_counts(labels: NDArray[np.integer], parts: Sequence[Indices], classes: int) -> Indices:
    """How many samples of each class each node holds.

    Args:
        labels: class of each sample, 0..classes-1, shape (count,).
        parts: indices of the samples of each node.
        classes: number of classes.

    Returns:
        Shape (nodes, classes).
    """
    counts = [np.bincount(labels[part], minlength=classes) for part in parts]
    return np.array(counts, np.int64).reshape(len(parts), -1 if counts else classes)


def least_samples(count: int, nodes: int) -> int:
    """What kinds dirichlet and quantity leave every node: a usual batch, or for small data a quarter of an equal part.

    Args:
        count: samples of all nodes.
        nodes: at most `count`.
    """
    return max(1, min(LEAST_SAMPLES, count // (4 * nodes)))


def _check(labels: NDArray[np.integer], options: PartitionOptions, nodes: int) -> None:
    if not 1 <= nodes <= len(labels):
        raise ConfigError(f"partition: expected 1 to {len(labels)} nodes, one per sample at most, got {nodes}")
    classes = len(np.unique(labels))
    if options.kind == "classes" and options.classes_per_node > classes:
        raise ConfigError(
            f"partition: classes_per_node: expected at most {classes}, of which the data set has no more, got"
            f" {options.classes_per_node}"
        )


def _by_class(
    labels: NDArray[np.integer], classes_per_node: int, nodes: int, generator: np.random.Generator, *, draws: int
) -> list[Indices]:
    sizes = np.unique(labels, return_counts=True)[1]
    drawn = [_draw_classes(len(sizes), classes_per_node, nodes, generator) for _ in range(draws)]
    shares = [_even_shares(sizes, one) for one in drawn]
    # Without the last digits, in which machines differ.
    smallest = [round(float((sizes[:, None] * np.stack(one)).sum(axis=0).min()), 3) for one in shares]
    return _cut_classes(labels, shares[int(np.argmax(smallest))], generator)


def _equally_large(labels: NDArray[np.integer], parts: Sequence[Indices]) -> list[Indices]:
    """The parts, cut down to the size of the smallest; each class of a part loses the same share of its samples.

    Args:
        labels: class of each sample, shape (count,).
        parts: the samples of each class in random order.
    """
    size = min(map(len, parts))
    kept = []
    for part in parts:
        # Every k-th place of the part, class by class: as evenly as whole samples allow.
        by_class = part[np.argsort(labels[part], kind="stable")]
        kept.append(by_class[np.arange(size) * len(part) // max(1, size)])
    return kept


def _draw_classes(classes: int, classes_per_node: int, nodes: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which classes each node has, shape (nodes, classes): each class as often as the others, or once more."""
    often, more = divmod(nodes * classes_per_node, classes)
    left = np.full(classes, often)
    left[generator.choice(classes, more, replace=False)] += 1
    drawn = np.zeros((nodes, classes), np.bool_)
    for node in range(nodes):
        # A class with as many draws left as there are nodes left goes to each of them, or a draw could not be placed.
        forced = np.flatnonzero(left == nodes - node)
        open_ = np.where(left < nodes - node, left, 0)
        wanted = classes_per_node - len(forced)
        free = generator.choice(classes, wanted, replace=False, p=open_ / open_.sum()) if wanted else forced[:0]
        drawn[node, [*forced, *free]] = True
        left -= drawn[node]
    return drawn


def _even_shares(sizes: Indices, drawn: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The share of each class that each node gets, so that nodes' totals are as equal as the drawn classes allow.

    Half of each class is divided equally among its holders. The other half is poured like water to where there is
    least, class by class, again and again: each time the sum of the squares of the totals falls, until it is smallest.

    Args:
        sizes: samples of each class, shape (classes,).
        drawn: which node has which class, shape (nodes, classes).

    Returns:
        Per class an array of shape (nodes,), whose sum is 1, or 0 if nobody has the class.
    """
    held = drawn / np.maximum(drawn.sum(axis=0), 1)
    poured = held * sizes / 2
    fixed = poured.sum(axis=1)
    for _ in range(_EVENING_PASSES):
        before = poured.copy()
        for label in np.flatnonzero(drawn.any(axis=0)):
            holders = np.flatnonzero(drawn[:, label])
            poured[holders, label] = 0
            level = fixed[holders] + poured[holders].sum(axis=1)
            poured[holders, label] = _pour(level, sizes[label] / 2)
        if np.abs(poured - before).max() < _EVEN_ENOUGH:
            break
    return list((held / 2 + poured / sizes).T)


def _pour(levels: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    """What each vessel gets when this amount of water is poured into connected vessels filled to these levels."""
    ascending = np.sort(levels)
    # The surface if it covers the lowest 1, 2, 3 ... vessels; the first that does not reach the next one is right.
    surfaces = (amount + np.cumsum(ascending)) / np.arange(1, len(levels) + 1)
    reached = np.append(surfaces[:-1] <= ascending[1:], np.True_)
    poured: NDArray[np.float64] = np.maximum(surfaces[np.argmax(reached)] - levels, 0)
    return poured


def _cut_classes(
    labels: NDArray[np.integer], proportions: Sequence[NDArray[np.float64]], generator: np.random.Generator
) -> list[Indices]:
    """Cuts the samples of each class, in random order, in these proportions; per class an array of shape (nodes,)."""
    cut = [
        _cut(generator.permutation(np.flatnonzero(labels == label)), shares)
        for label, shares in zip(np.unique(labels), proportions, strict=True)
    ]
    return [np.concatenate(parts) for parts in zip(*cut, strict=True)]


def _cut(samples: Indices, shares: NDArray[np.float64]) -> list[Indices]:
    """Consecutive parts whose sizes are in these proportions to within one sample; none of it if all shares are 0."""
    # Without the last digits, in which machines differ, and which could decide how half a sample is rounded.
    ends = np.round(np.round(np.cumsum(shares), 12) * len(samples)).astype(np.int64)
    return np.split(samples[: ends[-1]], ends[:-1])


def _fill_up(parts: list[Indices], generator: np.random.Generator) -> list[Indices]:
    """Fills parts that are too small from the largest part at that time."""
    least = least_samples(sum(map(len, parts)), len(parts))
    for poor, part in enumerate(parts):
        missing = least - len(part)
        if missing > 0:
            rich = max(range(len(parts)), key=lambda node: len(parts[node]))
            mixed = generator.permutation(parts[rich])
            parts[poor], parts[rich] = np.concatenate([part, mixed[:missing]]), mixed[missing:]
    return parts
