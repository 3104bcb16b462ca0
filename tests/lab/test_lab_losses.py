"""The losses that a study may train with, against their formulas."""

from __future__ import annotations

import pytest
import torch

from dpwa.lab.training.losses import LOSSES


def test_the_squared_error_is_the_squared_distance_from_one_for_the_right_class_and_zero_for_the_others() -> None:
    scores = torch.tensor([[0.5, 0.0, -1.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    first, second = 0.25 + 0 + 1, 0 + 9 + 1
    assert LOSSES["mse"](scores, labels).item() == pytest.approx((first + second) / 2)
    assert LOSSES["mse"](scores, labels, reduction="sum").item() == pytest.approx(first + second)


def test_the_squared_error_of_a_sequence_is_that_of_each_of_its_places() -> None:
    scores = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(28).reshape(4, 7) % 5
    places = scores.movedim(1, -1).reshape(28, 5)
    assert torch.isclose(LOSSES["mse"](scores, labels), LOSSES["mse"](places, labels.reshape(28)))


def test_an_empty_part_of_a_batch_adds_nothing() -> None:
    for loss in LOSSES.values():
        assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), reduction="sum").item() == 0


def test_cross_entropy_is_that_of_torch() -> None:
    scores, labels = torch.randn(6, 3), torch.arange(6) % 3
    assert torch.equal(LOSSES["cross_entropy"](scores, labels), torch.nn.functional.cross_entropy(scores, labels))
