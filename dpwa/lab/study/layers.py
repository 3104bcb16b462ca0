"""Settings that come from several places of a study file: their final values, and where each was written.

Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpwa.options import Place

__all__ = ["Layers", "mapping"]


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping of a study file, which may be wrong: anything else counts as empty."""
    return value if isinstance(value, Mapping) else {}


class Layers:
    """Nested values; a value that is set later overrides earlier ones."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[Place, Place] = {}

    def put(self, path: tuple[str, ...], value: object, origin: Place) -> None:
        """Sets one value.

        Args:
            path: its keys. A word along the path that abbreviates a mapping becomes {kind: word}.
            value: plain; mappings are copied before something is set inside them.
            origin: where it was written.
        """
        here = self.values
        for key in path[:-1]:
            inside = here.get(key)
            if isinstance(inside, str):
                inside = {"kind": inside}
            here[key] = dict(inside) if isinstance(inside, Mapping) else {}
            here = here[key]
        here[path[-1]] = value
        self._origins = {place: found for place, found in self._origins.items() if place[: len(path)] != path}
        self._origins[path] = origin

    def remove(self, key: str) -> None:
        """Removes one value and all inside it."""
        self.values.pop(key, None)
        self._origins = {place: found for place, found in self._origins.items() if place[0] != key}

    def origin(self, place: Place, otherwise: Place) -> Place:
        """Where the value at a place was written.

        Args:
            place: in the values.
            otherwise: the answer for a value that was not written at all.
        """
        for length in range(len(place), 0, -1):
            if place[:length] in self._origins:
                return (*self._origins[place[:length]], *place[length:])
        return otherwise
