"""State dicts as JSON and tensors, and back: what `state_dict` of a model, an optimizer or a sampler returns.

JSON holds numbers, text, lists and mappings; what it lacks is written as a mapping with one key that names the kind:
`{"tuple": [...]}`, `{"dict": [[key, value], ...]}`, `{"tensor": name, ...}`. Tensors stay beside it, by name. Nothing
that is read can run code, or is of a type that is not listed here.

Must not know: files, threads, what the state belongs to. Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dpwa import ConfigError

__all__ = ["Plain", "Tensors", "as_plain", "from_plain"]

Plain: TypeAlias = Any
"""What `json.dumps` takes."""


class Tensors:
    """The tensors of states, by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def add(self, place: str, tensor: Tensor) -> str:
        """Add one, as it is.

        Returns:
            Its name: that of the first place if several share its memory. Places may be called alike ("a.b" with "c",
            and "a" with "b.c"); tensors are not.
        """
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in self._names:
            return self._names[memory]
        name, number = place, 1
        while name in self.by_name:
            number += 1
            name = f"{place}#{number}"
        self.by_name[name] = tensor
        if tensor.numel():
            self._names[memory] = name
        return name


def as_plain(value: object, place: str, tensors: Tensors) -> Plain:
    """A state as JSON.

    Args:
        value: the state.
        place: what it is called; the names of tensors begin so.
        tensors: gets its tensors, as they are, without a copy.

    Raises:
        ConfigError: it holds something that is neither a tensor nor a plain value.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        return _tensor("tensor", value.detach(), place, tensors)
    if isinstance(value, np.ndarray):
        return _tensor("array", _as_tensor(value, place), place, tensors)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # as that of a long double is
        return as_plain(value.item(), place, tensors)
    if isinstance(value, (list, tuple)):
        items = [as_plain(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[_key(key, place), as_plain(item, f"{place}.{key}", tensors)] for key, item in value.items()]}
    raise ConfigError(
        f"{place}: a checkpoint keeps tensors, numbers, text, lists and mappings, got a {type(value).__name__}; leave "
        "it out of what state_dict() returns"
    )


def from_plain(plain: Plain, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `as_plain` was given.

    Args:
        plain: what it returned.
        tensors: by name.

    Raises:
        ValueError: this is nothing that `as_plain` returns.
    """
    if isinstance(plain, list):
        return [from_plain(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    (kind, content), *_ = plain.items()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(from_plain(item, tensors) for item in content)
    if kind in ("dict", "counter"):
        made = {key: from_plain(item, tensors) for key, item in content}
        return made if kind == "dict" else Counter(made)
    if kind in ("tensor", "array") and content in tensors:
        tensor = tensors[content]
        dtype = getattr(torch, str(plain.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"tensor {content}: there is no dtype {plain.get('dtype')}")
        if tensor.dtype is not dtype:  # a type that files of tensors do not have
            tensor = tensor.view(dtype)
        tensor = tensor.reshape(plain["shape"])
        return tensor if kind == "tensor" else tensor.numpy()
    raise ValueError(f"expected a value of a checkpoint, got {kind}")


def _as_tensor(array: np.ndarray[Any, Any], place: str) -> Tensor:
    """An array as a tensor: as it is, or a copy of one that is read backwards or cannot be written.

    Raises:
        ConfigError: it holds text, objects, or numbers that torch has not.
    """
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{place}: a checkpoint keeps arrays of numbers, got one of {array.dtype}; leave it out of what "
            "state_dict() returns, or return a list"
        ) from error


def _key(key: object, place: str) -> object:
    if isinstance(key, (str, int)):
        return key
    raise ConfigError(f"{place}: a checkpoint keeps mappings with keys of text or numbers, got a {type(key).__name__}")


def _tensor(kind: str, tensor: Tensor, place: str, tensors: Tensors) -> Plain:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ConfigError(f"{place}: a checkpoint keeps dense tensors, got one of the layout {tensor.layout}")
    name = tensors.add(place, tensor)
    return {kind: name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
