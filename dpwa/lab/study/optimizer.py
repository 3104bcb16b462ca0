"""The key `optimizer` of a study file, and how it goes together with learning_rate, momentum and weight_decay.

Runs in: any thread; options never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from dpwa.config.problems import OWN_TEXT
from dpwa.custom_code import is_own
from dpwa.lab.study.layers import Layers
from dpwa.lab.study.own_code import known_or_own
from dpwa.options import Options, Place, Problem

__all__ = ["KEYS_OF_OPTIONS", "OptimizerOptions", "optimizer_kind", "settle_optimizer"]

_ADAM = ("lr", "weight_decay", "betas", "eps", "amsgrad")
_OPTIONS = {
    "sgd": ("lr", "weight_decay", "momentum", "dampening", "nesterov"),
    "adam": _ADAM,
    "adamw": _ADAM,
    "muon": ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "eps", "adjust_lr_fn"),
}
"""The optimizers, and the options of torch that each may be given."""

KEYS_OF_OPTIONS = {"lr": "learning_rate", "weight_decay": "weight_decay", "momentum": "momentum"}
"""The options that have a setting of their own, under which they are kept, shown and compared."""


def keys_of(kind: str) -> dict[str, str]:
    """The same for one optimizer: only sgd's momentum is the setting, and a user's own function has but a rate."""
    kept = ("lr",) if is_own(kind) else tuple(KEYS_OF_OPTIONS) if kind == "sgd" else ("lr", "weight_decay")
    return {option: KEYS_OF_OPTIONS[option] for option in kept}


class OptimizerOptions(Options):
    """How gradients change the weights: a word, or a mapping such as {adamw: {lr: 0.001}}."""

    kind: Annotated[str, known_or_own(_OPTIONS)] = Field("sgd", description="Which optimizer.")
    options: dict[str, JsonValue] = Field({}, description="Its options, by torch's names.")

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: object) -> object:
        if isinstance(value, str):
            return {"kind": value}
        if not isinstance(value, Mapping) or not value or "kind" in value:
            return value
        if len(value) != 1:
            expected = "expected one optimizer with its options, such as adamw: {lr: 0.001}"
            raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected})
        ((kind, options),) = value.items()
        return {"kind": kind, "options": {} if options is None else options}

    def between(self) -> Iterator[Problem]:
        """Options that the optimizer does not have."""
        known = _OPTIONS.get(self.kind)
        for name in self.options:
            if known is not None and name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"
                yield Problem((self.kind, name), f"unknown option, {hint}", at_key=True)


def optimizer_kind(value: object) -> str:
    """Which optimizer a value of the key names; "sgd" for one that is missing or wrong."""
    if isinstance(value, Mapping) and value:
        value = value.get("kind", next(iter(value)))
    return value if isinstance(value, str) else "sgd"


def settle_optimizer(layers: Layers) -> None:
    """Moves the options that have a setting of their own there, so that every row says its rate in the same place.

    Of an option and its setting, the one that is written closer to the row wins. A momentum that is meant for the rows
    with sgd is left out where the row has another optimizer.

    Args:
        layers: the values of a row, which may be wrong.
    """
    value = layers.values.get("optimizer")
    kind, from_ = optimizer_kind(value), layers.origin(("optimizer",), ())
    if (
        kind != "sgd"
        and "momentum" in layers.values
        and _closeness(layers, "momentum") < _closeness(layers, "optimizer")
    ):
        layers.remove("momentum")
    if not isinstance(value, Mapping) or not isinstance(value.get(kind), Mapping):
        return
    options = dict(value[kind])
    for option, key in keys_of(kind).items():
        if option in options:
            given = options.pop(option)
            if key not in layers.values or _closeness(layers, key) <= _closeness(layers, "optimizer"):
                layers.put((key,), given, (*from_, kind, option))
    layers.put(("optimizer",), {kind: options}, from_)


def _closeness(layers: Layers, key: str) -> int:
    """How close to the row a setting was written: at the top of the file, in its entry, or in its point of the grid."""
    place: Place = layers.origin((key,), ())
    return {"strategies": 1, "grid": 2}.get(str(place[0]) if place else "", 0)


def rates_given(optimizer: OptimizerOptions, given: set[str], momentum: float) -> Iterator[Problem]:
    """What is said twice, or of another optimizer.

    Args:
        optimizer: the optimizer.
        given: the settings that stand beside it.
        momentum: the setting.
    """
    for option, key in keys_of(optimizer.kind).items():
        if option in optimizer.options and key in given:
            yield Problem(
                ("optimizer", optimizer.kind, option), f"{key} is given, too; remove one of them", at_key=True
            )
    if optimizer.kind != "sgd" and "momentum" in given and momentum:
        yield Problem(
            ("momentum",),
            f"it is that of sgd, and the optimizer is {optimizer.kind}; remove it, or write it among its options",
            at_key=True,
        )


def other_defaults(values: Any) -> Any:
    """Settings with the defaults that suit their optimizer: torch's rate of 0.001 and no momentum for all but sgd."""
    if isinstance(values, Mapping) and optimizer_kind(values.get("optimizer")) != "sgd":
        return {"learning_rate": 0.001, "momentum": 0.0, **values}
    return values
