"""What a person probably did wrong where the YAML parser gave up: a tab, a colon or a space that is missing.

The parser says where it could not go on, which is often a line after the mistake. A guess about a missing colon or
space is tried before it is told: the mended text must get the parser further.

Must not know: which keys there are, what values mean. Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import yaml

__all__ = ["likely_mistake"]

_TAB_IN_INDENTATION = re.compile(r"[ -]*\t")
_WORD_ALONE = re.compile(r"(?P<before>[ ]*(?:- +)?)(?P<key>[A-Za-z_][\w.-]*)[ ]*(?:#.*)?")
_NO_SPACE = re.compile(r"(?P<before>[ ]*(?:- +)?)(?P<key>[A-Za-z_][\w.-]*):(?P<value>[^\s:].*)")

# Reading a file of the largest size again takes a second or so.
_MOST_GUESSES = 3


def likely_mistake(
    text: str, error: yaml.MarkedYAMLError, parse: Callable[[str], object]
) -> tuple[int, int, str] | None:
    """Line and column from 1 of what is probably wrong, and what to do about it; None if there is no good guess.

    Args:
        text: the whole file.
        error: at which the parser gave up.
        parse: reads a text to its end, or raises such an error.
    """
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return None
    lines = text.split("\n")
    last = min(mark.line, len(lines) - 1)
    if _TAB_IN_INDENTATION.match(lines[last]):
        return last + 1, lines[last].index("\t") + 1, "here is a tab; indent with spaces only"
    for number, (at, column, mended, advice) in enumerate(_guesses(lines, last)):
        if number == _MOST_GUESSES:
            break
        if _gets_beyond(last, "\n".join([*lines[:at], mended, *lines[at + 1 :]]), parse):
            return at + 1, column, advice
    return None


def _guesses(lines: list[str], last: int) -> Iterator[tuple[int, int, str, str]]:
    """From line `last` (from 0) upwards: line from 0, column from 1, the mended line, and what to do."""
    for at in range(last, -1, -1):
        line = lines[at].rstrip()
        if found := _WORD_ALONE.fullmatch(line):
            before, key = found["before"], found["key"]
            yield at, len(before) + 1, f"{before}{key}:", f'expected a colon after "{key}"; write {key}:'
        elif found := _NO_SPACE.fullmatch(line):
            before, key, value = found["before"], found["key"], found["value"]
            pair = f"{key}: {value}"
            yield at, len(f"{before}{key}") + 1, before + pair, f"expected a space after the colon; write {pair}"


def _gets_beyond(line: int, text: str, parse: Callable[[str], object]) -> bool:
    """Whether the parser reads more of a text than up to `line` (from 0)."""
    try:
        parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return mark is not None and mark.line > line
    except yaml.YAMLError:
        return False
    return True
