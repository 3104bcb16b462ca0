"""Describes a training for TensorFlow: layers of the network, order of the batches, preparation of the pixels.

Must not know: TensorFlow, files, trials. Runs in: the training thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpwa.errors import ConfigError
from dpwa.examples.samples import Transform
from dpwa.lab.training.loop import Recipe

__all__ = ["layers_of", "order_of_batches", "shift_and_scale"]

# Prepared pixels are within a few units of 0: rounding to float32 is far below this, any other transform far above.
_PREPARED_TOLERANCE = 1e-4
_CHECKED_IMAGES = 100


def layers_of(model: nn.Module) -> list[dict[str, Any]]:
    """The layers of a network; see `layout.Layer`.

    Raises:
        ConfigError: a layer, or one of its options, cannot be described like that.
    """
    if not isinstance(model, nn.Sequential):
        raise ConfigError(f"tf_mirrored: expected an nn.Sequential, got {type(model).__name__}; take another model")
    layers = [_layer(module) for module in model]
    problems = [
        f"tf_mirrored: layer {number} of the model: expected Conv2d with stride 1 and a padding of 0 or of half an odd "
        f"kernel, ReLU, MaxPool2d with its size as stride, Flatten or Linear, got {module}; take another model"
        for number, (module, layer) in enumerate(zip(model, layers, strict=True))
        if layer is None
    ]
    if problems:
        raise ConfigError(problems)
    return [layer for layer in layers if layer is not None]


def _layer(module: nn.Module) -> dict[str, Any] | None:
    """The layer in plain values; None if these cannot describe it."""
    if isinstance(module, nn.Conv2d):
        return _convolution(module)
    if isinstance(module, nn.ReLU):
        return {"kind": "relu"}
    if isinstance(module, nn.MaxPool2d):
        return _max_pool(module)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return {"kind": "flatten"}
    if isinstance(module, nn.Linear):
        return {"kind": "dense", "units": module.out_features, "bias": module.bias is not None}
    return None


def _convolution(module: nn.Conv2d) -> dict[str, Any] | None:
    is_plain = module.stride == module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros"
    half_kernel = tuple(size // 2 for size in module.kernel_size)
    if is_plain and module.padding == (0, 0):
        padding = "valid"
    elif is_plain and module.padding == half_kernel and all(size % 2 for size in module.kernel_size):
        padding = "same"
    else:
        return None
    kernel, has_bias = list(module.kernel_size), module.bias is not None
    return {"kind": "conv", "filters": module.out_channels, "kernel": kernel, "padding": padding, "bias": has_bias}


def _max_pool(module: nn.MaxPool2d) -> dict[str, Any] | None:
    size = module.kernel_size
    if module.stride != size or module.padding != 0 or module.dilation != 1 or module.ceil_mode:
        return None
    return {"kind": "max_pool", "size": [size, size] if isinstance(size, int) else list(size)}


def order_of_batches(count: int, recipe: Recipe, *, seed: int) -> NDArray[np.int32]:
    """The indices of each batch, as `dpwa.lab.training.loop.train` draws them from the same seed.

    Args:
        count: number of samples.
        recipe: of the training.
        seed: for the order of the samples.

    Returns:
        Shape (total_steps, batch size, or the number of samples if that is smaller).
    """
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = max(1, count // recipe.batch_size)
    batch_size = min(count, recipe.batch_size)
    total_steps = recipe.total_steps or recipe.epochs * steps_per_epoch
    order = np.empty((total_steps, batch_size), np.int32)
    for start in range(0, total_steps, steps_per_epoch):
        of_epoch = torch.randperm(count, generator=generator)[: steps_per_epoch * batch_size].view(-1, batch_size)
        order[start : start + steps_per_epoch] = of_epoch[: total_steps - start].numpy()
    return order


def shift_and_scale(prepare: Transform, images: torch.Tensor) -> tuple[list[float], list[float]]:
    """The transform of stored images as scale * pixel + shift, found by applying it.

    Args:
        prepare: the transform.
        images: as stored, shape (count, channels, height, width); the answer is checked on the first ones.

    Returns:
        Shift and scale, a number for each channel.

    Raises:
        ConfigError: the transform does something else.
    """
    nothing, something = torch.zeros_like(images[:1, :, :1, :1]), torch.full_like(images[:1, :, :1, :1], 100)
    shift = prepare(nothing).double().flatten()
    scale = (prepare(something).double().flatten() - shift) / 100
    some = images[:_CHECKED_IMAGES]
    prepared = prepare(some).double()
    expected = some.double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    if prepared.shape != expected.shape or float((prepared - expected).abs().max()) > _PREPARED_TOLERANCE:
        raise ConfigError(
            "tf_mirrored: preparing the images: expected a transform that scales and shifts each channel, got one that "
            "does something else; take another data set"
        )
    return shift.tolist(), scale.tolist()
