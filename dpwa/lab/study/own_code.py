"""Words of a study file in whose place a function of the user's own may stand, as "module:function".

Runs in: any thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from dpwa.config.problems import OWN_TEXT
from dpwa.custom_code import importable, is_own, load_function
from dpwa.errors import ConfigError
from dpwa.options import Place, Problem

__all__ = ["known_or_own", "own_code_problems"]


def known_or_own(known: Iterable[str], own: str = "module:function") -> AfterValidator:
    """A validator: one of these words, or a user's own code.

    Args:
        known: the words.
        own: how the user's own code is written.
    """
    words = tuple(known)

    def checked(word: str) -> str:
        if is_own(word) or word in words:
            return word
        near = get_close_matches(word, words, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        expected = f"expected one of {', '.join(words)}, or {own}"
        raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected, "hint": hint})

    return AfterValidator(checked)


def own_code_problems(values: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    """What keeps the functions that a row names from being used; imports their modules.

    Args:
        values: settings of a row, which may be wrong.
        folder: of the study; the current folder and Python's path are searched, too.
    """
    optimizer = values.get("optimizer")
    if isinstance(optimizer, Mapping):
        optimizer = optimizer.get("kind")
    places: list[tuple[Place, object]] = [((key,), values.get(key)) for key in ("data", "model", "schedule")]
    for place, word in [*places, (("optimizer",), optimizer)]:
        if not isinstance(word, str) or not is_own(word):
            continue
        module = word.partition(":")[0]
        is_new = module not in sys.modules
        try:
            with importable([folder, Path.cwd()]):
                load_function(word, str(place[0]))
        except ConfigError as error:
            yield from (Problem(place, text) for text in error.problems)
        if is_new:  # a notebook lives on while its user writes the next function into the file
            sys.modules.pop(module, None)
