"""Reading a cluster file: from bytes on disk to plain values that remember where they were written.

Other files with the same rules, such as the lab's studies, are read here, too.

YAML is read by the rules of version 1.2, in which `1e-3` is a number, `no` is a word and `010` is ten. A key that
appears twice is an error. The 2017 dpwa's file, a list of one-key mappings, becomes an ordinary mapping here.

A file can be made to exhaust its reader by its size, by nesting, or by aliases of aliases. All three have limits.

Must not know: which keys there are and what they mean. Runs in: any thread.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dpwa.config.yaml_mistakes import likely_mistake
from dpwa.errors import ConfigError
from dpwa.options import Place

__all__ = ["CLUSTER", "YAML_NUMBER", "ClusterFile", "Entry", "as_text", "parse", "read", "written"]

CLUSTER = "cluster file"
"""The kind of most files that are read here."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000  # an alias counts as the values that it stands for; 4096 nodes need about 29,000

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# At most 40 digits: Python refuses to read integers of thousands of digits, and nobody means them.
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
YAML_NUMBER = re.compile(rf"^(?:{_INT.pattern}|{_FLOAT.pattern}|{_SPECIAL.pattern})$")
"""What reads as a number; a text of this form must be quoted."""

_PLAIN_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_MERGE_KEY = "<<"  # of YAML 1.1
_STR_TAGS = {"!", "tag:yaml.org,2002:str"}
_RENAMED_2017 = {"fetch_probability": "pull_probability"}
_SECTIONS_2017 = ("clock", "loss")
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some builds of PyYAML have no C parser


@dataclass
class Entry:
    """One value of the file: line and column (from 1) where it begins, and for collections what is inside."""

    value: Any
    line: int
    column: int
    children: dict[str | int, Entry] = field(default_factory=dict)
    key_marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 1
    depth: int = 1
    is_mapping: bool = False

    def refresh(self) -> None:
        """Make the value of a collection anew from its children."""
        children = {key: child.value for key, child in self.children.items()}
        self.value = children if self.is_mapping else list(children.values())


@dataclass(frozen=True)
class ClusterFile:
    """A file that is well-formed as YAML; `problems` are what is wrong with it all the same, such as double keys."""

    name: str
    root: Entry
    problems: tuple[tuple[int, int, str], ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """The content as plain values."""
        values: dict[str, Any] = self.root.value
        return values

    def locate(self, place: Place, *, key: bool) -> tuple[int, int]:
        """Line and column of the value at `place`, or of its key; of the nearest thing around it when it is missing."""
        entry = self.root
        for depth, part in enumerate(place):
            if key and depth == len(place) - 1 and part in entry.key_marks:
                return entry.key_marks[str(part)]
            if part not in entry.children:
                break
            entry = entry.children[part]
        return entry.line, entry.column

    def spell(self, place: Place) -> str:
        """The place as a person writes it, with the file's own words: nodes[1].name."""
        return written((self.renamed.get(str(place[0]), place[0]), *place[1:])) if place else ""


def written(place: Place) -> str:
    """The place as a person writes it: nodes[1].name."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def read(path: Path, *, kind: str = CLUSTER) -> ClusterFile:
    """Read the file at `path`.

    Args:
        path: the file.
        kind: what messages call such a file; only a cluster file may be in the 2017 format.

    Raises:
        ConfigError: it cannot be read, is too large, is not UTF-8 or not YAML, or has not the form of a cluster file.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the {kind} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a {kind} of at most {MAX_BYTES} bytes, but this file is larger")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: expected text in UTF-8, got the byte 0x{content[error.start]:02x}; "
            f"is this a {kind}, saved as UTF-8?"
        ) from error
    return parse(text, str(path), kind=kind)


def parse(text: str, name: str, *, kind: str = CLUSTER) -> ClusterFile:
    """Read the text of a cluster file.

    Args:
        text: the content.
        name: what messages call the file.
        kind: what messages call such a file; see `read`.

    Raises:
        ConfigError: the text is not YAML, exceeds a limit, or is neither a mapping nor the 2017 dpwa's list.
    """
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}:{_what_is_wrong(text, error)}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    root = builder.root
    if root is None or root.value is None:
        needs = "; a cluster file needs at least the key nodes" if kind == CLUSTER else ""
        raise ConfigError(f"{name}: the file is empty{needs}")
    if kind != CLUSTER:
        if not root.is_mapping:
            raise builder.fail(root.line, root.column, f"expected a mapping (key: value) at the top of a {kind}")
        return ClusterFile(name, root, problems=tuple(builder.problems))
    if not root.is_mapping:
        root = _from_list_of_2017(builder, root)
    return ClusterFile(name, root, renamed=_rename_2017(builder, root), problems=tuple(builder.problems))


def _what_is_wrong(text: str, error: yaml.MarkedYAMLError) -> str:
    """Line, column and reason for a text that is not YAML."""
    guess = likely_mistake(text, error, lambda mended: list(yaml.parse(mended, Loader=_LOADER)))
    if guess is not None:
        line, column, advice = guess
        return f"{line}:{column}: not valid YAML: {advice}"
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"{mark.line + 1}:{mark.column + 1}:"
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return f"{place} not valid YAML: {reason}; look at indentation, quotes and brackets there"


class _Builder:
    """Makes entries from the events of the YAML parser. Iterative, so that nesting cannot exhaust Python's stack."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Entry | None = None
        self.problems: list[tuple[int, int, str]] = []
        self._open: list[tuple[Entry, str | None]] = []  # collection and the anchor that it will get
        self._keys: list[str | None] = []  # for each open collection: the key that waits for its value
        self._anchors: dict[str, Entry] = {}
        self._documents = 0

    def fail(self, line: int, column: int, text: str) -> ConfigError:
        return ConfigError(f"{self.name}:{line}:{column}: {text}")

    def take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self.fail(line, column, "expected one YAML document, but a second one begins here; remove it")
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, line, column)
            if not self._is_key(value, line, column):
                self._add(Entry(value, line, column), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, line, column)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._begin(event, line, column)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            entry, anchor = self._open.pop()
            self._keys.pop()
            merged = entry.children.pop(_MERGE_KEY, None) if entry.is_mapping else None
            if merged is not None and merged.is_mapping:
                # Reported; what it was to bring must not count as missing, too. Each child has a mark of its key.
                entry.children = {**merged.children, **entry.children}
                entry.key_marks = {**merged.key_marks, **entry.key_marks}
            entry.refresh()
            self._add(entry, anchor)

    def _begin(self, event: yaml.CollectionStartEvent, line: int, column: int) -> None:
        if self._waits_for_key():
            raise self.fail(line, column, "expected a word as the key, got a list or a mapping")
        if event.tag is not None:
            raise self.fail(line, column, f"expected plain values, got the tag {event.tag}; remove it")
        if len(self._open) >= MAX_DEPTH:
            raise self.fail(line, column, f"expected at most {MAX_DEPTH} levels of nesting, but here is one more")
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._open.append((Entry(None, line, column, is_mapping=is_mapping), event.anchor))
        self._keys.append(None)

    def _alias(self, anchor: str | None, line: int, column: int) -> None:
        entry = None if anchor is None else self._anchors.get(anchor)
        if self._waits_for_key() or entry is None:
            raise self.fail(line, column, f"the alias *{anchor} stands for nothing that could be used here")
        if len(self._open) + entry.depth > MAX_DEPTH:
            raise self.fail(line, column, f"expected at most {MAX_DEPTH} levels of nesting, also through aliases")
        self._add(entry, None)

    def _add(self, entry: Entry, anchor: str | None) -> None:
        """Put a complete value where it belongs: under its key, into its list, or at the top."""
        if anchor is not None:
            self._anchors[anchor] = entry
        if not self._open:
            self.root = entry
            return
        parent = self._open[-1][0]
        parent.size += entry.size
        parent.depth = max(parent.depth, entry.depth + 1)
        if parent.size > MAX_VALUES:
            raise self.fail(
                parent.line, parent.column, f"expected at most {MAX_VALUES} values, counting aliases in full"
            )
        key = self._keys[-1]
        if not parent.is_mapping:
            parent.children[len(parent.children)] = entry
        elif key is not None:
            parent.children.setdefault(key, entry)  # a key that stands twice was reported; the first one counts
            self._keys[-1] = None

    def _waits_for_key(self) -> bool:
        return bool(self._open) and self._open[-1][0].is_mapping and self._keys[-1] is None

    def _is_key(self, value: object, line: int, column: int) -> bool:
        """Take the scalar as the next key if one is due."""
        if not self._waits_for_key():
            return False
        if not isinstance(value, str):
            raise self.fail(line, column, f"expected a word as the key, got {value}; put it in quotes if it is meant")
        marks = self._open[-1][0].key_marks
        if value == _MERGE_KEY:
            text = "merge keys (<<) are not supported; write the keys here, or use an alias (*name) for a whole value"
            self.problems.append((line, column, text))
        if value in marks:
            first_line = marks[value][0]
            text = f'the key "{value}" stands here and in line {first_line} of the same mapping; remove one of the two'
            self.problems.append((line, column, text))
        else:
            marks[value] = (line, column)
        self._keys[-1] = value
        return True

    def _scalar(self, event: yaml.ScalarEvent, line: int, column: int) -> str | int | float | bool | None:
        text: str = event.value
        if event.tag is not None and event.tag not in _STR_TAGS:
            raise self.fail(line, column, f"expected plain values, got the tag {event.tag}; remove it")
        if event.tag is not None or not event.implicit[0]:  # quoted, a block of text, or tagged as text
            return text
        return _plain_value(text)


def _plain_value(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar, by the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def as_text(text: str) -> str:
    """A text as it is written into a file: in quotes where it would read as something else, such as 1e3 or null."""
    is_plain = _PLAIN_TEXT.fullmatch(text) is not None and _plain_value(text) == text
    return text if is_plain else json.dumps(text)


def _from_list_of_2017(builder: _Builder, root: Entry) -> Entry:
    """The mapping that a 2017 file means, which is a list of mappings with one key each."""
    if not root.value or not isinstance(root.value, list):
        raise builder.fail(root.line, root.column, "expected a mapping with the key nodes at the top of the file")
    joined = Entry(None, root.line, root.column, is_mapping=True)
    for item in root.children.values():
        if not item.is_mapping or len(item.children) != 1:
            text = "expected a mapping with one key, as in every item of a file in the 2017 format"
            builder.problems.append((item.line, item.column, text))
            continue
        ((key, child),) = item.children.items()
        mark = item.key_marks[str(key)]
        if key in joined.children:
            first_line = joined.key_marks[str(key)][0]
            text = f'the key "{key}" stands here and in line {first_line}; remove one of the two'
            builder.problems.append((*mark, text))
            continue
        joined.children[key] = child
        joined.key_marks[str(key)] = mark
    joined.refresh()
    return joined


def _rename_2017(builder: _Builder, root: Entry) -> dict[str, str]:
    """Replace the 2017 words of a mapping by today's; returns today's word -> the file's word."""
    renamed = {}
    for old, new in _RENAMED_2017.items():
        if old not in root.children:
            continue
        if new in root.children:
            text = f'"{old}" means "{new}", which stands in line {root.key_marks[new][0]}; remove one of the two'
            builder.problems.append((*root.key_marks[old], text))
            del root.children[old]
            continue
        root.children[new] = root.children.pop(old)
        root.key_marks[new] = root.key_marks[old]
        renamed[new] = old
    for section in _SECTIONS_2017:
        child = root.children.get(section)
        if child is not None and type(child.value) is int and child.value == 0:  # 0 meant "no options"
            root.children[section] = Entry({}, child.line, child.column, is_mapping=True)
    root.refresh()
    return renamed
