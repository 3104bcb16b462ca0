"""From the values of a study file to its rows: strategies times grid, each with its own settings.

The settings of a row are those at the top of the file, overridden by its entry of `strategies`, overridden by its point
of the grid. Settings that its strategy does not use are left out, so that they do not multiply rows. An entry that sets
a key of the grid itself keeps that value.

The values may be wrong: all mistakes are reported at once.

Must not know: lines and columns. Runs in: any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from dpwa.config.keys import FACTOR_KEYS
from dpwa.config.problems import problems_of
from dpwa.lab.study.contradictions import contradictions
from dpwa.lab.study.kinds import STRATEGIES, StrategyKind, is_strategy, kind_of
from dpwa.lab.study.layers import Layers, mapping
from dpwa.lab.study.optimizer import KEYS_OF_OPTIONS, optimizer_kind, settle_optimizer
from dpwa.lab.study.own_code import own_code_problems
from dpwa.lab.study.row_names import NamedRow, groups_meant, name_problems, row_meant
from dpwa.lab.study.settings import CommonSettings, Settings
from dpwa.methods.registry import METHODS
from dpwa.options import Place, Problem

__all__ = ["Row", "is_used", "rows_of", "shown_setting", "slug"]

Groups: TypeAlias = "tuple[tuple[str, ...], ...]"
"""Labels of rows."""

Choices: TypeAlias = "list[tuple[int, Any]]"
"""Values of a key of the grid, each with its place in the list."""

_MOST_ROWS = 500

_Uses: TypeAlias = Callable[[StrategyKind], bool]


def _named(*names: str) -> _Uses:
    return lambda kind: kind.name in names


def _declared(flag: str) -> _Uses:
    """Whether a method says so of itself. A custom method is not asked: it may use everything."""
    return lambda kind: bool(getattr(METHODS.get(kind.name), flag, True))


_USERS: Mapping[str, _Uses] = {
    "cluster": lambda kind: kind.is_method,
    "sampler": lambda kind: kind.is_method,
    "avg_freq": _named("param_avg", "w_param_avg"),
    "lambda": _named("w_param_avg"),
    "every_steps": _named("allreduce_every_h", "hivemind"),
    "client_fraction": _named("fedavg", "fedprox"),
    "local_epochs": _named("fedavg", "fedprox"),
    "mu": _named("fedprox"),
    "slow": lambda kind: not kind.is_one_process,
    "kill": lambda kind: not kind.is_one_process,
}
"""The settings that not every strategy uses, and the strategies that use them."""

_OF_PARTITION = {"classes_per_node": ("classes",), "equal": ("classes",), "alpha": ("dirichlet", "quantity")}
"""The options of a partition, and its kinds that have them."""

_USERS_IN_CLUSTER: Mapping[str, _Uses] = {
    **{name: _named(name) for name, method in METHODS.items() if method.options is not None},
    **dict.fromkeys(FACTOR_KEYS, _declared("uses_interpolation")),
    "pull_probability": _declared("uses_probability"),
}
"""The same for keys of the cluster file."""


@dataclass(frozen=True)
class Row:
    """One row of a study.

    Attributes:
        label: its name, unique in the study.
        settings: of its trials.
        literature: what the literature reports, in the study's unit; None: nothing.
        is_same_recipe: whether the literature trained as this row does, so that the two numbers can be compared.
        compare_with: label of the row that this one is compared with; empty: none.
        entry: name of its entry of `strategies`.
        point: its keys of the grid, with their values.
    """

    label: str
    settings: Settings
    literature: float | None = None
    is_same_recipe: bool = True
    compare_with: str = ""
    entry: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)


def rows_of(values: Mapping[str, Any], folder: Path | None) -> tuple[list[Row], Groups, list[Problem]]:
    """The rows of a study file, which of them make the same updates, and what is wrong with them.

    Args:
        values: keys and plain values of the file, which may be wrong.
        folder: what paths of matrix files are relative to; None: these files are not checked.
    """
    given_grid = {key: found for key, found in mapping(values.get("grid")).items() if isinstance(found, list) and found}
    problems = list(_grid_problems(given_grid))
    wrong = {problem.place for problem in problems}
    grid = {
        key: [(number, value) for number, value in enumerate(found) if ("grid", key, number) not in wrong]
        for key, found in given_grid.items()
        if ("grid", key) not in wrong
    }
    drafts: list[_Draft] = []
    entries = values.get("strategies")
    for index, given in enumerate(entries if isinstance(entries, list) else ()):
        entry = {"strategy": given} if isinstance(given, str) else given
        if not isinstance(entry, dict) or not is_strategy(str(entry.get("strategy"))):
            continue  # reported by the check of single values
        kind = kind_of(str(entry["strategy"]))
        problems += _unused_problems(kind, entry, index)
        points = _points(kind, entry, grid)
        if len(drafts) + math.prod(len(found) for _, found in points) > _MOST_ROWS:
            problems.append(Problem(("grid",), f"expected at most {_MOST_ROWS} rows in all, got more"))
            break
        drafts += _drafts(values, kind, entry, index, points, grid)
    problems += _label_problems(drafts)
    named = [draft.named for draft in drafts]
    rows = []
    for draft in drafts:
        settings, found = draft.checked(folder)
        problems += found
        if settings is not None:
            recipe, base = (draft.entry.get(key) or values.get(key) for key in ("literature_recipe", "compare_with"))
            meant = row_meant(str(base or ""), draft.named.point, named) or ""
            named_row = draft.named
            rows.append(
                Row(
                    named_row.label,
                    settings,
                    _literature(values, draft),
                    recipe != "other",
                    meant,
                    named_row.name,
                    named_row.point,
                )
            )
    problems += name_problems(values, named)
    return rows, groups_meant(_groups(values), named), problems


@dataclass
class _Draft:
    """A row whose settings have not been checked yet."""

    named: NamedRow
    kind: StrategyKind
    index: int
    layers: Layers
    entry: Mapping[str, Any]

    def checked(self, folder: Path | None) -> tuple[Settings | None, list[Problem]]:
        """The settings, or None, and what is wrong with them, by place in the file."""
        values = {**self.layers.values, "strategy": self.kind.name}
        settings: Settings | None = None
        problems: list[Problem] = []
        try:
            settings = Settings.model_validate(values)
        except ValidationError as error:
            problems += problems_of(error, Settings.model_json_schema())
        problems += contradictions(values, self.kind, folder)
        if settings is not None:
            problems += self._idle(settings)
        if folder is not None:
            problems += own_code_problems(values if settings is None else settings.to_json(), folder)
        own: Place = ("strategies", self.index)
        return settings, [replace(one, place=self.layers.origin(one.place, own)) for one in problems]

    def _idle(self, settings: Settings) -> Iterator[Problem]:
        """What was written for this row and has no effect beside its other settings: its name would say too much."""
        kind = settings.partition.kind
        for key, kinds in _OF_PARTITION.items():
            if key in mapping(self.layers.values.get("partition")) and kind not in kinds:
                text = f"{key} is for partition {' and '.join(kinds)}, and here it is {kind}; remove one of the two"
                yield Problem(("partition", key), text, at_key=True)
        for key in ("decay_at", "decay_factor"):
            is_of_row = self.layers.origin((key,), ())[:1] in (("grid",), ("strategies",))
            if is_of_row and settings.schedule in ("constant", "cosine", "linear"):
                text = f"{key} is for schedule: steps, and here it is {settings.schedule}; remove one of the two"
                yield Problem((key,), text, at_key=True)


def _drafts(
    values: Mapping[str, Any],
    kind: StrategyKind,
    entry: Mapping[str, Any],
    index: int,
    points: Sequence[tuple[str, Choices]],
    grid_keys: Iterable[str],
) -> Iterator[_Draft]:
    """The rows of one entry of `strategies`."""
    own = {key: found for key in grid_keys if (found := _own_choice(kind, entry, tuple(key.split(".")))) is not None}
    # Which samples the wrong labels are of depends on who would hold them, also where one process has all.
    has_wrong_labels = bool(entry.get("wrong_labels", values.get("wrong_labels")))
    for choice in product(*(found for _, found in points)):
        layers = Layers()
        for source, place in ((values, ()), (entry, ("strategies", index))):
            for key in source:
                if key in _known_keys() and (is_used(kind, (key,)) or (key == "partition" and has_wrong_labels)):
                    _put(layers, key, source[key], place)
        name = label = str(entry.get("name") or kind.name)
        point = dict(own)
        for (key, _), (number, value) in zip(points, choice, strict=True):
            layers.put(tuple(key.split(".")), value, ("grid", key, number))
            label += f", {key.rpartition('.')[2]}={shown_setting(value)}"
            point[key] = value
        settle_optimizer(layers)
        yield _Draft(NamedRow(label, name, point), kind, index, layers, entry)


def _put(layers: Layers, key: str, value: object, place: Place) -> None:
    """Sets a value. The keys of `cluster` are merged one by one; everything else is replaced as a whole."""
    if key == "cluster" and isinstance(value, Mapping):
        for inside in value:
            layers.put((key, inside), value[inside], (*place, key, inside))
    else:
        layers.put((key,), value, (*place, key))


def _points(kind: StrategyKind, entry: Mapping[str, Any], grid: Mapping[str, Choices]) -> list[tuple[str, Choices]]:
    """The keys of the grid that make different rows of an entry, with their values."""
    return [
        (key, found)
        for key, found in grid.items()
        if is_used(kind, path := tuple(key.split("."))) and _is_multiplying(kind, path) and not _is_set(entry, path)
    ]


def is_used(kind: StrategyKind, path: tuple[str, ...]) -> bool:
    """Whether a strategy uses a setting."""
    if path[0] == "partition" and kind.is_one_process:
        return False
    if path[0] in _USERS and not _USERS[path[0]](kind):
        return False
    inside = path[1] if path[0] == "cluster" and len(path) > 1 else ""
    return inside not in _USERS_IN_CLUSTER or _USERS_IN_CLUSTER[inside](kind)


def _is_multiplying(kind: StrategyKind, path: tuple[str, ...]) -> bool:
    """Whether other values of a setting that a strategy uses make other trials."""
    if path[0] == "partition":
        return not kind.splits_batch
    return path[0] != "nodes" or kind.name != "single"


def _is_set(entry: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    here: Any = entry
    optimizer = entry.get("optimizer")
    options = mapping(mapping(optimizer).get(optimizer_kind(optimizer)))
    if any(path == (key,) and option in options for option, key in KEYS_OF_OPTIONS.items()):
        return True
    for key in path:
        if not isinstance(here, Mapping):
            return True  # a word in place of a mapping sets all of it
        if key not in here:
            return False
        here = here[key]
    return True


def _own_choice(kind: StrategyKind, entry: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """The value that an entry itself gives a key of the grid, which puts all of its rows at one point; None: none."""
    if not (is_used(kind, path) and _is_multiplying(kind, path)):
        return None
    here: Any = entry
    for key in path:
        here = mapping(here).get(key)
    found: object = here
    return found


def _unused_problems(kind: StrategyKind, entry: Mapping[str, Any], index: int) -> Iterator[Problem]:
    for key in entry:
        if key in _known_keys() and not is_used(kind, (key,)):
            users = [user.name for user in STRATEGIES.values() if key in _USERS and _USERS[key](user)]
            what = f"is for {', '.join(users)}" if users else "has no meaning for a single process that sees all data"
            yield Problem(
                ("strategies", index, key), f"{key} {what}; {kind.name} does not use it: remove it", at_key=True
            )


def _grid_problems(grid: Mapping[str, list[Any]]) -> Iterator[Problem]:
    """Unknown keys and repeated values."""
    for key, found in grid.items():
        first, _, inside = key.partition(".")
        if first not in _known_keys() or (inside and first not in _sections()):
            near = get_close_matches(key, _known_keys(), n=1) or get_close_matches(first, _known_keys(), n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(_known_keys())}"
            yield Problem(("grid", key), f"unknown setting, {hint}", at_key=True)
        for number, value in enumerate(found):
            if any(value == other and type(value) is type(other) for other in found[:number]):
                yield Problem(("grid", key, number), "this value is here twice; remove one")


def _label_problems(drafts: Sequence[_Draft]) -> Iterator[Problem]:
    """Rows with the same label, or with labels too similar to name different folders."""
    seen: dict[str, str] = {}
    for draft in drafts:
        label = draft.named.label
        folder = slug(label)
        if folder in seen:
            first = seen[folder]
            what = "has the same label" if first == label else f'has the label "{first}", which is too similar'
            text = f'the row "{label}": another row {what}; give this one a name: ...'
            yield Problem(("strategies", draft.index), text)
        seen.setdefault(folder, label)


def slug(label: str) -> str:
    """A label as the name of a folder: small letters, digits, dots and dashes."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._") else "-" for letter in label)
    return "-".join(part for part in kept.lower().split("-") if part).lstrip(".-")[:120] or "row"


def _literature(values: Mapping[str, Any], draft: _Draft) -> float | None:
    found = mapping(values.get("literature")).get(draft.named.label, draft.entry.get("literature"))
    return float(found) if isinstance(found, (int, float)) else None


def _groups(values: Mapping[str, Any]) -> list[list[str]]:
    """What `same_updates` says, as far as it is well-formed."""
    groups = values.get("same_updates")
    found = [group for group in groups if isinstance(group, list)] if isinstance(groups, list) else []
    return [[str(label) for label in group] for group in found]


def shown_setting(value: object) -> str:
    """A value of a setting as a label shows it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(
            shown_setting(inside) if key == "kind" else f"{key} {shown_setting(inside)}"
            for key, inside in value.items()
        )
    if isinstance(value, (list, tuple)):
        return "/".join(shown_setting(inside) for inside in value)
    return str(value)


def _known_keys() -> list[str]:
    return [field.alias or name for name, field in CommonSettings.model_fields.items()]


def _sections() -> tuple[str, ...]:
    return ("cluster", "partition", "slow", "kill", "wrong_labels", "virtual")
