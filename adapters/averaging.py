"""Saved models as one: their mean, tensor by tensor.

Must not know: runs, nodes. Runs in: any thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpwa import ConfigError

__all__ = ["average_models", "load_model", "save_model_file"]


def load_model(path: Path) -> dict[str, Tensor]:
    """A saved model as a state dict, with every tied tensor under all of its names.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _with_tied({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as a model: {error}") from error


def average_models(paths: Sequence[Path], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of saved models, as a state dict.

    Floating-point tensors, which include the running statistics of BatchNorm, are averaged in double precision, one
    after the other, so that no more than the result is in memory. Other tensors, such as counters, have no
    useful mean: they are taken from the first model.

    Args:
        paths: safetensors files with the same tensors; at least one.
        weights: of each; None: all the same.

    Raises:
        ConfigError: there is no file, one cannot be read, they hold different tensors, or NaN or infinity.
    """
    if not paths:
        raise ConfigError("averaging models: expected at least one file, got none")
    shares = [1.0] * len(paths) if weights is None else list(weights)
    total = math.fsum(shares)
    try:
        mean = _mean(paths, [share / total for share in shares])
        with safe_open(paths[0], framework="pt") as first:
            return _with_tied(mean, first.metadata())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"averaging models: {error}") from error


def save_model_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as a safetensors file; tied tensors are written under each of their names.

    Raises:
        ConfigError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, partial, {"format": "pt"})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: the model cannot be written: {error}") from error


def _mean(paths: Sequence[Path], shares: Sequence[float]) -> dict[str, Tensor]:
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        shapes = [{name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} for file in files]  # noqa: SIM118
        for path, others in zip(paths, shapes, strict=True):
            if others != shapes[0]:
                raise ConfigError(_difference(paths[0], shapes[0], path, others))
        return {name: _mean_of(name, paths, files, shares) for name in shapes[0]}


def _mean_of(name: str, paths: Sequence[Path], files: Sequence[Any], shares: Sequence[float]) -> Tensor:
    first: Tensor = files[0].get_tensor(name)
    if not first.is_floating_point():
        return first
    total = torch.zeros_like(first, dtype=torch.float64)
    for path, file, share in zip(paths, files, shares, strict=True):
        value = file.get_tensor(name)
        if not torch.isfinite(value).all():
            what = "NaN" if torch.isnan(value).any() else "infinity"
            raise ConfigError(f"{path}: {name} holds {what}: a mean with this model would be worthless")
        total.add_(value.double(), alpha=share)
    return total.to(first.dtype)


def _difference(
    path: Path, shapes: Mapping[str, tuple[int, ...]], other_path: Path, others: Mapping[str, tuple[int, ...]]
) -> str:
    name = next(name for name in [*shapes, *others] if shapes.get(name) != others.get(name))
    there, other = (_in_words(each.get(name)) for each in (shapes, others))
    return f"averaging models: {name} is {there} in {path}, and {other} in {other_path}"


def _in_words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"


def _with_tied(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None) -> dict[str, Tensor]:
    """With the names that `saving` has put into the metadata: "decoder.weight=encoder.weight"."""
    for pair in (metadata or {}).get("tied", "").split():
        name, _, kept = pair.partition("=")
        tensors[name] = tensors[kept]
    return tensors
