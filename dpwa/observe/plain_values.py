"""Copies any value into one that JSON can hold: at once, bounded in size, and never with an error.

Scripts and custom methods report whatever they like: arrays that keep changing, objects whose `__str__` fails, lists
that contain themselves. None of that may reach the journal's thread as it is, or fill the disk.

Must not know: files, threads. Runs in: any thread; pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["plain"]

TEXT_LIMIT_CHARS = 1000
"""Longest text that is copied whole."""

DEPTH_LIMIT = 8
"""How deep lists and mappings may be nested."""

_VALUE_CHARS = 8  # what a number costs of the limit

Tell = Callable[[str], None]


def plain(value: Any, *, limit_chars: int, tell: Tell | None = None) -> object:
    """A copy that JSON can hold.

    NaN and infinity become the words "nan", "inf" and "-inf"; arrays become lists; everything else becomes text. What
    is too large is cut, and what cannot be read becomes a text that says so.

    Args:
        value: anything.
        limit_chars: about how much of it is copied; a number counts as 8.
        tell: called with a description of each value that cannot be read.
    """
    kind = type(value)
    # Most values are of these types, and their copies take time from the training.
    if kind is float:
        if math.isfinite(value):
            return value
    elif kind is int:
        if -(2**63) <= value < 2**64:
            return value
    elif kind is str:
        if len(value) <= min(TEXT_LIMIT_CHARS, limit_chars):
            return value
    elif value is None or kind is bool:
        return value
    return _Copy(limit_chars, tell).of(value, DEPTH_LIMIT)


class _Copy:
    """A copy in progress, with what is left of its limit."""

    def __init__(self, limit_chars: int, tell: Tell | None) -> None:
        self._left_chars = limit_chars
        self._tell = tell

    def of(self, value: object, depth: int) -> object:
        try:
            return self._of(value, depth)
        except Exception as error:  # noqa: BLE001  nothing that an object raises may end the training or the journal
            problem = f"a value of type {type(value).__name__} cannot be read: {type(error).__name__}"
            if self._tell is not None:
                self._tell(problem)
            return f"<{problem}>"

    def _of(self, value: object, depth: int) -> object:
        self._left_chars -= _VALUE_CHARS
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**64 else self._text(str(int(value)))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, str):
            return self._text(value)
        return self._compound(value, depth) if depth else "..."

    def _compound(self, value: object, depth: int) -> object:
        if isinstance(value, Mapping):
            return self._mapping(value, depth - 1)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"<{len(value)} bytes>"
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._items(value, depth - 1)
        to_list = getattr(value, "tolist", None)  # numbers and arrays of numpy, tensors
        if not callable(to_list):
            return self._text(str(value))
        shape = tuple(getattr(value, "shape", ()))
        if math.prod(shape) * _VALUE_CHARS > self._left_chars + _VALUE_CHARS:
            return f"<an array of shape {shape} is too large to be written here>"
        return self.of(to_list(), depth - 1)

    def _text(self, text: str) -> str:
        limit = max(0, min(TEXT_LIMIT_CHARS, self._left_chars))
        self._left_chars -= min(len(text), limit)
        return str(text[:limit]) if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"

    def _mapping(self, values: Mapping[object, object], depth: int) -> dict[str, object]:
        copy: dict[str, object] = {}
        for key, item in values.items():
            if self._left_chars <= 0:
                copy["..."] = f"{len(values) - len(copy)} more"
                break
            copy[self._text(str(key))] = self.of(item, depth)
        return copy

    def _items(self, values: Collection[object], depth: int) -> list[object]:
        copy: list[object] = []
        for item in values:
            if self._left_chars <= 0:
                copy.append(f"... {len(values) - len(copy)} more")
                break
            copy.append(self.of(item, depth))
        return copy
