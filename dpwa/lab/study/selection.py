"""Which trainings of a study are meant by `--only KEY=VALUE`.

Must not know: files, the command line. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dpwa.errors import ConfigError
from dpwa.lab.study.trial import Trial

__all__ = ["chosen"]

_MOST_LISTED = 12


def chosen(trials: Sequence[Trial], only: Sequence[str], grid: Sequence[str] = ()) -> list[Trial]:
    """The trainings that fit.

    Args:
        trials: all of them.
        only: conditions KEY=VALUE. Keys are row, strategy (or method), seed, and settings, dotted inside of sections;
            the last part of a dotted key of the grid is enough. Of several conditions with one key one must hold, and
            all keys must.
        grid: keys of the study's grid.

    Raises:
        ConfigError: a condition has no such form, an unknown key, or a value that no training has.
    """
    facts = [_facts(trial, grid) for trial in trials]
    wanted: dict[str, list[str]] = {}
    problems: list[str] = []
    for condition in only:
        key, separator, value = condition.partition("=")
        if not separator:
            problems.append(f"--only {condition}: expected KEY=VALUE, such as strategy=gosgd")
            continue
        problems += _problems(condition, key, value, facts)
        wanted.setdefault(key, []).append(value)
    if problems:
        raise ConfigError(problems)
    found = [
        trial
        for trial, fact in zip(trials, facts, strict=True)
        if all(any(_is_same(fact.get(key), value) for value in values) for key, values in wanted.items())
    ]
    if not found:
        raise ConfigError(f"--only {' --only '.join(only)}: no training fits all of these; leave one out")
    return found


def _problems(condition: str, key: str, value: str, facts: Sequence[Mapping[str, str]]) -> list[str]:
    known = list(dict.fromkeys(name for fact in facts for name in fact))
    if key not in known:
        near = get_close_matches(key, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"
        return [f"--only {condition}: unknown key, {hint}"]
    there = list(dict.fromkeys(fact[key] for fact in facts if key in fact))
    if any(_is_same(one, value) for one in there):
        return []
    more = f" and {len(there) - _MOST_LISTED} more" if len(there) > _MOST_LISTED else ""
    return [f"--only {condition}: no training has this value; there are: {'; '.join(there[:_MOST_LISTED])}{more}"]


def _facts(trial: Trial, grid: Sequence[str]) -> dict[str, str]:
    """Everything that a condition can be about, as text."""
    flat = dict(_flat(trial.settings.to_json(), ""))
    facts = {"row": trial.row, "method": trial.settings.strategy, "seed": str(trial.seed), **flat}
    for key in grid:
        if key in flat:
            facts.setdefault(key.rpartition(".")[2], flat[key])
    return facts


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
            if "kind" in value:  # partition=iid
                found.append((f"{prefix}{key}", str(value["kind"])))
        else:
            found.append((f"{prefix}{key}", _text(value)))
    return found


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_same(fact: str | None, value: str) -> bool:
    if fact is None:
        return False
    try:
        return float(fact) == float(value)
    except ValueError:
        return fact == value
