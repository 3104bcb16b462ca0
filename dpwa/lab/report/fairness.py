"""Whether the comparison of a study's rows is fair: checks in the results what should be equal.

Runs in: any thread; all functions are pure.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpwa.lab.report.results import TrialResult, listed, seeds_text
from dpwa.lab.report.summary import Summary
from dpwa.lab.study.kinds import kind_of
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.study_rows import is_used

__all__ = ["Finding", "described_machine", "differing_settings", "findings", "used_settings"]

_SAMPLES_TOLERANCE = 0.01
_MOST_NAMED = 3
_MOST_LISTED = 6
_ALWAYS_SHOWN = {
    "data",
    "model",
    "partition.kind",
    "nodes",
    "n_epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "schedule",
    "cores",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        is_equal: whether it is equal in all rows.
        text: what was found, in one or two sentences.
    """

    is_equal: bool
    text: str


def findings(summary: Summary) -> list[Finding]:
    """All that was checked; empty if nothing has been trained yet."""
    results = summary.results
    if not results:
        return []
    return [
        _initial_weights(results),
        _samples(summary),
        *_exchanges(summary),
        *_destroyed(summary),
        *_times(summary),
        _cores(summary),
        Finding(
            is_equal=True,
            text="Evaluation is off the clock: models are saved during the training, while the clock stands still, and "
            "evaluated afterwards. Start-up is off the clock, too.",
        ),
        _commits(results),
        _machines(results),
    ]


def _initial_weights(results: Sequence[TrialResult]) -> Finding:
    found: dict[tuple[int, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        settings = result.trial.settings
        key = (result.seed, str(settings.get("data", "")), str(settings.get("model", "")))
        found[key][result.initial_weights or "unknown"].append(result.row)
    models = len({key[1:] for key in found})
    seeds = listed(sorted({key[0] for key in found}))
    wrong = [
        f"seed {seed}: {_grouped({weights[:8]: rows for weights, rows in groups.items()})}"
        for (seed, _, _), groups in sorted(found.items())
        if len(groups) > 1 or "unknown" in groups
    ]
    if wrong:
        return Finding(is_equal=False, text=f"Initial weights differ or are unknown: {'. '.join(wrong)}.")
    of_model = "" if models == 1 else " with the same network and data set"
    return Finding(
        is_equal=True,
        text=f"All rows{of_model} start with the same initial weights: their hashes agree for each seed ({seeds}).",
    )


def _samples(summary: Summary) -> Finding:
    means = {row.name: row.samples.mean for row in summary.rows if row.samples is not None}
    if not means:
        return Finding(is_equal=False, text="Samples seen cannot be compared: no row is done.")
    usual = statistics.median_low(means.values())
    others: dict[str, list[str]] = defaultdict(list)
    for name, mean in means.items():
        if abs(mean - usual) > _SAMPLES_TOLERANCE * usual:
            others[f"{mean:,.0f} ({mean / usual - 1:+.1%})"].append(name)
    if others:
        found = "; ".join(f"{what} in {_listed_briefly(names)}" for what, names in others.items())
        text = f"Rows saw different numbers of training samples: usually {usual:,.0f}, but {found}."
        return Finding(is_equal=False, text=f"{text} Their settings say why.")
    return Finding(is_equal=True, text=f"All rows saw {usual:,.0f} training samples, equal to within 1 %.")


def _exchanges(summary: Summary) -> Iterator[Finding]:
    """Whether rows exchange as often as their settings ask for."""
    rows = [row for row in summary.rows if row.asked is not None and row.exchanges is not None]
    short = [
        f"{row.name} {row.exchanges.mean:.3g} of {row.asked.mean:.3g}"
        for row in rows
        if row.falls_short and row.exchanges is not None and row.asked is not None
    ]
    if short:
        text = (
            f"Nodes exchanged less often than their rows ask for, per step: {'; '.join(short)}. Steps do not wait for "
            "exchanges unless wait_ms says so."
        )
        yield Finding(is_equal=False, text=text)
    elif rows:
        yield Finding(is_equal=True, text="All rows exchange at least nine tenths as often as they ask for.")


def _destroyed(summary: Summary) -> Iterator[Finding]:
    """Rows whose models are no numbers any more: their accuracy is that of guessing."""
    names = [
        row.name
        for row in summary.rows
        if any(result.final_loss is not None and not math.isfinite(result.final_loss) for result in row.done)
    ]
    if names:
        text = f"Models became NaN or infinite, so that their accuracy says nothing: {_listed_briefly(names)}."
        yield Finding(is_equal=False, text=text)


def _times(summary: Summary) -> Iterator[Finding]:
    """Real and virtual times cannot be compared."""
    engines: dict[str, list[str]] = defaultdict(list)
    for row in summary.rows:
        if row.measured:
            engines[row.settings.engine].append(row.name)
    if len(engines) > 1:
        text = f"Times of rows in memory are virtual and those of processes real: {_grouped(engines)}."
        yield Finding(is_equal=False, text=text)


def _cores(summary: Summary) -> Finding:
    """Compares the cores on which rows can compute: threads beyond the cores do not make a row faster."""
    cores: dict[int, list[str]] = defaultdict(list)
    threads: dict[str, list[str]] = defaultdict(list)
    for row in summary.rows:
        for result in row.measured[:1]:
            allowed = row.settings.cores or result.machine.get("cores") or 1
            if row.settings.engine == "in_memory":  # all nodes in one process with one thread
                allowed = 1
            cores[min(result.processes * result.threads_per_process, allowed)].append(row.name)
            threads[row.processes].append(row.name)
    text = f"Processes x threads, including a server's: {_grouped(threads)}."
    if len(cores) == 1:
        (count,) = cores
        return Finding(is_equal=True, text=f"All rows compute on {_cores_text(count)}. {text}")
    parts = _grouped({_cores_text(count): names for count, names in sorted(cores.items())})
    return Finding(is_equal=False, text=f"Rows compute on different numbers of cores: {parts}. {text}")


def _cores_text(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"


def _commits(results: Sequence[TrialResult]) -> Finding:
    commits = sorted({result.commit or "unknown" for result in results})
    if len(commits) > 1:
        rows = _rows_by_origin(results, lambda result: result.commit or "unknown")
        return Finding(is_equal=False, text=f"Rows were made by different commits: {_grouped(rows)}.")
    (commit,) = commits
    if commit == "unknown":
        return Finding(is_equal=True, text="All rows were made by an installed dpwa, whose commit is not known.")
    is_clean = not commit.endswith("-dirty")
    remark = "" if is_clean else " (not a clean commit: it does not contain all of the code)"
    return Finding(is_equal=is_clean, text=f"All rows were made by commit {commit}{remark}.")


def _machines(results: Sequence[TrialResult]) -> Finding:
    machines = {described_machine(result.machine) for result in results}
    if len(machines) == 1:
        (machine,) = machines
        return Finding(is_equal=True, text=f"All rows were made on one machine: {machine}.")
    rows = _rows_by_origin(results, lambda result: described_machine(result.machine))
    return Finding(
        is_equal=False, text=f"Rows were made on different machines or with different versions: {_grouped(rows)}."
    )


def _rows_by_origin(results: Sequence[TrialResult], of: Callable[[TrialResult], str]) -> dict[str, list[str]]:
    """The rows that come from each origin, or from each mixture of them, which then says the seeds of each."""
    seeds_of: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        seeds_of[result.row][of(result)].append(result.seed)
    rows: dict[str, list[str]] = defaultdict(list)
    for row, seeds in seeds_of.items():
        rows[_origin_text(seeds)].append(row)
    return rows


def _origin_text(seeds_of: Mapping[str, Sequence[int]]) -> str:
    if len(seeds_of) == 1:
        return next(iter(seeds_of))
    ordered = sorted((sorted(seeds), origin) for origin, seeds in seeds_of.items())
    return "; ".join(f"{origin} ({seeds_text(seeds)})" for seeds, origin in ordered)


def described_machine(machine: Mapping[str, Any]) -> str:
    """A machine in one line, without its load."""
    if not machine:
        return "unknown"
    packages = machine.get("packages")
    parts = [str(machine.get("processor", "unknown processor")), f"{machine.get('cores', '?')} cores"]
    if "memory_gb" in machine:
        parts.append(f"{machine['memory_gb']} GB")
    parts += [str(machine[key]) for key in ("system",) if key in machine]
    if "python" in machine:
        parts.append(f"Python {machine['python']}")
    if isinstance(packages, Mapping):
        parts += [f"{name} {version}" for name, version in packages.items()]
    return ", ".join(parts)


def differing_settings(settings: Sequence[Settings]) -> tuple[list[str], dict[str, str]]:
    """In which settings the rows differ, and what they share.

    Args:
        settings: of each row, at least one.

    Returns:
        The dotted keys that differ, and the shared settings worth showing, with their values.
    """
    flattened = [used_settings(one) for one in settings]
    keys = list(dict.fromkeys(key for one in flattened for key in one))
    differing = [key for key in keys if len({one.get(key, "") for one in flattened}) > 1]
    usual = _flat(Settings(strategy="").to_json())
    shared = {
        key: value
        for key, value in flattened[0].items()
        if value and key not in differing and (key in _ALWAYS_SHOWN or value != usual.get(key, ""))
    }
    return differing, shared


def used_settings(settings: Settings) -> dict[str, str]:
    """The settings that the strategy uses, by dotted keys."""
    kind = kind_of(settings.strategy)
    values = {key: value for key, value in settings.to_json().items() if is_used(kind, (key,))}
    # The strategy first, as readers expect.
    found = {"strategy": settings.strategy, **_flat(values)}
    if kind.name == "single":
        found.pop("nodes")  # it has one, whatever they say
    if settings.partition.kind != "classes":
        found.pop("partition.classes_per_node", None)
        found.pop("partition.equal", None)
    if settings.partition.kind not in {"dirichlet", "quantity"}:
        found.pop("partition.alpha", None)
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted keys, the values as text; "" for None."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return found


def _grouped(rows: Mapping[str, Iterable[str]]) -> str:
    """What was found in which rows; a large group becomes "the other rows"."""
    groups = {what: list(dict.fromkeys(names)) for what, names in rows.items()}
    if len(groups) == 1:
        return f"{next(iter(groups))} in all rows"
    largest = max(groups, key=lambda what: len(groups[what]))
    is_plain = len(groups[largest]) > _MOST_NAMED
    others = [
        f"{what} in {_listed_briefly(names)}" for what, names in groups.items() if not is_plain or what != largest
    ]
    return "; ".join([*others, f"{largest} in the other rows"] if is_plain else others)


def _listed_briefly(names: Sequence[str]) -> str:
    """The names, or the first of them and how many more there are."""
    if len(names) <= _MOST_LISTED:
        return listed(names)
    return f"{listed(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more rows"
