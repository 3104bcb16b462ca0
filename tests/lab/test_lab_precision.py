"""Networks that multiply in bfloat16: what is rounded, and what stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from dpwa.lab.strategies.data_parallel import CustomDataParallel
from dpwa.lab.study.settings import IMAGE_MODELS
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import TrialFolder
from dpwa.lab.training.assignment import data_of, model_of
from dpwa.lab.training.loop import Recipe
from dpwa.lab.training.models import build
from dpwa.lab.training.precision import multiply_in_bfloat16
from dpwa.lab.training.strategy import Strategy

SHAPE = (1, 8, 8)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5


def twins(name: str = "light_cnn") -> tuple[nn.Module, nn.Module]:
    """The same network, as it is and in bfloat16."""
    plain, rounded = (build(name, SHAPE, 5, seed=3) for _ in range(2))
    multiply_in_bfloat16(rounded)
    return plain, rounded


def types_of_products(model: nn.Module, images: torch.Tensor) -> set[torch.dtype]:
    """What the convolutions and linear layers of a model give."""
    found: set[torch.dtype] = set()
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(lambda _, __, given: found.add(given.dtype)) for layer in layers]
    model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_products_are_rounded_and_scores_gradients_and_names_are_as_without(name) -> None:
    plain, rounded = twins(name)
    images, labels = batch()
    for model in (plain, rounded):
        strategy = Strategy()
        strategy.begin(model, Recipe(epochs=1, batch_size=6).make_optimizer(model))
        strategy.backward(images, labels)
    assert types_of_products(plain, images) == {torch.float32}
    assert types_of_products(rounded, images) == {torch.bfloat16}
    assert rounded(images).dtype == torch.float32
    assert list(rounded.state_dict()) == list(plain.state_dict())
    assert all(tensor.dtype != torch.bfloat16 for tensor in rounded.state_dict().values())
    gradients = [[p.grad for p in model.parameters() if p.grad is not None] for model in (plain, rounded)]
    assert len(gradients[0]) == len(gradients[1]) == len(list(plain.parameters()))
    exact, found = (torch.cat([gradient.flatten() for gradient in those]) for those in gradients)
    assert found.dtype == torch.float32
    # 8 bits of a product are 0.4 %; many layers, and BatchNorm over six samples, make more of it.
    assert 0 < (found - exact).norm() / exact.norm() < 0.5


def test_a_step_is_seen_by_the_next_forward_pass() -> None:
    _, rounded = twins()
    images, _ = batch()
    before = rounded(images).detach()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(2)
    assert not torch.allclose(rounded(images), before, rtol=0.5)


def test_a_copy_computes_with_its_own_weights() -> None:
    _, rounded = twins()
    images, _ = batch()
    copied = copy.deepcopy(rounded)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(images).abs().max() == 0
    assert rounded(images).abs().max() > 0
    assert types_of_products(copied, images) == {torch.bfloat16}


def test_replicas_in_threads_of_their_own_round_as_the_model_does() -> None:
    _, alone = twins()
    _, shared = twins()
    images, labels = batch()
    strategies = (Strategy(), CustomDataParallel([torch.device("cpu")] * 2))
    for strategy, model in zip(strategies, (alone, shared), strict=True):
        strategy.begin(model, Recipe(epochs=1, batch_size=6).make_optimizer(model))
        strategy.backward(images, labels)
        strategy.close()
    first, second = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (alone, shared))
    assert (first - second).norm() / first.norm() < 0.02


@pytest.mark.parametrize(("line", "expected"), [("", torch.float32), ("precision: bfloat16\n", torch.bfloat16)])
def test_a_row_computes_in_the_precision_that_it_names(tmp_path: Path, line, expected) -> None:
    (trial,) = Study.from_text(f"study: try\ndata: digits\n{line}strategies: [single]\n").trials()
    data = data_of(trial, TrialFolder(tmp_path))
    model = model_of(trial, data)
    assert types_of_products(model, data.prepare(data.held_out.images[:4])) == {expected}
