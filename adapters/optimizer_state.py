"""The state that an optimizer keeps for the exchanged parameters, where it travels with them: `optimizer_state: blend`.

That is the momentum of SGD, and the first and second moments of Adam and AdamW. torch makes them in the first step that
uses them, but what is exchanged must be known before: so what is missing is made here, as torch would make it. Adam's
count of steps and the largest second moments of `amsgrad` stay local.

Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpwa import ConfigError, Role

from .selection import is_written_elementwise, spec_of
from .shards import held_here

__all__ = ["OptimizerState", "unwrapped_optimizer"]

_KEEP = "set `optimizer_state: keep`"

_SGD = {"momentum_buffer": Role.MOMENTUM}
_ADAM = {"exp_avg": Role.RUNNING_MOMENT, "exp_avg_sq": Role.RUNNING_MOMENT}


class _Place(NamedTuple):
    """One tensor of the state, where the optimizer has it, and what of it this process holds."""

    parameter: Tensor
    key: str
    found: Tensor
    tensor: Tensor


class OptimizerState:
    """The tensors of an optimizer that are exchanged.

    Args:
        optimizer: the one that trains the model; None: the script has not said.
        module: the model.
        parameters: the exchanged ones, by name. One that is not the optimizer's has no state.

    Raises:
        ConfigError: there is no optimizer, or none whose state can be exchanged.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None, module: nn.Module, parameters: Mapping[str, Tensor]
    ) -> None:
        if optimizer is None:
            raise ConfigError(
                "`optimizer_state: blend` needs the optimizer: write DpwaPyTorchAdapter(model, optimizer=optimizer) or "
                f"attach(model, optimizer), or {_KEEP}"
            )
        self._roles = _roles_of(optimizer)
        self._optimizer = optimizer
        _refuse_sparse(module, parameters)
        self._places = self._places_now(parameters)
        self._sizes = self._group_sizes()
        self.specs = tuple(spec_of(name, place.tensor, self._roles[place.key]) for name, place in self._places.items())
        """The places of the tensors in the layout."""
        for name, place in self._places.items():
            _refuse_not_finite(name, place.tensor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name, such as `optimizer.momentum_buffer.fc.weight`."""
        return {name: place.tensor for name, place in self._places.items()}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(spec.size_bytes for spec in self.specs)

    def has_changed(self) -> bool:
        """Whether tensors were replaced, as `load_state_dict` does, or parameters came or went; called at each step."""
        state = self._optimizer.state
        for parameter, key, found, tensor in self._places.values():
            held = state.get(parameter)
            if held is None or held.get(key) is not found or held_here(found) is not tensor:
                return True
        return self._group_sizes() != self._sizes

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Adopt the tensors that the optimizer has now.

        Raises:
            ConfigError: their form has changed since they were taken.
        """
        now = self._places_now(parameters)
        found = {name: spec_of(name, place.tensor, self._roles[place.key]) for name, place in now.items()}
        for then in self.specs:
            spec = found.pop(then.name, None)
            if spec is None:
                what = "its parameter is no longer one of the optimizer's"
            elif spec.shape != then.shape:
                what = f"has the shape {list(spec.shape)} now, had {list(then.shape)}"
            elif spec.dtype != then.dtype:
                what = f"has the dtype {spec.dtype} now, had {then.dtype}"
            else:
                continue
            raise ConfigError(f"tensor {then.name}: {what}, when dpwa took the optimizer; {_WHAT_TO_DO}")
        for name in found:
            raise ConfigError(f"tensor {name}: is new since dpwa took the optimizer; {_WHAT_TO_DO}")
        self._places, self._sizes = now, self._group_sizes()

    def _places_now(self, parameters: Mapping[str, Tensor]) -> dict[str, _Place]:
        """The tensors as the optimizer has them; what it will make in its first step is made now."""
        groups = {id(parameter): group for group in self._optimizer.param_groups for parameter in group["params"]}
        found: dict[str, _Place] = {}
        for name, parameter in parameters.items():
            group = groups.get(id(parameter))
            if group is None or ("momentum" in group and group["momentum"] == 0):
                continue
            state = self._optimizer.state[parameter]
            self._complete(name, parameter, state, group)
            for key in self._roles:
                full_name, tensor = f"optimizer.{key}.{name}", held_here(state[key])
                if not is_written_elementwise(tensor):
                    raise ConfigError(
                        f"tensor {full_name}: expected an ordinary dense tensor, got a {type(tensor).__name__} of the "
                        f"layout {tensor.layout}; {_KEEP}"
                    )
                found[full_name] = _Place(parameter, key, state[key], tensor)
        if not found:
            raise ConfigError(
                "`optimizer_state: blend`: the optimizer keeps nothing for any of the exchanged parameters; expected "
                "the one that trains this model"
            )
        # In the order of the keys, so that one kind of tensors lies together.
        return {name: found[name] for key in self._roles for name in found if found[name].key == key}

    def _complete(self, name: str, parameter: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Make the state of a parameter that has none yet, so that the first step is what it would be without dpwa."""
        if all(state.get(key) is not None for key in self._roles):
            return
        if self._roles is _SGD:
            if group["dampening"] != 0:
                # torch begins with the whole first gradient; zeros would make it (1 - dampening) times that.
                raise ConfigError(
                    f"tensor optimizer.momentum_buffer.{name}: with a dampening of {group['dampening']:g} torch must "
                    "begin the momentum itself; make dpwa's adapter after the first step, set dampening=0, or "
                    f"{_KEEP}"
                )
        elif state:
            raise ConfigError(
                f"tensor {name}: expected {' and '.join(self._roles)} in the optimizer's state, got only "
                f"{', '.join(map(str, state))}; load the optimizer's checkpoint anew"
            )
        else:
            state["step"] = _first_count(parameter, group)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = _zeros(parameter)
        for key in self._roles:
            state[key] = _zeros(parameter)

    def _group_sizes(self) -> list[int]:
        return [len(group["params"]) for group in self._optimizer.param_groups]


_WHAT_TO_DO = "make the adapter when the optimizer has all parameters that it will train"


def unwrapped_optimizer(optimizer: object, argument: str) -> torch.optim.Optimizer:
    """The optimizer that makes the steps, from within the wrappers of other frameworks.

    Args:
        optimizer: what the script has.
        argument: what a message calls it.

    Raises:
        ConfigError: it is none.
    """
    inner = optimizer
    while inner is not None and not hasattr(inner, "_optimizer_step_post_hooks"):
        inner = getattr(inner, "optimizer", None)
    if not isinstance(inner, torch.optim.Optimizer):
        raise ConfigError(f"{argument}: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return inner


def _roles_of(optimizer: torch.optim.Optimizer) -> Mapping[str, Role]:
    """The keys of its state that are exchanged, and how each is blended.

    Raises:
        ConfigError: it has no state of known meaning.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        raise ConfigError(
            f"`optimizer_state: blend` knows the state of SGD with momentum, Adam and AdamW, got {name}; {_KEEP}"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigError(f"`optimizer_state: blend`: a differentiable {name} cannot be blended in place; {_KEEP}")
    if isinstance(optimizer, torch.optim.Adam):
        return _ADAM
    if not any(group["momentum"] for group in optimizer.param_groups):
        raise ConfigError(
            f"`optimizer_state: blend`: this {name} has no momentum, and so nothing to exchange; give it momentum=..., "
            f"or {_KEEP}"
        )
    return _SGD


def _first_count(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Adam's count of steps, in the type and place that torch gives it."""
    is_double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    beside = parameter.device if group.get("capturable") or group.get("fused") else "cpu"
    return torch.zeros((), dtype=torch.float64 if is_double else torch.float32, device=beside)


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format)


def _refuse_sparse(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    sparse = {id(part.weight) for part in _lookups(module) if part.sparse}
    for name, parameter in parameters.items():
        if id(parameter) in sparse or (parameter.grad is not None and parameter.grad.layout is not torch.strided):
            raise ConfigError(
                f"tensor {name}: has sparse gradients, and so has its momentum; build the layer with sparse=False, or "
                f"{_KEEP}"
            )


def _lookups(module: nn.Module) -> Iterator[nn.Embedding | nn.EmbeddingBag]:
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            yield part


def _refuse_not_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(
            f"tensor {name}: holds NaN or infinite values, with which no peer would blend; expected finite ones; load "
            f"another checkpoint of the optimizer, or {_KEEP}"
        )
