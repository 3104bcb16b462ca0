"""The optimizers of the lab and the learning rate over a training: torch's by name, or a user's own.

Must not know: data sets, strategies. Runs in: the training thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dpwa.custom_code import blamed, is_own, load_function
from dpwa.errors import ConfigError

__all__ = ["multiplier_of", "optimizer_of"]

_BY_NAME: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def optimizer_of(kind: str, model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """An optimizer for all parameters of a model.

    Args:
        kind: "sgd", "adam", "adamw", "muon", or a user's own "module:function", called with the parameters and the
            options.
        model: what it trains.
        options: by torch's names; lr among them.

    Returns:
        The optimizer; each group of parameters remembers its rate as initial_lr.

    Raises:
        ConfigError: there is no such optimizer here, it refuses the options, or the function cannot be used.
    """
    try:
        if is_own(kind):
            found = _own(kind, model, options)
        elif kind == "muon":
            found = _muon(model, options)
        else:
            found = _BY_NAME[kind](model.parameters(), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {kind}: {error}; correct its options") from error
    for group in found.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return found


def _own(name: str, model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    function = load_function(name, "optimizer")
    with blamed(function, lambda error: f'optimizer "{name}": the function raised {error}'):
        found = function(model.parameters(), **options)
    if not isinstance(found, torch.optim.Optimizer):
        raise ConfigError(
            f'optimizer "{name}": expected a function (parameters, **options) that returns a torch.optim.Optimizer, '
            f"got {type(found).__name__} from it"
        )
    return found


def _muon(model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer muon: torch {torch.__version__} has none; install torch 2.9 or later")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in embeddings]
    of_muon = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in of_muon]
    rate_and_decay = {name: options[name] for name in ("lr", "weight_decay") if name in options}
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        # With this scale, one rate suits both optimizers.
        parts.append(torch.optim.Muon(matrices, **{"adjust_lr_fn": "match_rms_adamw", **options}))
    if others:
        parts.append(torch.optim.AdamW(others, **rate_and_decay))
    return _Several(parts)


class _Several(torch.optim.Optimizer):
    """Optimizers of different parameters, as one: Muon is for matrices only, so AdamW trains everything else.

    Args:
        parts: the optimizers.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__(
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]], {}
        )
        self._parts = parts
        # The same groups and the same state: a rate that is set here, or a state that is cleared, is theirs.
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Makes one step of each."""
        for part in self._parts:
            part.step(closure)


def multiplier_of(schedule: str, *, decay_at: Iterable[float], decay_factor: float) -> Callable[[float], float]:
    """What the learning rate is multiplied by, from the share of the training that is done, 0..1.

    Args:
        schedule: "constant"; "cosine" and "linear", which fall from 1 to 0; "steps"; or a user's own "module:function".
        decay_at: for steps: after which shares it falls.
        decay_factor: for steps: by this factor each time.

    Raises:
        ConfigError: the user's function cannot be found; later, if it returns no finite number of at least 0.
    """
    if is_own(schedule):
        return _own_multiplier(schedule)
    drops = tuple(decay_at)
    found: Callable[[float], float] = {
        "constant": lambda _progress: 1.0,
        "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
        "linear": lambda progress: 1 - progress,
        "steps": lambda progress: decay_factor ** sum(progress >= drop for drop in drops),
    }[schedule]
    return found


def _own_multiplier(name: str) -> Callable[[float], float]:
    function = load_function(name, "schedule")

    def multiplier(progress: float) -> float:
        with blamed(function, lambda error: f'schedule "{name}": the function raised {error}'):
            found = function(progress)
        if not isinstance(found, (int, float)) or not math.isfinite(found) or found < 0:
            raise ConfigError(
                f'schedule "{name}": expected a function (progress) that returns a finite number of at least 0, got '
                f"{found!r} for {progress:g}"
            )
        return float(found)

    return multiplier
