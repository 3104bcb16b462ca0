"""One network in two frameworks: its layers, and its weights in torch's and in Keras's order of axes.

Torch puts channels before rows and columns; Keras puts them last, because TensorFlow's convolutions on a CPU accept
nothing else. So the weights of a convolution have another order of axes. Those of the first dense layer after `flatten`
have another order of inputs, because the flattened image has.

Must not know: torch, TensorFlow, files. Runs in: any thread; everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Layer", "Shape", "from_keras", "to_keras"]

Array = NDArray[Any]
Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

Layer = Mapping[str, Any]
"""A layer, as in JSON:

    {"kind": "conv", "filters": 32, "kernel": [5, 5], "padding": "same" or "valid", "bias": true}    stride 1
    {"kind": "relu"}
    {"kind": "max_pool", "size": [2, 2]}    stride of the same size; a remainder at the edges is left out
    {"kind": "flatten"}
    {"kind": "dense", "units": 512, "bias": true}
"""


def to_keras(layers: Sequence[Layer], shape: Shape, tensors: Sequence[Array]) -> list[Array]:
    """Weights in Keras's order of axes.

    Args:
        layers: of the network.
        shape: of an image that goes in.
        tensors: the weights as torch has them: for each layer with weights a weight, shape (outputs, inputs, ...), and
            a bias, if it has one.

    Returns:
        As many arrays in the same order, contiguous: weights of convolutions as (rows, columns, inputs, outputs), of
        dense layers as (inputs, outputs).

    Raises:
        ValueError: these are not weights of this network.
    """
    plans = _matched(layers, shape, tensors, "torch")
    return [
        np.ascontiguousarray(tensor.reshape(plan).transpose(2, 3, 1, 0)).reshape(_keras_shape(plan, tensor.ndim))
        if plan
        else np.ascontiguousarray(tensor)
        for plan, tensor in plans
    ]


def from_keras(layers: Sequence[Layer], shape: Shape, arrays: Sequence[Array]) -> list[Array]:
    """Weights in torch's order of axes: the inverse of `to_keras`, with the same arguments and errors."""
    plans = _matched(layers, shape, arrays, "Keras")
    made = []
    for plan, array in plans:
        if not plan:
            made.append(np.ascontiguousarray(array))
            continue
        outputs, inputs, rows, columns = plan
        turned = np.ascontiguousarray(array.reshape(rows, columns, inputs, outputs).transpose(3, 2, 0, 1))
        made.append(turned if array.ndim == 4 else turned.reshape(outputs, -1))
    return made


def _keras_shape(plan: tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    outputs, inputs, rows, columns = plan
    return (rows, columns, inputs, outputs) if dimensions == 4 else (rows * columns * inputs, outputs)


def _matched(
    layers: Sequence[Layer], shape: Shape, arrays: Sequence[Array], framework: str
) -> list[tuple[tuple[int, ...], Array]]:
    """Each array with its shape as (outputs, inputs, rows, columns); () for a bias.

    Raises:
        ValueError: the arrays are not of this network.
    """
    expected = list(_weights(layers, shape))
    shapes = [
        torch_shape if framework == "torch" or not plan else _keras_shape(plan, len(torch_shape))
        for plan, torch_shape in expected
    ]
    if [array.shape for array in arrays] != shapes:
        raise ValueError(
            f"converting the weights of a network: expected {framework}'s shapes {shapes}, "
            f"got {[array.shape for array in arrays]}"
        )
    return [(plan, array) for (plan, _), array in zip(expected, arrays, strict=True)]


def _weights(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each tensor: its shape as (outputs, inputs, rows, columns), () for a bias; and its shape in torch."""
    channels, rows, columns = shape
    for layer in layers:
        if layer["kind"] == "conv":
            plan = (layer["filters"], channels, *layer["kernel"])
            yield plan, plan
            if layer["padding"] == "valid":
                rows, columns = (
                    size - kernel + 1 for size, kernel in zip((rows, columns), layer["kernel"], strict=True)
                )
            channels = layer["filters"]
        elif layer["kind"] == "max_pool":
            rows, columns = (size // part for size, part in zip((rows, columns), layer["size"], strict=True))
        elif layer["kind"] == "dense":
            # The input is a flattened image, or another dense layer's output: an image of one pixel.
            plan = (layer["units"], channels, rows, columns)
            yield plan, (plan[0], prod(plan[1:]))
            channels, rows, columns = layer["units"], 1, 1
        if layer.get("bias"):
            yield (), (channels,)
