"""Optimizers, the learning rate over a training, and clipping: by their closed forms, and against torch."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.strategy import Strategy


class Rates(Strategy):
    """Notes the learning rates with which steps were made, and the length of their gradients."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.norms: list[float] = []

    def after_step(self, loss: torch.Tensor) -> None:  # noqa: ARG002
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        self.norms.append(math.hypot(*(parameter.grad.norm().item() for parameter in self.model.parameters())))


class NoWatch:
    def begin(self, total_steps: int) -> None:
        pass

    def stepped(self, step: int, **_: object) -> None:
        pass

    def ended(self) -> None:
        pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(model: nn.Module | None = None, **recipe: object) -> tuple[Rates, nn.Module]:
    """Ten steps."""
    draws = torch.Generator().manual_seed(1)
    shard = Samples(torch.randn(40, 4, generator=draws) * 5, torch.arange(40) % 3)
    model, strategy = model or network(), Rates()
    train(Task(model, shard), Recipe(1, 4, **recipe), seed=2, strategy=strategy, watch=NoWatch())
    return strategy, model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 10),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]),
        ({"schedule": "linear"}, [1 - step / 10 for step in range(10)]),
        ({"schedule": "steps"}, [1] * 5 + [0.1] * 3 + [0.01] * 2),
        ({"schedule": "steps", "decay_at": (0.2,), "decay_factor": 0.5}, [1] * 2 + [0.5] * 8),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75] + [1] * 7),
        ({"warmup_steps": 2, "schedule": "linear"}, [0.5] + [1 - step / 10 for step in range(1, 10)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(settings, expected) -> None:
    strategy, _ = trained(learning_rate=0.2, **settings)
    assert [rate for (rate,) in strategy.rates] == pytest.approx([0.2 * share for share in expected])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's own optimizers and schedules."""
    (tmp_path / "own_recipe.py").write_text(
        "import torch\n"
        "def square(progress): return (1 - progress) ** 2\n"
        "def negative(progress): return -1.0\n"
        "def broken(progress): return 1 / 0\n"
        "def two_rates(parameters, lr, factor):\n"
        "    first, *others = parameters\n"
        "    return torch.optim.SGD([{'params': [first], 'lr': lr * factor}, {'params': others}], lr=lr)\n"
        "def nothing(parameters, lr): return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_recipe", None)


@pytest.mark.usefixtures("own")
def test_a_users_own_schedule_multiplies_the_rate() -> None:
    strategy, _ = trained(learning_rate=0.2, schedule="own_recipe:square")
    assert [rate for (rate,) in strategy.rates] == pytest.approx([0.2 * (1 - step / 10) ** 2 for step in range(10)])


@pytest.mark.usefixtures("own")
def test_a_users_own_optimizer_gets_its_options_and_keeps_the_ratio_of_its_rates() -> None:
    strategy, _ = trained(
        learning_rate=0.2, schedule="linear", optimizer="own_recipe:two_rates", options={"factor": 0.5}
    )
    assert strategy.rates[5] == pytest.approx([0.05, 0.1])


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "own_recipe:negative"}, r"a finite number of at least 0, got -1.0 for 0"),
        ({"schedule": "own_recipe:broken"}, r'schedule "own_recipe:broken": the function raised ZeroDivisionError'),
        ({"optimizer": "own_recipe:nothing"}, r"that returns a torch.optim.Optimizer, got NoneType from it"),
        ({"optimizer": "own_recipe:two_rates"}, r"the function raised TypeError\(.*factor"),
        ({"optimizer": "adam", "options": {"betas": [2, 3]}}, r"optimizer adam: Invalid beta .*; correct its options"),
    ],
)
def test_an_optimizer_or_a_schedule_that_cannot_be_used_is_explained(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(**settings)


@pytest.mark.parametrize(
    ("kind", "options", "made"),
    [
        ("sgd", {"nesterov": True}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, nesterov=True)),
        ("adam", {}, lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
        ("adamw", {"betas": [0.8, 0.9]}, lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.9), weight_decay=0.1)),
    ],
)
def test_an_optimizer_makes_the_steps_of_torchs(kind, options, made) -> None:
    ours, theirs = network(), network()
    recipe = Recipe(1, 4, learning_rate=0.01, momentum=0.9, weight_decay=0.1, optimizer=kind, options=options)
    for model, optimizer in ((ours, recipe.make_optimizer(ours)), (theirs, made(theirs.parameters()))):
        for step in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 4), step + 1.0)).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_torch_without_muon_is_told_which_one_has_it(monkeypatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"optimizer muon: torch .* has none; install torch 2\.9 or later"):
        Recipe(1, 4, learning_rate=0.02, optimizer="muon").make_optimizer(network())


def test_muon_trains_the_matrices_and_adamw_everything_else() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    optimizer = Recipe(1, 4, learning_rate=0.02, optimizer="muon").make_optimizer(model)
    groups = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
    assert groups == [{id(model[1].weight)}, {id(model[0].weight), id(model[1].bias)}]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.tensor([0, 1, 2, 3])).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert len(optimizer.state) == 3
    optimizer.state.clear()  # as a client of fedavg does in each round
    optimizer.step()
    assert len(optimizer.state) == 3
    # A step of Muon turns all singular values of the update into the same.
    _, strategy_model = trained(optimizer="muon", learning_rate=0.02)
    assert all(torch.isfinite(parameter).all() for parameter in strategy_model.parameters())


def test_longer_gradients_are_shortened_and_shorter_ones_are_not() -> None:
    free, _ = trained(learning_rate=1e-9)
    limit = sorted(free.norms)[5]
    clipped, _ = trained(learning_rate=1e-9, clip_norm=limit)
    assert clipped.norms == pytest.approx([min(norm, limit) for norm in free.norms], rel=1e-4)
