"""Words for what is wrong with a configuration: where, what was expected, what came, what to do.

What was expected is read from the JSON Schema of the config, so that a message cannot disagree with the check.

Must not know: files, lines and columns, and which keys there are. Runs in: any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from dpwa.config.yaml_file import YAML_NUMBER
from dpwa.options import BETWEEN, OTHER_NAMES, OTHER_VALUES, Place, Problem

__all__ = ["OWN_TEXT", "made_despite", "problems_of", "shown"]

OWN_TEXT = "dpwa_value"
"""Type of a custom pydantic error whose message says what was expected; "hint" in its context, what to do."""


def problems_of(error: ValidationError, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems that pydantic found.

    Args:
        error: what pydantic raised.
        schema: JSON Schema of the model that was validated.
    """
    found = error.errors(include_url=False)
    for item in found:
        place, kind, value = item["loc"], item["type"], item["input"]
        if kind == "too_short" and any(other["loc"][: len(place)] == place != other["loc"] for other in found):
            continue  # entries are wrong by themselves, and reported so
        if kind == BETWEEN:
            for problem in item["ctx"]["problems"]:
                yield replace(problem, place=(*place, *problem.place))
        elif kind == "extra_forbidden":
            yield Problem(place, f"unknown key, {_suggestion(schema, place, value)}", at_key=True)
        elif kind == "missing":
            yield Problem(place, f"missing; expected {_expected(_schema_at(schema, place))}{_example(schema, place)}")
        elif kind == OWN_TEXT:
            yield Problem(place, f"{item['msg']}, got {shown(value)}{item.get('ctx', {}).get('hint', '')}")
        elif not (here := _schema_at(schema, place)):
            # Inside `custom_rule`, where the last part is pydantic's name for the kind of the value. YAML has the kinds
            # of values that JSON has, and NaN and infinity besides.
            yield Problem(place[:-1], f"expected a plain, finite value, got {shown(value)}")
        else:
            hint = _hint(here, value) or ("" if kind == "too_long" else _example(schema, place))
            yield Problem(place, f"expected {_expected(here)}, got {shown(value)}{hint}")


def made_despite(error: ValidationError) -> object | None:
    """What was made although its values do not go together; None where single values are wrong."""
    first = error.errors(include_url=False)[0]
    return first["ctx"]["made"] if first["type"] == BETWEEN and not first["loc"] else None


def shown(value: object) -> str:
    """A value as it looks in the file, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(schema: Mapping[str, Any], place: Place, value: object) -> str:
    """What was probably meant by the unknown key at `place`, which has this value."""
    word, around = str(place[-1]), place[:-1]
    names = _names(_schema_at(schema, around))
    key, _, rest = word.partition(":")
    if rest and key in names:  # {port:23200} is YAML, with one long key
        return f'write "{key}: {rest}", with a space after the colon'
    head, _, tail = word.partition(".")
    if tail and head in names:
        return f"did you mean {head}: {{{tail}: {_given(value)}}}?"
    if _simple(word) in names:
        return f'did you mean "{names[_simple(word)]}"?'
    inside = []
    for section in () if isinstance(value, (Mapping, list)) else dict.fromkeys(names.values()):
        key_inside = _names(_schema_at(schema, (*around, section))).get(_simple(word))
        if key_inside is not None:
            inside.append(f"{section}: {{{key_inside}: {_given(value)}}}")
    if inside:
        return f"did you mean {' or '.join(inside)}?"
    near = get_close_matches(_simple(word), names, n=1)
    if near:
        return f'did you mean "{names[near[0]]}"?'
    return f"known here: {', '.join(dict.fromkeys(names.values()))}" if names else "expected no keys here"


def _given(value: object) -> str:
    return shown(value) if isinstance(value, (str, int, float)) else "…"


def _names(section: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a section by their names, and by what else they are called."""
    properties: Mapping[str, Any] = section.get("properties", {})
    others = {name: key for key, one in properties.items() for name in one.get(OTHER_NAMES, ())}
    return {**others, **{key: key for key in properties}}


def _simple(word: str) -> str:
    """A word without the differences that people make without meaning anything by them."""
    return word.lower().replace("-", "_")


def _example(schema: Mapping[str, Any], place: Place) -> str:
    """A line to copy, where the schema has an example of what belongs at this place or into the list there."""
    here = _schema_at(schema, place)
    entry = _schema_at(schema, (*place, 0)) if here.get("type") == "array" else here
    for example in entry.get("examples", ()):
        pairs = ", ".join(f"{key}: {value}" for key, value in example.items())
        return f"; for example: - {{{pairs}}}"
    return ""


def _schema_at(schema: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """The part of the schema for one place; empty where the schema says nothing."""
    here = schema
    for part in place:
        others = here.get("additionalProperties")
        named = here.get("properties", {}).get(part, others if isinstance(others, Mapping) else {})
        below = here.get("items", {}) if isinstance(part, int) else named
        # A section, or a section or null.
        reference = next((one["$ref"] for one in (below, *below.get("anyOf", ())) if "$ref" in one), None)
        here = below if reference is None else schema["$defs"][reference.rpartition("/")[2]]
    return here


def _expected(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "anyOf" in schema:  # a value or null, or a number or a schedule, which says itself what is wrong with it
        values = [one for one in schema["anyOf"] if one.get("type") != "object"]
        return " or ".join("null" if one.get("type") == "null" else _expected(one) for one in values)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most:
            return f"a list of {least} to {most} entries"
        return f"a list of at least {least} {'entry' if least == 1 else 'entries'}" if least else "a list"
    if kind == "string" and "maxLength" in schema:
        return f"text of at most {schema['maxLength']} characters"
    words = {"boolean": "true or false", "string": "text", "object": "a mapping (key: value)"}
    return words.get(str(kind), "another value")


def _range(schema: Mapping[str, Any]) -> str:
    """The limits of a number in words; every number of the config has a lower one."""
    limits = {key: f"{value:.12g}" for key, value in schema.items() if isinstance(value, (int, float))}
    if "maximum" in limits:
        upper = f" to {limits['maximum']}"
    elif "exclusiveMaximum" in limits:
        upper = f" to but not including {limits['exclusiveMaximum']}"
    else:
        upper = ""
    if "exclusiveMinimum" in limits:
        return f" above {limits['exclusiveMinimum']}" + (f" and up{upper}" if upper else "")
    up = " up" if "exclusiveMaximum" in limits else ""
    return f" from {limits['minimum']}{up}{upper}" if upper else f" of at least {limits['minimum']}"


def _hint(schema: Mapping[str, Any], value: object) -> str:
    """What to do, where the mistake is a common one."""
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    kind = schema.get("type")
    if isinstance(value, str):
        if "enum" in schema:
            meant = schema.get(OTHER_VALUES, {}).get(_simple(value))
            near = [meant] if meant else get_close_matches(_simple(value), schema["enum"], n=1)
            return f'; did you mean "{near[0]}"?' if near else ""
        if kind in ("integer", "number") and YAML_NUMBER.match(value):
            return "; write the number without quotes"
        if kind == "boolean" and value.lower() in ("yes", "no", "on", "off"):
            return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    elif kind == "string" and "enum" not in schema and isinstance(value, (int, float)):
        return "; put it in quotes"
    return ""
